"""Text adversaries: character edits, word substitutions, and what they may spend."""
