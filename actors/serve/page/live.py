"""What /live sends: the live view, and where in each layer neurons are active, hottest first.

A thread follows the engine while pages are open. It runs in the server's process and asks the
actors nothing after the first messages, but for the plan, once for each.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayError

from hotcold.actors.cluster import ray_cluster as cluster
from hotcold.actors.telemetry.following import (
    ASK_S,
    LEADER,
    Follower,
    addresses_of,
    running_names,
)
from hotcold.native.errors import ConfigError, HotcoldError
from hotcold.runtime.engine.deployment import Deployment
from hotcold.runtime.telemetry.live import LiveView
from hotcold.runtime.telemetry.message import Active

CELLS = 96  # of a layer's row
MAX_IDS = 64  # named of each device in the layer that is looked at
AGAIN_S = 2.0  # until a thread that found no engine looks again


class Order:
    """Neurons of each layer by device, each device's hottest first: the places of a row.

    `order_LN`: by neuron, its place.
    """

    def __init__(self, deployment: Deployment) -> None:
        plan, profile = deployment.computed_plan, deployment.profile
        self.hash = deployment.plan.hash
        heat_LN = np.zeros(plan.shape) if profile is None else profile.probabilities_LN
        by_place_LN = np.lexsort((-heat_LN, plan.device_LN), axis=-1)
        self.order_LN = np.empty(plan.shape, np.int32)
        np.put_along_axis(
            self.order_LN, by_place_LN, np.arange(plan.shape[1], dtype=np.int32)[None], axis=-1
        )

    def cells(self, active: Active) -> list[list[int] | None]:
        """By device, how many neurons of each of CELLS stretches are active."""
        n = self.order_LN.shape[1]
        return [
            None
            if ids is None
            else np.bincount(self._places(active.layer, ids) * CELLS // n, minlength=CELLS).tolist()
            for ids in active.ids
        ]

    def named(self, active: Active) -> list[list[int] | None]:
        """By device, the neurons themselves, hottest first, MAX_IDS at most."""
        return [
            None
            if ids is None
            else ids[np.argsort(self._places(active.layer, ids))][:MAX_IDS].tolist()
            for ids in active.ids
        ]

    def _places(self, layer: int, ids: NDArray[np.int32]) -> NDArray[np.int64]:
        n = self.order_LN.shape[1]
        places: NDArray[np.int64] = self.order_LN[layer, np.clip(ids, 0, n - 1)].astype(np.int64)
        return places


class Hub:
    """Follows one engine for all pages.

    `name` is the engine's, or what the names of a server's replicas begin with, of which the first
    is followed; None: the first engine of the cluster.

    Attributes:
        clients: pages that are open.
        number: rises with every change.
    """

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.clients = self.number = 0
        self._view: LiveView | None = None
        self._error = "looking for the engine"
        self._order: Order | None = None

    @contextmanager
    def client(self) -> Iterator[None]:
        """A page is open."""
        with self._lock:
            self.clients += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="hotcold-live", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self.clients -= 1

    def _is_over(self) -> bool:
        with self._lock:
            if not self.clients:
                self._thread = None
            return self._thread is None

    def _run(self) -> None:
        while not self._is_over():
            try:
                names = self._names()
                if not names:
                    raise ConfigError("the engine does not run, or not yet")
                self._follow(names[0])
            except (HotcoldError, RayError, ValueError) as error:
                self._say(str(error).splitlines()[0] if str(error) else type(error).__name__)
            deadline = time.monotonic() + AGAIN_S
            while self.clients and time.monotonic() < deadline:
                time.sleep(0.05)

    def _names(self) -> list[str]:
        """Engines that may be followed: of that name, or replicas of it."""
        wanted = self._name
        if not ray.is_initialized():  # else Ray would start
            raise ConfigError("this server is in no Ray cluster")
        return [
            name
            for name in running_names()
            if wanted is None or name == wanted or name.startswith(f"{wanted}-")
        ]

    def _say(self, error: str) -> None:
        with self._lock:
            self._view, self._error = None, error
            self.number += 1

    def _follow(self, name: str) -> None:
        """Until no page is open, or the engine is gone."""
        with Follower(lambda: addresses_of(name)) as follower:
            while self.clients:
                with self._lock:
                    self._view = follower.view
                heard = follower.update(0.15, self._lock)
                lead = follower.view.leader
                plan = (lead.about or {}).get("plan") if lead is not None else None
                if plan and (self._order is None or self._order.hash != plan):
                    actor = ray.get_actor(f"{name}-{LEADER}", namespace=cluster.NAMESPACE)
                    order = Order(ray.get(actor.describe.remote(), timeout=ASK_S))
                    with self._lock:
                        self._order = order
                if follower.view.is_silent and not heard:
                    if name not in self._names():
                        return
                    time.sleep(AGAIN_S / 4)
                with self._lock:
                    self.number += 1

    def seen(self, layer: int) -> dict[str, Any]:
        """Everything for a page that looks at this layer.

        Raises:
            ConfigError: nothing is known of the engine yet.
        """
        with self._lock:
            view, order = self._view, self._order
            if view is None:
                raise ConfigError(self._error)
            made, active = view.snapshot(), dict(view.active)
        plan = made["about"].get("plan")
        made["n_cells"] = CELLS
        if order is not None and order.hash == plan:
            made["active"] = {number: order.cells(one) for number, one in active.items()}
            if layer in active:
                ids = order.named(active[layer])
                made["looked_at"] = {"layer": layer, "pass": active[layer].seq, "ids": ids}
        return made
