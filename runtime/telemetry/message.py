"""The format of telemetry: one msgpack map for each actor and interval, checked when it is read.

A message has two frames: the topic `hotcold.ACTOR`, and the map. Version 1 has these keys, the last
four only in messages of the actor that leads:

    v           1
    engine, actor, role; pid: of the process that publishes
    epoch       of the exchange: rises by one with every new plan and every recovery
    number      of this publisher's messages, from 0
    time_ns     CLOCK_MONOTONIC of the engine's machine; unix_s: the same moment, seconds
    counters    by name, those of the exchange's hc_actor_state (native/abi/hotcold.h)
    spans       of new steps, oldest first: 32 bytes each, little-endian, hc_span of the same file
    spans_lost  new steps that are left out: MAX_SPANS a message, the newest
    about       what runs: model, policy, plan, schedule, transport, devices, audit_every, ...
    requests    running, waiting, finished, prompt_tokens, generation_tokens, losses: since the
                actor began
    layers      by layer: [owned, listed, pass, rows], counts by device; listed: active neurons of
                that pass's rows, None where no list is to be seen
    active      of some layers: [layer, pass, exact, ids by device], ids as int32, little-endian, or
                None; exact: they are those that fire, else those that the predictor proposed

Messages come from sockets that anyone may write to, so whatever does not fit is refused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.generated import SPAN
from hotcold.native.errors import ConfigError

VERSION = 1
TOPIC = b"hotcold."
MAX_BYTES = 4 << 20
MAX_SPANS = 2048
MAX_IDS = 16384  # of all layers of a message; further layers come in the next ones
_LIMITS = {"max_str_len": 4096, "max_bin_len": 1 << 20, "max_array_len": 8192, "max_map_len": 256}


class MessageError(ConfigError):
    """Bytes that are no telemetry of this version."""


@dataclass(frozen=True)
class LayerLoad:
    """One layer: neurons by device, and those active in the pass that was looked at."""

    owned: tuple[int, ...]
    listed: tuple[int | None, ...]
    seq: int
    rows: int


@dataclass(frozen=True)
class Active:
    """Active neurons of one layer in one pass, by device; None where no list is to be seen.

    is_exact: they are those that fire, else those that the predictor proposed.
    """

    layer: int
    seq: int
    is_exact: bool
    ids: tuple[NDArray[np.int32] | None, ...]


@dataclass(frozen=True)
class Report:
    """One message, as the module's docstring names its keys."""

    engine: str
    actor: str
    role: str
    pid: int
    epoch: int
    number: int
    time_ns: int
    unix_s: float
    counters: Mapping[str, int]
    spans: NDArray[np.void]
    spans_lost: int
    about: Mapping[str, Any] | None = None
    requests: Mapping[str, int] | None = None
    layers: tuple[LayerLoad, ...] = ()
    active: tuple[Active, ...] = ()


def codec() -> Any:
    """The module msgpack.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import msgpack
    except ImportError:
        raise ConfigError("telemetry needs msgpack; pip install 'hotcold[watch]'") from None
    return msgpack


def encode(report: Report) -> bytes:
    """A report as bytes."""
    data = {one.name: getattr(report, one.name) for one in fields(report)}
    data |= {"v": VERSION, "spans": report.spans.tobytes()}
    if report.about is None:
        for name in ("about", "requests", "layers", "active"):
            del data[name]
    else:
        data["layers"] = [[one.owned, one.listed, one.seq, one.rows] for one in report.layers]
        data["active"] = [
            [
                *(one.layer, one.seq, one.is_exact),
                [None if ids is None else ids.astype("<i4").tobytes() for ids in one.ids],
            ]
            for one in report.active
        ]
    packed: bytes = codec().packb(data)
    return packed


def decode(data: bytes) -> Report:
    """A report out of bytes that anyone may have sent.

    Raises:
        MessageError: they are none.
    """
    if len(data) > MAX_BYTES:
        raise MessageError(f"a message of {len(data)} bytes, at most {MAX_BYTES} are read")
    msgpack = codec()
    try:
        return _report(msgpack.unpackb(data, max_ext_len=0, **_LIMITS))
    except MessageError:
        raise
    except Exception as error:  # noqa: BLE001 - the sender chose what goes wrong
        raise MessageError(f"a message that cannot be read: {type(error).__name__}") from None


def _report(data: Any) -> Report:
    if not isinstance(data, dict) or data.get("v") != VERSION:
        raise MessageError(f"a message that is not of version {VERSION}")
    texts = {name: _of(data[name], str) for name in ("engine", "actor", "role")}
    names = ("pid", "epoch", "number", "time_ns", "spans_lost")
    numbers = {name: _count(data[name]) for name in names}
    made: dict[str, Any] = {**texts, **numbers, "unix_s": _of(data["unix_s"], float)}
    made["counters"] = _map(data["counters"], _count)
    made["spans"] = np.frombuffer(_of(data["spans"], bytes), SPAN)
    if "about" in data:
        made["about"] = _map(data["about"], _plain)
        made["requests"] = _map(data["requests"], _count)
        made["layers"] = tuple(
            LayerLoad(
                tuple(map(_count, owned)),
                tuple(None if n is None else _count(n) for n in listed),
                *(_count(seq), _count(rows)),
            )
            for owned, listed, seq, rows in _of(data["layers"], list)
        )
        made["active"] = tuple(
            Active(
                *(_count(layer), _count(seq), _of(exact, bool)),
                tuple(
                    None if one is None else np.frombuffer(_of(one, bytes), "<i4") for one in ids
                ),
            )
            for layer, seq, exact, ids in _of(data["active"], list)
        )
        if any(one.layer >= len(made["layers"]) for one in made["active"]):
            raise MessageError("a message with a layer that there is not")
    return Report(**made)


def _of(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise MessageError(f"a message with {type(value).__name__} in place of {kind.__name__}")
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise MessageError("a message with a count that is none")
    return value


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, int, float)):
        return value
    return [_of(item, str) for item in _of(value, list)]


def _map(value: Any, item: Callable[[Any], Any]) -> dict[str, Any]:
    return {_of(key, str): item(one) for key, one in _of(value, dict).items()}
