"""Serve: an engine behind the OpenAI API, over HTTP. Needs hotcold[serve].

The command's own process speaks HTTP (app.py, under uvicorn) and holds the queue; a deployment of
Ray Serve owns the engine, one a replica (replicas.py). The app also runs on an `Engine` alone.

May import: actors.cluster, actors.engine, actors.serve.page, native, native.abi, native.options,
    runtime.*
"""
