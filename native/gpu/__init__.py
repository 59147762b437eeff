"""The GPU from outside: plug-in, probe, MPS and NVML; needs no compiled kernels to import.

May import: native, native.bindings
"""
