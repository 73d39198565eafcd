"""Models: pixels in [0, 1] and texts in, embeddings out; loading, saving, and the fast path."""
