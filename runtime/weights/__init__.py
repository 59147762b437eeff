"""Weights in memory: stores, pages, memory files, how much memory there is.

May import: native, runtime, runtime.model, runtime.model.checkpoints, runtime.model.gguf,
runtime.options
"""
