"""The exchange: one shared segment of flags and payloads, and its layout.

May import: native, native.abi, native.bindings, runtime, runtime.weights
"""
