"""What this machine offers and what to mend: one probe a part, one report.

May import: native, native.bindings, native.gpu, runtime, runtime.model.checkpoints,
    runtime.weights
"""
