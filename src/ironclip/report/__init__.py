"""Stored rows become tables, figures and pages; no model and no data set is ever opened here."""
