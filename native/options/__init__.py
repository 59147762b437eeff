"""Rows of options, from which dataclasses, commands and pages are made.

May import: native, native.abi
"""
