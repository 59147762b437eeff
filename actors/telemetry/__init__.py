"""What an actor tells of itself: telemetry over ZeroMQ, metrics for Prometheus, a Grafana page.

Threads beside the loop that read shared memory. Following an engine from outside is here too.

May import: actors.cluster, native, native.bindings, runtime.*
"""
