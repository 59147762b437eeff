"""Transports: how a driver's requests reach the executors, one class each; client.py chooses.

It knows neither the actor group nor recoveries.

May import: native, native.bindings, runtime.engine, runtime.exchange,
    runtime.plan
"""
