"""Evaluation: perplexity, recall and speed of predictors, sweeps, the harness.

May import: native, native.abi, runtime.engine, runtime.engine.executors, runtime.exchange,
    runtime.options, runtime.plugins, runtime.predictors, runtime.tracing
"""
