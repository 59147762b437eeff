"""What happened when: spans, phases and timelines of passes.

May import: native.bindings, runtime.exchange, runtime.plan
"""
