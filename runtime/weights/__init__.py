"""Weights in memory: stores, pages, memory files, how much memory there is."""
