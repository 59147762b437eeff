"""One file an architecture: its config.json as a ModelSpec, and the tensors behind a bundle's.

A new architecture is a file here and a row of `table.py`.

May import: native, runtime.files, runtime.model
"""
