"""Conformance suites for authors of policies and predictors."""
