"""Engine: what a driver does with an actor group, whether it launched it or connected.

The public class, its requests, statistics and replanning; actors themselves are in `group`.

May import: actors.cluster, actors.engine.transports, actors.group, actors.telemetry,
    native, native.bindings, native.options, runtime.*
"""
