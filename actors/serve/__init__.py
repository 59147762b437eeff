"""Serve: an engine behind HTTP.

May import: actors.engine, native, runtime.*
"""
