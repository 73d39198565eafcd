"""Attacks on what stands on a tower: captions, answers, sentences put into a model's mouth, patch tokens."""
