"""Transports: how a driver's requests reach the executors, one class each; factory.py chooses.

May import actors/cluster, runtime and native; knows neither the actor group nor recoveries.
"""
