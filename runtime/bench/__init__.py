"""Measurements: one file a figure or a table; each prints what it measured and under what load."""
