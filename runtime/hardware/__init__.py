"""Machines: rates that policies decide by, the files that hold them, this machine's cores.

Rates are measured in `bench`; here is what they mean and where they are kept.

May import: native.*, runtime, runtime.files, runtime.model.checkpoints, runtime.weights
"""
