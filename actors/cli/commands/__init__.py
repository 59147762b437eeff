"""Commands of one file each: generate, solve, roofline, doctor, submit and the like.

A command reads options, calls one function of the library and prints what it returns.

May import: actors, actors.bench, actors.cli.common, actors.cluster, actors.engine, actors.jobs,
    actors.serve, actors.telemetry, native, native.abi, native.options, runtime.*
"""
