"""Built-in placement policies, one a file; each says what it ignores.

A policy is data in, data out: a Problem becomes a Placement. Registered in pyproject.toml.

May import: native, policies.solvers, runtime.files, runtime.plan,
runtime.predictors
"""
