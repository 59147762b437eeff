"""Measurements that launch actors: chaos, hops between actors, decoding on a GPU."""
