"""Ready files to start a policy from, printed by `hotcold policies --template KIND`.

Each is a module of its own that runs as it is, so that it is type-checked and tested like the rest.

May import: policies, runtime.predictors, runtime.profiles
"""
