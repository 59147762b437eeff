"""Messages made into what people look at: rates, shares and loads, over the last two seconds.

Counters only rise while an actor runs an epoch; a new process or epoch begins a new measurement.
Shown by `hotcold watch` and, through the server, by its page.
"""

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from hotcold.native.abi.names import OPS
from hotcold.runtime.engine.audit import RecallEstimate
from hotcold.runtime.telemetry.message import Active, LayerLoad, Report

WINDOW_S = 2.0
SILENT_S = 3.0  # an actor that has said nothing for so long is not shown as running


class ActorView:
    """One actor's last messages."""

    def __init__(self) -> None:
        self.reports: deque[tuple[float, Report]] = deque()

    def add(self, at_s: float, report: Report) -> None:
        """Take a message; what is of another process or epoch is forgotten."""
        last = self.last
        if last is not None and (last.pid, last.epoch) != (report.pid, report.epoch):
            self.reports.clear()
        self.reports.append((at_s, report))
        # One message older than the window stays, so that rates have a whole window.
        while len(self.reports) > 2 and self.reports[1][0] <= at_s - WINDOW_S:
            self.reports.popleft()

    @property
    def last(self) -> Report | None:
        """The newest message."""
        return self.reports[-1][1] if self.reports else None

    @property
    def _ends(self) -> tuple[Report, Report, float]:
        first, last = self.reports[0][1], self.reports[-1][1]
        return first, last, (last.time_ns - first.time_ns) / 1e9

    def rate(self, counter: str) -> float:
        """A counter's growth a second."""
        first, last, seconds = self._ends
        more = last.counters.get(counter, 0) - first.counters.get(counter, 0)
        return more / seconds if seconds > 0 else 0.0

    def request_rate(self, count: str) -> float:
        """The same of a count of requests."""
        first, last, seconds = self._ends
        more = (last.requests or {}).get(count, 0) - (first.requests or {}).get(count, 0)
        return more / seconds if seconds > 0 else 0.0

    def by_op_us(self) -> dict[str, float]:
        """Microseconds a pass that each operation took, by the spans of the window."""
        spans = np.concatenate([report.spans for _, report in self.reports])
        passes = len(np.unique(spans["seq"]))
        if not passes:
            return {}
        busy = (spans["end_ns"] - spans["ready_ns"]).astype(np.float64) / 1e3
        return {
            OPS[op]: float(busy[spans["op"] == op].sum()) / passes
            for op in np.unique(spans["op"])
            if 0 <= op < len(OPS)
        }


class LiveView:
    """What an engine does now, made of its actors' messages; not thread-safe."""

    def __init__(self) -> None:
        self._forget("")

    def _forget(self, engine: str) -> None:
        self.engine = engine
        self.actors: dict[str, ActorView] = {}
        self.layers: tuple[LayerLoad, ...] = ()
        self.active: dict[int, Active] = {}

    def add(self, report: Report, at_s: float | None = None) -> None:
        """Take a message; of another engine: forget the one before."""
        at_s = time.monotonic() if at_s is None else at_s
        if report.engine != self.engine:
            self._forget(report.engine)
        self.actors.setdefault(report.actor, ActorView()).add(at_s, report)
        if report.about is not None:
            if len(report.layers) != len(self.layers):
                self.layers, self.active = (), {}
            self.layers = _newest(self.layers, report.layers)
            self.active |= {one.layer: one for one in report.active}

    @property
    def leader(self) -> Report | None:
        """The newest message of the actor that leads."""
        view = self._leading
        return None if view is None else view.last

    @property
    def _leading(self) -> ActorView | None:
        views = (v for v in self.actors.values() if v.reports[-1][1].about is not None)
        return next(views, None)

    def _executors(self, kind: str) -> list[ActorView]:
        """Those heard of a kind, "gpu" or "cpu"."""
        lead = self.leader
        named = (lead.about or {}).get(f"{kind}_executors", []) if lead is not None else []
        return [self.actors[name] for name in named if name in self.actors]

    @property
    def is_silent(self) -> bool:
        """Whether nothing has been heard for a while."""
        newest = max((view.reports[-1][0] for view in self.actors.values()), default=0.0)
        return time.monotonic() - newest > SILENT_S

    def snapshot(self, at_s: float | None = None) -> dict[str, Any]:
        """Everything as plain data for JSON; seconds, tokens and bytes a second, shares."""
        at_s = time.monotonic() if at_s is None else at_s
        lead = self.leader
        newest = max((view.reports[-1][0] for view in self.actors.values()), default=0.0)
        made: dict[str, Any] = {
            "engine": self.engine,
            "silent_s": round(max(0.0, at_s - newest), 3),
            "epoch": max((view.reports[-1][1].epoch for view in self.actors.values()), default=0),
            "about": dict(lead.about or {}) if lead is not None else {},
            "requests": dict(lead.requests or {}) if lead is not None else {},
        }
        if lead is not None:
            view = self._leading
            assert view is not None
            made["tokens_per_s"] = view.request_rate("generation_tokens")
            made["prompt_tokens_per_s"] = view.request_rate("prompt_tokens")
            made["passes_per_s"] = view.rate("passes")
        made["actors"] = {actor: self._actor(view, at_s) for actor, view in self.actors.items()}
        made["gpu_neuron_load"] = self._load()
        made["recall"] = self._recall()
        made["is_exact"] = all(one.is_exact for one in self.active.values())
        made["layers"] = [
            {"owned": list(one.owned), "listed": list(one.listed), "pass": one.seq}
            for one in self.layers
        ]
        return made

    def _actor(self, view: ActorView, at_s: float) -> dict[str, Any]:
        at, last = view.reports[-1]
        return {
            "role": last.role,
            "pid": last.pid,
            "is_heard": at_s - at < SILENT_S,
            "busy": view.rate("busy_ns") / 1e9,
            "wait": view.rate("wait_ns") / 1e9,
            "gb_per_s": view.rate("bytes") / 1e9,
            "neurons_per_s": view.rate("up_down_rows"),
            "by_op_us": view.by_op_us(),
        }

    def _load(self) -> float | None:
        """Share of the activated neurons on the GPU: of the window, else of the whole plan."""
        of_gpus, of_cpus = self._executors("gpu"), self._executors("cpu")
        if not of_gpus or not of_cpus:
            return None
        gpu, cpu = (sum(x.rate("up_down_rows") for x in views) for views in (of_gpus, of_cpus))
        if gpu + cpu <= 0:
            gpu, cpu = (
                sum(x.reports[-1][1].counters.get("up_down_rows", 0) for x in views)
                for views in (of_gpus, of_cpus)
            )
        return gpu / (gpu + cpu) if gpu + cpu else None

    def _recall(self) -> dict[str, float] | None:
        lead = self.leader
        every = (lead.about or {}).get("audit_every", 0) if lead is not None else 0
        if not every:
            return None
        counters: list[Mapping[str, int]] = [
            view.reports[-1][1].counters
            for kind in ("gpu", "cpu")
            for view in self._executors(kind)
        ]
        fired = sum(own.get("up_down_rows", 0) for own in counters)
        missed = sum(own.get("audit_missed", 0) for own in counters)
        found = RecallEstimate(fired, missed, every)
        return {"recall": found.recall, "error": found.standard_error} if fired else None


def _newest(old: tuple[LayerLoad, ...], new: tuple[LayerLoad, ...]) -> tuple[LayerLoad, ...]:
    """A layer whose list was just being written keeps what was seen of it before."""
    if len(old) != len(new):
        return new
    return tuple(
        was if not now.seq and was.seq and was.owned == now.owned else now
        for was, now in zip(old, new, strict=True)
    )
