"""The engine: a deployment is prepared, made, and run by executors in this process.

Whatever an actor does is here, without Ray; a session runs all executors of a model as threads.

May import: native.*, runtime, runtime.exchange, runtime.hardware, runtime.model,
    runtime.model.checkpoints, runtime.options, runtime.plan, runtime.plugins,
    runtime.predictors, runtime.profiles, runtime.weights
"""
