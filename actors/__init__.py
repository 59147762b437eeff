"""Run hotcold: an engine of three Ray actors, and what it reports.

All Ray code lies in this folder, and it is thin: what an actor does is in `hotcold.runtime`. Names
are imported when they are used, so that `hotcold --help` costs no Ray.

May import: actors.engine, native, runtime.text
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hotcold.actors.engine.engine import Engine
    from hotcold.actors.engine.many import Completion
    from hotcold.actors.engine.stats import ActorStats, EngineStats
    from hotcold.native.errors import ActorLostError, HotcoldError, LaunchError
    from hotcold.runtime.text.generation import GenerationStats, Token

_WHERE = {
    "ActorLostError": "hotcold.native.errors",
    "ActorStats": "hotcold.actors.engine.stats",
    "Completion": "hotcold.actors.engine.many",
    "Engine": "hotcold.actors.engine.engine",
    "EngineStats": "hotcold.actors.engine.stats",
    "GenerationStats": "hotcold.runtime.text.generation",
    "HotcoldError": "hotcold.native.errors",
    "LaunchError": "hotcold.native.errors",
    "Token": "hotcold.runtime.text.generation",
}
__all__ = [
    "ActorLostError",
    "ActorStats",
    "Completion",
    "Engine",
    "EngineStats",
    "GenerationStats",
    "HotcoldError",
    "LaunchError",
    "Token",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
