"""Serve: an engine behind HTTP.

May import: nothing
"""
