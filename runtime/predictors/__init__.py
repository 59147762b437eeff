"""Predictors: what one is, its native forms, its files, and which one is chosen."""
