"""Reports as an engine would send them, and a publisher of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from hotcold.native.abi.generated import SPAN, Op
from hotcold.runtime.exchange.segment import ActorState
from hotcold.runtime.telemetry.message import Active, LayerLoad, Report
from hotcold.runtime.telemetry.sockets import Publisher

NO_COUNTS = asdict(ActorState(*(0,) * 10))
ABOUT = {
    **{"model": "tiny", "policy": "greedy", "plan": "f" * 64, "schedule": "selective"},
    **{
        "transport": "native",
        "devices": ["gpu0", "cpu0"],
        "gpu_executors": ["gpu"],
        "cpu_executors": ["cpu"],
        "on_gpu": 0,
        "audit_every": 256,
    },
    **{"sequences": 2, "context": 64, "n_layers": 2, "n_neurons": 64},
}
REQUESTS = {"running": 1, "waiting": 2, "finished": 7, "prompt_tokens": 9, "losses": 3}


def spans(seq: int = 1) -> Any:
    made = np.zeros(2, SPAN)
    made["seq"], made["op"] = seq, (Op.ATTENTION, Op.HOT)
    made["begin_ns"], made["ready_ns"], made["end_ns"] = 0, 1_000, 5_000
    return made


def report(actor: str = "gpu", number: int = 0, tokens: int = 40, **more: Any) -> Report:
    """One message; times are 100 ms apart, and counters grow with the number."""
    counters = {**NO_COUNTS, "up_down_rows": 100 * (number + 1), "bytes": 10**8 * number}
    counters |= {"busy_ns": 50_000_000 * number, "wait_ns": 20_000_000 * number, "passes": number}
    made = Report(
        *("lab", actor, "a role", 77, 1, number, 100_000_000 * number, 0.1 * number),
        *(counters, spans(number + 1), 0),
    )
    if actor == "gpu":
        ids = (np.array([1, 5, 9], np.int32), np.array([2, 3], np.int32))
        made = replace(
            made,
            about=ABOUT,
            requests={**REQUESTS, "generation_tokens": tokens},
            layers=(LayerLoad((16, 48), (3, 2), 12, 1), LayerLoad((0, 64), (0, None), 0, 0)),
            active=(Active(0, 12, True, ids),),
        )
    return replace(made, **more)


@contextmanager
def published() -> Iterator[str]:
    """The address of an engine that makes a token every 100 ms."""
    numbers = iter(range(1 << 30))

    def collect() -> Iterator[Report]:
        number = next(numbers)
        for actor in ("gpu", "cpu", "predictor"):
            yield report(actor, number, tokens=number)

    publisher = Publisher(collect)
    try:
        yield publisher.address
    finally:
        publisher.close()
