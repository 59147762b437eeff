"""Solvers that placement policies share: packing, prefixes, cost curves, HiGHS.

Arrays in, arrays out; no policy and no engine.

May import: native, runtime.plan
"""
