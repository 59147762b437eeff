"""Offline training of adaptive predictors: capture, sizes, fit, calibration, report.

The only torch code that has gradients.

May import: native, runtime, runtime.engine, runtime.files, runtime.hardware, runtime.model,
    runtime.model.checkpoints, runtime.offline.evaluation, runtime.options, runtime.predictors,
    runtime.profiles, runtime.weights
"""
