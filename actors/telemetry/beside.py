"""Beside an actor's loop: two threads that read its segment, for listeners and for Prometheus.

The first begins with the first listener. Both let go of a segment before it is closed.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

from hotcold.actors.telemetry.metrics import EVERY_S, Metrics
from hotcold.actors.telemetry.requests import RequestCounts
from hotcold.runtime.engine.deployment import Deployment
from hotcold.runtime.engine.executors.factory import roles
from hotcold.runtime.exchange.segment import Segment
from hotcold.runtime.telemetry.message import Report
from hotcold.runtime.telemetry.reader import SegmentReader
from hotcold.runtime.telemetry.sockets import LOOPBACK, NICE, Publisher


class Telemetry:
    """What one actor tells of its engine: all actors where it leads and memory is shared.

    Attributes:
        requests: those that this actor serves.
    """

    def __init__(self, actor: str) -> None:
        self.requests = RequestCounts()
        self._actor, self._engine, self._leads = actor, "", False
        self._lock = threading.Lock()
        self._reader: SegmentReader | None = None
        self._about: dict[str, Any] = {}
        self._roles: dict[str, str] = {}
        self._epoch = self._number = self._losses = 0
        self._publisher: Publisher | None = None
        self._metrics: threading.Thread | None = None

    def load(self, segment: Segment, deployment: Deployment, losses: int) -> None:
        """Read this segment from now on.

        Raises:
            ConfigError: the address that the engine is to publish at cannot be used.
        """
        self._leads = self._actor == deployment.topology.leader.actor
        if not self._leads and deployment.shares_memory:
            return
        if not self._engine:
            name = ray.get_runtime_context().get_actor_name() or self._actor
            self._engine = name.removesuffix(f"-{self._actor}")
        with self._lock:
            told = deployment.topology.actors if deployment.shares_memory else (self._actor,)
            self._reader = SegmentReader(segment, deployment, told)
            self._epoch, self._losses = segment.epoch, losses
            self._roles, self._about = roles(deployment), _about(deployment)
        if self._leads and deployment.config is not None and deployment.config.telemetry:
            self.address(deployment.config.telemetry)
        if self._metrics is None:
            self._metrics = threading.Thread(
                target=self._record, name="hotcold-metrics", daemon=True
            )
            self._metrics.start()

    def unload(self) -> None:
        """Let go of the segment."""
        with self._lock:
            self._reader = None

    @property
    def actors(self) -> tuple[str, ...]:
        """Those that this one tells of."""
        reader = self._reader
        return () if reader is None else reader.actors

    def address(self, wanted: str = LOOPBACK) -> str:
        """Where this actor publishes, from the first call on.

        Raises:
            ConfigError: an address that cannot be used; pyzmq or msgpack are missing.
        """
        with self._lock:
            if self._publisher is None:
                self._publisher = Publisher(self._collect, wanted)
            return self._publisher.address

    def _collect(self) -> Iterator[Report]:
        with self._lock:
            reader = self._reader
            if reader is None:
                return
            now_ns, now_s = time.monotonic_ns(), time.time()
            for actor in reader.actors:
                counters, (spans, lost) = reader.counters(actor), reader.spans(actor)
                leading: dict[str, Any] = {}
                if self._leads and actor == self._actor:
                    layers, active = reader.layers()
                    leading = {
                        "about": self._about,
                        "requests": self._requests_now(),
                        "layers": tuple(layers),
                        "active": tuple(active),
                    }
                yield Report(
                    engine=self._engine,
                    actor=actor,
                    role=self._roles[actor],
                    pid=os.getpid(),
                    epoch=self._epoch,
                    number=self._number,
                    time_ns=now_ns,
                    unix_s=now_s,
                    counters=counters,
                    spans=spans,
                    spans_lost=lost,
                    **leading,
                )
            self._number += 1

    def _requests_now(self) -> dict[str, int]:
        return {**self.requests.counts(self._about["sequences"]), "losses": self._losses}

    def _record(self) -> None:
        """Once a second, for as long as the process lives."""
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        metrics = Metrics(self._engine)
        while True:
            time.sleep(EVERY_S)
            with self._lock:
                if self._reader is None:
                    continue
                counters = {actor: self._reader.counters(actor) for actor in self._reader.actors}
                about, losses = self._about, self._losses
            metrics.record_actors(counters, losses, about)
            if self._leads:
                metrics.record_requests(self.requests, about["sequences"])


def _about(deployment: Deployment) -> dict[str, Any]:
    """What runs, in words and numbers."""
    plan, config = deployment.plan, deployment.config
    model = config.model if config is not None else deployment.bundle_path
    return {
        "model": Path(model).name if model else "embedded",
        "policy": plan.policy,
        "plan": plan.hash,
        "schedule": deployment.schedule,
        "transport": deployment.transport,
        "devices": list(plan.devices),
        "gpu_executors": [one.actor for one in deployment.topology.executors if one.on_gpu],
        "cpu_executors": [one.actor for one in deployment.topology.executors if not one.on_gpu],
        "on_gpu": int(deployment.gpu is not None),
        "audit_every": deployment.audit_every,
        "sequences": deployment.sequences,
        "context": deployment.context,
        "n_layers": plan.shape[0],
        "n_neurons": plan.shape[1],
    }
