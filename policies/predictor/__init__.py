"""Predictor kinds, one a file: exact, learned, and four that need no training."""
