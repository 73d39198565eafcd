"""A page to try it: one image, two models, an attack on each, side by side."""
