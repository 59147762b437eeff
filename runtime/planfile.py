"""A plan on disk: plan.json for people and diffs, plan.npz for the arrays.

Called by Plan.save and Plan.load. The JSON names the format's version and the plan's hash; both
files are replaced atomically, arrays first, so a pair that does not belong together is found by the
hash and refused, and a half-written one is never read.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hotcold.runtime.errors import CheckpointError, ConfigError
from hotcold.runtime.npz import pack, unpack, write_atomically
from hotcold.runtime.plan import Plan

VERSION = 2
_JSON_LIMIT = 2**24
_NEURON_LIMIT = 2**28  # neurons of a plan: 50 times the 175B model's
_ARRAYS = {"device_LN": "|i1", "neuron_bytes_L": "<i8", "activations_LN": "<f8"}
_TEXTS = ("policy", "model", "dtype", "note")
_NUMBERS = ("context", "batch")


def save_plan(plan: Plan, folder: Path) -> None:
    """Write the two files; see Plan.save."""
    header: dict[str, Any] = {"format": "hotcold plan", "version": VERSION, "hash": plan.hash}
    header |= {name: getattr(plan, name) for name in (*_TEXTS, *_NUMBERS)}
    header |= {name: dict(getattr(plan, name)) for name in _TABLES}
    header["figures"] = dict(plan.figures)
    header |= {"shape": plan.shape, "devices": plan.devices}
    header["bytes"] = plan.bytes_by_device  # for readers; recomputed on load
    header["gpu_activation_share"] = plan.gpu_activation_share
    arrays = {name: getattr(plan, name).astype(dtype) for name, dtype in _ARRAYS.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "plan.npz", pack(arrays))
        text = json.dumps(header, indent=2) + "\n"
        write_atomically(folder / "plan.json", text.encode())
    except OSError as error:
        raise ConfigError(f"cannot write a plan to {folder}: {error.strerror or error}") from error


def load_plan(folder: Path) -> Plan:
    """Read the two files; see Plan.load."""
    header = _read_header(folder)
    try:
        arrays = _read_arrays(folder, tuple(header["shape"]))
        plan = Plan(
            **{name: header[name] for name in (*_TEXTS, *_NUMBERS, *_TABLES)},
            **arrays,
            devices=tuple(header["devices"]),
            figures=header["figures"],
        )
    except (ValueError, OSError) as error:
        raise CheckpointError(f"the plan in {folder} cannot be read: {error}") from error
    if plan.hash != header["hash"]:
        raise CheckpointError(
            f"the plan in {folder} does not match its hash; it was changed or only half written, "
            "make it again"
        )
    return plan


def _read_header(folder: Path) -> dict[str, Any]:
    """plan.json with every value of the right type."""
    path = folder / "plan.json"
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise ValueError(f"it is larger than {_JSON_LIMIT} bytes")
        header = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"no plan in {folder}: there is no {path.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(header, dict) or header.get("format") != "hotcold plan":
        raise CheckpointError(f"{path} is not a hotcold plan")
    if header.get("version") != VERSION:
        found = header.get("version")
        raise CheckpointError(
            f"{path} has version {found!r}, this hotcold reads {VERSION}; make the plan again"
        )
    wrong = _wrong_key(header)
    if wrong:
        raise CheckpointError(f"{path}: {wrong!r} is missing or not what a plan has there")
    return header


def _wrong_key(header: dict[str, Any]) -> str | None:
    """A key that is missing or holds the wrong kind of value."""
    valid = {name: isinstance(header.get(name), str) for name in (*_TEXTS, "hash")}
    valid |= {name: _is_size(header.get(name)) for name in _NUMBERS}
    for name, check in _TABLES.items():
        table = header.get(name)
        valid[name] = isinstance(table, dict) and all(check(value) for value in table.values())
    figures = header.get("figures")
    valid["figures"] = isinstance(figures, dict) and all(map(_is_number, figures.values()))
    shape, devices = header.get("shape"), header.get("devices")
    valid["shape"] = (
        isinstance(shape, list)
        and len(shape) == 2
        and all(_is_size(size) for size in shape)
        and shape[0] * shape[1] <= _NEURON_LIMIT
    )
    valid["devices"] = isinstance(devices, list) and all(_is_text(name) for name in devices)
    return next((name for name, right in valid.items() if not right), None)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_number(value: object) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return abs(value) < 1e308  # neither infinite nor NaN, nor an integer no float can hold


_TABLES: dict[str, Callable[[object], bool]] = {
    "modules": _is_text,
    "module_bytes": _is_size,
    "budgets": _is_size,
}


def _read_arrays(folder: Path, shape: tuple[int, ...]) -> dict[str, Any]:
    """The arrays of plan.npz, in the dtypes and shapes the header promises."""
    layers, neurons = shape
    limit = layers * neurons * 9 + layers * 8 + 65536
    path = folder / "plan.npz"
    if path.stat().st_size > limit:
        raise ValueError(f"{path.name} is larger than {layers} layers of {neurons} neurons need")
    _, arrays = unpack(path.read_bytes(), limit)
    if set(arrays) != set(_ARRAYS):
        raise ValueError(f"{path.name} holds {sorted(arrays)}, not {sorted(_ARRAYS)}")
    for name, dtype in _ARRAYS.items():
        expected = shape if name.endswith("LN") else shape[:1]
        if arrays[name].dtype.str != dtype or arrays[name].shape != expected:
            raise ValueError(f"{path.name}: {name} is {arrays[name].dtype} {arrays[name].shape}")
    return arrays
