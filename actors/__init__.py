"""Run hotcold: an engine of three Ray actors, and what it reports.

Everything in this folder is Ray code, and thin: what an actor does is in `hotcold.runtime`.
"""

from hotcold.actors.engine.engine import Engine
from hotcold.actors.engine.stats import ActorStats, EngineStats
from hotcold.native.errors import ActorLostError, HotcoldError, LaunchError
from hotcold.runtime.text.generation import GenerationStats, Token

__all__ = [
    "ActorLostError",
    "ActorStats",
    "Engine",
    "EngineStats",
    "GenerationStats",
    "HotcoldError",
    "LaunchError",
    "Token",
]
