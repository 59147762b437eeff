"""Measurements that launch actors: chaos, hops between actors, decoding on a GPU.

What measures without Ray is in `hotcold.runtime.bench`.

May import: actors, actors.cluster, actors.engine, native, native.gpu, runtime.*
"""
