"""A model in numbers: its spec, its neurons, its rotary tables; no weights.

May import: native.abi
"""
