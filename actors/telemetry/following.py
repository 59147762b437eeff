"""Following an engine: its addresses, asked for again where it falls silent, and its live view."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import list_named_actors

from hotcold.actors.cluster import ray_cluster as cluster
from hotcold.native.errors import ConfigError, HotcoldError
from hotcold.runtime.telemetry.live import LiveView
from hotcold.runtime.telemetry.sockets import Subscriber
from hotcold.runtime.topology import CLASSIC

ASK_AGAIN_S = 1.0
LEADER = CLASSIC.leader.actor
ASK_S = 5.0


class Follower:
    """A subscriber, and the view that its messages make; not thread-safe. A context manager.

    `addresses` says where to listen; asked again after silence, since an actor that was replaced
    publishes at another port.

    Raises:
        HotcoldError: what `addresses` raises the first time.
    """

    def __init__(self, addresses: Callable[[], Sequence[str]]) -> None:
        self._addresses = addresses
        self.view = LiveView()
        self._subscriber = Subscriber(addresses())
        self._heard_s = time.monotonic()

    def update(self, seconds: float, lock: AbstractContextManager[object] | None = None) -> bool:
        """Take messages for so long; whether there was one. `lock` is held to change the view."""
        deadline, heard = time.monotonic() + seconds, False
        while (left := deadline - time.monotonic()) > 0:
            report = self._subscriber.receive(left)
            if report is not None:
                with lock or nullcontext():
                    self.view.add(report)
                self._heard_s, heard = time.monotonic(), True
        if time.monotonic() - self._heard_s > ASK_AGAIN_S:
            self._heard_s = time.monotonic()
            with suppress(HotcoldError, RayError, ValueError):
                self._subscriber.follow(self._addresses())
        return heard

    def close(self) -> None:
        """Close the socket."""
        self._subscriber.close()

    def __enter__(self) -> "Follower":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def running_names() -> list[str]:
    """Engines of the Ray cluster that this process is in."""
    actors = [
        one["name"]
        for one in list_named_actors(all_namespaces=True)
        if one["namespace"] == cluster.NAMESPACE
    ]
    end = f"-{LEADER}"
    return sorted(name.removesuffix(end) for name in actors if name.endswith(end))


def addresses_of(name: str) -> list[str]:
    """Where an engine's actors publish.

    Raises:
        ConfigError: there is no such engine in this cluster; its actors cannot publish.
    """
    try:
        return publishers(lambda actor: ray.get_actor(f"{name}-{actor}", cluster.NAMESPACE))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, HotcoldError):
            raise error.cause from None
        raise
    except ValueError as error:
        there = ", ".join(running_names()) or "none"
        raise ConfigError(
            f"no engine named {name!r} in this Ray cluster; it has {there}"
        ) from error
    except RayError as error:
        raise ConfigError(f"the engine {name!r} does not answer; is it starting?") from error


def publishers(actor: Callable[[str], Any]) -> list[str]:
    """Addresses of an engine's publishers, its actors given by name; raises what Ray does."""
    first = actor(LEADER)
    (leader, told), deployment = ray.get(
        [first.telemetry.remote(), first.describe.remote()], timeout=ASK_S
    )
    all_ = deployment.topology.actors
    others = [actor(one).telemetry.remote() for one in all_ if one not in told]
    return [leader, *(address for address, _ in ray.get(others, timeout=ASK_S))]
