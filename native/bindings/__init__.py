"""Typed faces of the compiled kernels, one file a C file or group; the only users of cffi.

Arrays and their checks in, C structs out; no model, no plan, no file.

May import: native, native.abi, native.options
"""
