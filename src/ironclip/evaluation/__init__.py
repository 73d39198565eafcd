"""Evaluation: the loop over suites, figures with intervals, and the store; rows are the truth, figures follow."""
