"""Acceptance as code: what each capability must show, measured; see run.py."""
