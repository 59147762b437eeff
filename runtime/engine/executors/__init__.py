"""Executors: one class for what an actor does on a device; factory.py chooses.

base.py has what all share, leading.py the requests, host.py and cuda.py the classes, session.py
all of them as threads of one process.

May import: native.*, runtime, runtime.engine, runtime.exchange,
    runtime.model, runtime.model.checkpoints, runtime.options, runtime.plan, runtime.predictors,
    runtime.text, runtime.weights
"""
