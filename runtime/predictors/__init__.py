"""Predictors: what one is, its native forms, its files, and which one is chosen.

The kinds themselves are in `hotcold.policies.predictor`, their training in `offline.training`.

May import: native, runtime.files, runtime.model, runtime.model.checkpoints,
    runtime.model.gguf, runtime.plan, runtime.plugins, runtime.profiles, runtime.weights
"""
