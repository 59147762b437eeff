"""Conformance suites for authors of policies and predictors, to be called from their own tests.

May import: native, native.bindings, runtime.*
"""
