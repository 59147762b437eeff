"""The runtime without Ray: what a model is, where its neurons live, how a token is computed.

A room a noun; the root holds only what all rooms share.

May import: native, native.abi
"""
