"""Executors: one class for what an actor does on a device; factory.py chooses.

base.py has what all share, leading.py the requests, host.py and cuda.py the classes. May import
runtime and native.
"""
