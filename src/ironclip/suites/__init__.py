"""Suites: named, versioned sets of data with their class names, prompts and metrics, written as data."""

from ironclip.suites.suite import Suite, SuiteDataset, SuiteEntry, load_suite, suite_names

__all__ = ["Suite", "SuiteDataset", "SuiteEntry", "load_suite", "suite_names"]
