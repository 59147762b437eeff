"""Telemetry: what a running engine does, as messages that others can follow.

Read from the exchange's shared memory beside the loops, never in them. The format is in
`message.py`, and in examples/WATCHING.md for readers in other languages.

May import: native, native.abi, runtime.engine, runtime.exchange, runtime.tracing
"""
