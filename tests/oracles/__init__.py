"""Slow, obvious versions of what the library computes: float64, fractions and loops, and nothing of the library."""
