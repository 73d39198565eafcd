"""Training methods: one file each; `base.py` is the contract. No loop, no input or output."""
