"""Measurements: one file a figure or a table; each prints what it measured and under what load.

What launches actors to measure is in `hotcold.actors.bench`.

May import: native.*, runtime, runtime.doctor, runtime.engine, runtime.engine.executors,
    runtime.exchange, runtime.hardware, runtime.model.checkpoints, runtime.offline.plant,
    runtime.options, runtime.plan, runtime.tracing, runtime.weights
"""
