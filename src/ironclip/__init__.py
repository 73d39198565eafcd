"""IronCLIP: makes CLIP-like models adversarially robust, and measures how robust they are."""

__version__ = "0.1.0"
