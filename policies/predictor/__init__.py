"""Predictor kinds, one a file: exact, learned, low-rank."""
