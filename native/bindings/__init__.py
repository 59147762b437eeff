"""Typed faces of the compiled kernels, one file a C file or group; the only users of cffi."""
