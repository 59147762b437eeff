"""Which class a deployment's transport is."""

from collections.abc import Callable
from typing import Any

from hotcold.actors.engine.transports.base import Transport
from hotcold.actors.engine.transports.native import NativeTransport
from hotcold.actors.engine.transports.ray_calls import RayTransport
from hotcold.runtime.engine.deployment import Deployment

CLASSES: dict[str, type[Transport]] = {made.name: made for made in (NativeTransport, RayTransport)}


def make_transport(deployment: Deployment, actor: Callable[[str], Any]) -> Transport:
    """The transport of a deployment.

    Args:
        deployment: what the actors have loaded.
        actor: handle of an actor, by name.
    """
    return CLASSES[deployment.transport](deployment, actor)
