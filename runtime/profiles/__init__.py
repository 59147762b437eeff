"""Activation profiles: how often each neuron fires, and the files that say so.

Made by `offline.profiling`, read by planning.

May import: native, runtime.files, runtime.model
"""
