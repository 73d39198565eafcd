"""The training of tiny-vlm: what it reads, its recipe, its loop."""
