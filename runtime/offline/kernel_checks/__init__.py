"""Kernels of one's own compared with float64, in a process of their own.

May import: native, native.abi, native.bindings, runtime.engine, runtime.engine.executors,
    runtime.model.checkpoints, runtime.offline.training, runtime.options, runtime.weights
"""
