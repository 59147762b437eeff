"""Metrics for Prometheus, by `ray.util.metrics`, which every Ray node exports.

Names are those that servers of language models share (vLLM's, with hotcold_ before them); Ray puts
ray_ in front. Recording costs some microseconds and happens in a thread of its own.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from hotcold.actors.telemetry.requests import RequestCounts
from hotcold.runtime.engine.audit import RecallEstimate

EVERY_S = 1.0
_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
_LONG = (*_SECONDS[3:], 20.0, 40.0, 80.0, 160.0, 640.0)
HISTOGRAMS = {
    "hotcold_time_to_first_token_seconds": ("From a request's arrival to its first token.", _LONG),
    "hotcold_inter_token_latency_seconds": ("Between two tokens of a request.", _SECONDS),
    "hotcold_e2e_request_latency_seconds": ("From a request's arrival to its last token.", _LONG),
}
GAUGES = {
    "hotcold_num_requests_running": "Requests being decoded.",
    "hotcold_num_requests_waiting": "Requests that wait for a slot.",
    "hotcold_recoveries": "Losses of actors that the engine recovered from.",
    "hotcold_predictor_recall": "Recall of the predictor, by the audit, since the plan began.",
    "hotcold_gpu_neuron_load": "Share of the activated neurons that the GPU executor computed.",
}
COUNTERS = {
    "hotcold_requests_total": "Requests finished.",
    "hotcold_prompt_tokens_total": "Prompt tokens computed.",
    "hotcold_generation_tokens_total": "Tokens generated.",
}
ACTOR_COUNTERS = {  # with a tag `actor`: the exchange's counter, its unit, what it is
    "hotcold_passes_total": ("passes", 1.0, "Passes an actor took part in."),
    "hotcold_read_bytes_total": ("bytes", 1.0, "Weight and KV bytes an actor read."),
    "hotcold_busy_seconds_total": ("busy_ns", 1e-9, "Time an actor computed."),
    "hotcold_wait_seconds_total": ("wait_ns", 1e-9, "Time an actor waited for others in passes."),
    "hotcold_activated_neurons_total": ("up_down_rows", 1.0, "Activated neurons computed."),
    "hotcold_audited_neurons_total": ("audit_rows", 1.0, "Neurons evaluated though not proposed."),
    "hotcold_missed_neurons_total": ("audit_missed", 1.0, "Those of them that would have fired."),
}


class Metrics:
    """Records one actor's view of its engine.

    Attributes:
        _before: by metric and actor, the value that was recorded last.
    """

    def __init__(self, engine: str) -> None:
        self._engine = {"engine": engine}
        self._before: dict[tuple[str, str], float] = {}
        tags = ("engine",)
        self._histograms: dict[str, Any] = {
            name: Histogram(name, text, boundaries=list(bounds), tag_keys=tags)
            for name, (text, bounds) in HISTOGRAMS.items()
        }
        self._gauges: dict[str, Any] = {n: Gauge(n, t, tags) for n, t in GAUGES.items()}
        self._counters: dict[str, Any] = {n: Counter(n, t, tags) for n, t in COUNTERS.items()}
        for name, (_, _, text) in ACTOR_COUNTERS.items():
            self._counters[name] = Counter(name, text, (*tags, "actor"))

    def record_requests(self, counts: RequestCounts, at_once: int) -> None:
        """Requests since the last time."""
        for name, kept in zip(
            HISTOGRAMS,
            (counts.first_token_s, counts.inter_token_s, counts.request_s),
            strict=True,
        ):
            for seconds in _taken(kept):
                self._histograms[name].observe(seconds, self._engine)
        now = counts.counts(at_once)
        for kind in ("running", "waiting"):
            self._gauges[f"hotcold_num_requests_{kind}"].set(now[kind], self._engine)
        self._count("hotcold_requests_total", now["finished"])
        self._count("hotcold_prompt_tokens_total", now["prompt_tokens"])
        self._count("hotcold_generation_tokens_total", now["generation_tokens"])

    def record_actors(
        self, counters: Mapping[str, Mapping[str, int]], losses: int, about: Mapping[str, Any]
    ) -> None:
        """Counters by actor, as an epoch has them; smaller than the last: a new epoch began."""
        neurons = {
            actor: self._count("hotcold_activated_neurons_total", own["up_down_rows"], actor)
            for actor, own in counters.items()
        }
        for name, (field, unit, _) in ACTOR_COUNTERS.items():
            for actor, own in counters.items():
                if field != "up_down_rows":
                    self._count(name, own[field] * unit, actor)
        if (total := sum(neurons.values())) and len(counters) > 1:
            on_gpus = sum(neurons[actor] for actor in about["gpu_executors"])
            self._gauges["hotcold_gpu_neuron_load"].set(on_gpus / total, self._engine)
        fired, missed = (
            sum(own[name] for own in counters.values()) for name in ("up_down_rows", "audit_missed")
        )
        if about["audit_every"] and fired:
            recall = RecallEstimate(fired, missed, about["audit_every"]).recall
            self._gauges["hotcold_predictor_recall"].set(recall, self._engine)
        self._gauges["hotcold_recoveries"].set(losses, self._engine)

    def _count(self, name: str, value: float, actor: str = "") -> float:
        before = self._before.get((name, actor), 0.0)
        self._before[name, actor] = value
        more = value - before if value >= before else value
        if more > 0:
            tags = {**self._engine, "actor": actor} if actor else self._engine
            self._counters[name].inc(more, tags)
        return more


def _taken(kept: deque[float]) -> list[float]:
    """All there is, taken out while others append."""
    return [kept.popleft() for _ in range(len(kept))]
