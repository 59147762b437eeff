"""The actors of one engine as a group: launch, watch, replace, end.

What an actor computes is in `hotcold.runtime.engine`; here is what makes it a Ray actor.

May import: actors.cluster, actors.telemetry, native.*, runtime.*
"""
