"""What happened when: spans, phases and timelines of passes.

May import: native.abi, runtime, runtime.exchange, runtime.plan
"""
