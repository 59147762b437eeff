"""Plan: a placement, validated and completed; what planning hands to the engine.

A policy's Placement becomes a Plan here or is refused, the policy blamed by name. The executors are
built from it, `--plan` reads it back, and its hash says whether two runs used the same plan. It
holds no weights, and says where things live, not in which order they are computed (schedule.py).

Shape suffixes: L layers, N neurons of a layer, C chunks.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.names import DTYPES
from hotcold.native.errors import CheckpointError, ConfigError
from hotcold.runtime.files.atomic import write_atomically
from hotcold.runtime.files.npz import pack, unpack
from hotcold.runtime.files.records import fits, from_record, hints, plain, to_record
from hotcold.runtime.plan.placement import check_placement, first_mixed
from hotcold.runtime.plan.problem import (
    DEVICES,
    Placement,
    Problem,
    bytes_by_device,
    frozen_array,
    saved_bytes,
)
from hotcold.runtime.topology import Topology
from hotcold.runtime.units import format_bytes

_ONE = 2**20  # probabilities are cut in integers, so every machine cuts at the same neuron

_UNPROFILED = "no activation profile: every neuron counts as equally active"
_ON_HOST = "modules on {} are counted there; the GPU executor still computes them, from host memory"


@dataclass(frozen=True, eq=False)
class Plan:
    """Where everything of a model lives; arrays are read-only.

    Args:
        device_LN: int8, index into `devices` for every neuron.
        neuron_bytes_L: int64, bytes of one neuron of each layer.
        activations_LN: float64, firing probability of each neuron.
        dtype_LN: int8, the number of each neuron's format (DTYPES), one for all that a device has
            of a layer; None: `dtype` for all.
        format_bytes: bytes of a neuron in each format of dtype_LN that is not `dtype`.
        gpus: how many of the devices are GPU executors', the first of which leads.
        model: checksum of the bundle the plan is for.
        note: remarks of the policy and of make_plan.

    Raises:
        ConfigError: parts that contradict each other.
    """

    device_LN: NDArray[np.int8]
    modules: Mapping[str, str]
    module_bytes: Mapping[str, int]
    neuron_bytes_L: NDArray[np.int64]
    activations_LN: NDArray[np.float64]
    budgets: Mapping[str, int]
    policy: str
    model: str
    context: int
    batch: int
    dtype: str
    note: str = ""
    devices: tuple[str, ...] = DEVICES
    figures: Mapping[str, float] = field(default_factory=dict)
    dtype_LN: NDArray[np.int8] | None = None
    format_bytes: Mapping[str, int] = field(default_factory=dict)
    gpus: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "device_LN", frozen_array(self.device_LN, np.int8))
        object.__setattr__(self, "neuron_bytes_L", frozen_array(self.neuron_bytes_L, np.int64))
        object.__setattr__(self, "activations_LN", frozen_array(self.activations_LN, np.float64))
        object.__setattr__(self, "devices", tuple(self.devices))
        if self.dtype_LN is not None:
            object.__setattr__(self, "dtype_LN", frozen_array(self.dtype_LN, np.int8))
        shape, p_LN = self.device_LN.shape, self.activations_LN
        problems = {
            "device_LN must be layers by neurons": len(shape) != 2 or 0 in shape,
            "activations_LN and device_LN must have the same shape": p_LN.shape != shape,
            "neuron_bytes_L must have one entry a layer": self.neuron_bytes_L.shape != shape[:1],
            "a neuron is on no device": not (
                (self.device_LN >= 0) & (self.device_LN < len(self.devices))
            ).all(),
            "activations_LN must be from 0 to 1": not ((p_LN >= 0) & (p_LN <= 1)).all(),
            "a module is on no device": not set(self.modules.values()) <= set(self.devices),
            "modules and module_bytes must name the same": set(self.modules)
            != set(self.module_bytes),
            "devices of GPU and of CPU executors are needed": not 0 < self.gpus < len(self.devices),
            "every device needs a budget": set(self.budgets) != set(self.devices),
            "format_bytes must be those of dtype_LN": not self._formats_known(),
        }
        for problem, wrong in problems.items():
            if wrong:
                raise ConfigError(f"not a plan: {problem}")

    def _formats_known(self) -> bool:
        """Whether dtype_LN goes with the other parts, which are right."""
        named = {self.dtype, *self.format_bytes}
        if self.dtype_LN is None or not named <= set(DTYPES) or self.dtype in self.format_bytes:
            return self.dtype_LN is None and not self.format_bytes
        if self.dtype_LN.shape != self.device_LN.shape:
            return False
        shares = (self.device_LN == index for index in range(len(self.devices)))
        mixed = [first_mixed(own_LN, self.dtype_LN) for own_LN in shares]
        known = {DTYPES[name] for name in named}
        return set(np.unique(self.dtype_LN)) <= known and not any(x is not None for x in mixed)

    @property
    def shape(self) -> tuple[int, int]:
        """(L, N)."""
        layers, neurons = self.device_LN.shape
        return layers, neurons

    @cached_property
    def hash(self) -> str:
        """SHA-256, in hex, of all that decides a run; policy, note, figures and budgets do not."""
        names = (
            "devices",
            "modules",
            "module_bytes",
            "model",
            "shape",
            "context",
            "batch",
            "dtype",
        )
        content = {name: plain(getattr(self, name)) for name in names}
        if self.dtype_LN is not None:
            content["format_bytes"] = plain(self.format_bytes)
        if self.gpus > 1:
            content["gpus"] = self.gpus
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
        digest.update(self.device_LN.tobytes())
        digest.update(self.neuron_bytes_L.astype("<i8").tobytes())
        digest.update(self.activations_LN.astype("<f8").tobytes())
        if self.dtype_LN is not None:
            digest.update(self.dtype_LN.tobytes())
        return digest.hexdigest()

    @cached_property
    def bytes_by_device(self) -> dict[str, int]:
        """Bytes that each device holds."""
        sizes, devices = self.neuron_bytes_L, self.devices
        used = bytes_by_device(self.device_LN, sizes, self.modules, self.module_bytes, devices)
        saved = saved_bytes(self.device_LN, self.dtype_LN, sizes, self.format_bytes, devices)
        return {device: size - saved[device] for device, size in used.items()}

    @property
    def remark(self) -> str:
        """What the policy itself noted, without make_plan's lines."""
        ours = (_UNPROFILED, _ON_HOST.format(self.devices[-1]))
        return "\n".join(line for line in self.note.splitlines() if line not in ours)

    @property
    def topology(self) -> Topology:
        """The executors that the plan is for."""
        return Topology(self.gpus, len(self.devices) - self.gpus)

    @cached_property
    def hot_LN(self) -> NDArray[np.bool_]:
        """Which neurons GPU executors own."""
        return self.device_LN < self.gpus

    @property
    def gpu_activation_share(self) -> float:
        """Share of expected activations on GPU executors (of neurons, if none ever fire)."""
        on_gpu = self.hot_LN
        total = float(self.activations_LN.sum())
        if total == 0:
            return float(on_gpu.mean())
        return float(self.activations_LN[on_gpu].sum()) / total

    def ids(self, layer: int, device_index: int) -> NDArray[np.int32]:
        """Neurons of a layer that a device owns, ascending."""
        return np.flatnonzero(self.device_LN[layer] == device_index).astype(np.int32)

    def format(self, layer: int, device_index: int) -> str | None:
        """The format of a device's neurons of a layer; None: `dtype`, or there are none."""
        own_N = self.device_LN[layer] == device_index
        if self.dtype_LN is None or not own_N.any():
            return None
        number = self.dtype_LN[layer][own_N][0]
        return next((name for name in self.format_bytes if DTYPES[name] == number), None)

    def format_text(self, device_index: int) -> str:
        """Which layers a device has in another format than `dtype`; empty: none."""
        found: dict[str, list[str]] = {}
        for layer in range(self.shape[0]):
            if name := self.format(layer, device_index):
                found.setdefault(name, []).append(f"neurons.{layer}")
        return "".join(f", {_compact(layers)} in {name}" for name, layers in found.items())

    def bounds(self, layer: int, device_index: int, n_chunks: int) -> NDArray[np.int32]:
        """Cut a device's share of a layer into C chunks of about equal work, by neuron id.

        Chunk c holds the owned ids from bounds[c] up to, not including, bounds[c + 1]. The cut
        depends on the plan alone, never on threads or batch, and so does the order in which partial
        sums are added. A neuron weighs its firing probability plus the mean of the share: the first
        is the work of an active list, the second that of evaluating every gate row, and no chunk
        gets more than twice its part of either, but for one neuron. A GPU sums each chunk
        separately; the CPU needs no chunks (native/ops/ffn.c). Returns int32 [C + 1], ascending,
        from 0 to N.
        """
        ids = self.ids(layer, device_index)
        bounds_C = np.full(n_chunks + 1, self.shape[1], dtype=np.int32)
        bounds_C[0] = 0
        if len(ids):
            weight = np.rint(self.activations_LN[layer, ids] * _ONE).astype(np.int64)
            weight += max(1, int(weight.sum()) // len(ids))
            before = np.cumsum(weight) - weight
            total = int(weight.sum())
            cuts = [chunk * total // n_chunks for chunk in range(1, n_chunks)]
            first = np.searchsorted(before, cuts, side="left")
            bounds_C[1:-1] = np.append(ids, self.shape[1])[first]
        return bounds_C

    def save(self, folder: str | Path) -> None:
        """Write plan.json and plan.npz into a folder, made if it is not there.

        Raises:
            ConfigError: the folder cannot be written.
        """
        folder = Path(folder)
        arrays, values = to_record(self)
        if self.dtype_LN is None:
            del values["dtype_LN"], values["format_bytes"]
        if self.gpus == 1:
            del values["gpus"]
        header = {"format": "hotcold plan", "version": VERSION, "hash": self.hash, **values}
        header |= {"shape": self.shape, "bytes": self.bytes_by_device}  # bytes: for readers
        header["gpu_activation_share"] = self.gpu_activation_share
        text = json.dumps(header, indent=2) + "\n"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            arrays = {
                name: arrays[name].astype(dtype)
                for name, dtype in _ARRAYS.items()
                if name in arrays
            }
            write_atomically(folder / "plan.npz", pack(arrays))
            write_atomically(folder / "plan.json", text.encode())
        except OSError as error:
            said = error.strerror or error
            raise ConfigError(f"cannot write a plan to {folder}: {said}") from error

    @staticmethod
    def load(path: str | Path) -> "Plan":
        """Read what save wrote; the path is the folder.

        Raises:
            CheckpointError: no plan there, a damaged one, or one of another version.
        """
        folder = Path(path)
        header = _read_header(folder)
        try:
            arrays = _read_arrays(folder, tuple(header["shape"]), "format_bytes" in header)
            plan = from_record(Plan, header | arrays)
        except (ValueError, OSError) as error:
            raise CheckpointError(f"the plan in {folder} cannot be read: {error}") from error
        if plan.hash != header["hash"]:
            raise CheckpointError(
                f"the plan in {folder} does not match its hash; it was changed or only half "
                "written, make it again"
            )
        return plan

    def modules_on(self, device: str) -> str:
        """The modules of one device, runs of layers folded: "attention.0-7, kv.0-3"."""
        return _compact([name for name, home in self.modules.items() if home == device])

    def describe(self) -> str:
        """A few lines for people: bytes and modules by device, the share of the work on the GPU."""
        lines = [f"plan {self.hash[:12]} by policy {self.policy!r}"]
        for device, used in self.bytes_by_device.items():
            room = f"{format_bytes(used)} of {format_bytes(self.budgets[device])}"
            own = self.format_text(self.devices.index(device))
            lines.append(f"  {device}: {room}: {self.modules_on(device) or 'no modules'}{own}")
        where, share = ", ".join(self.devices[: self.gpus]), 100 * self.gpu_activation_share
        lines.append(
            f"  {int(self.hot_LN.sum())} of {self.device_LN.size} neurons on {where}, "
            f"{share:.1f} % of activations"
        )
        lines += [f"  {line}" for line in self.note.splitlines()]
        return "\n".join(lines)


def make_plan(
    problem: Problem, placement: Placement, policy_name: str, model_checksum: str
) -> Plan:
    """Turn a placement into a plan: check it, copy its arrays, add what a run needs to know.

    Raises:
        PolicyError: the placement breaks a rule; the message blames policy_name.
    """
    check_placement(problem, placement, policy_name)
    notes = [_printable(placement.note)]
    if not problem.profiled:
        notes.append(_UNPROFILED)
    modules = {module.name: str(placement.modules[module.name]) for module in problem.modules}
    if problem.devices[-1] in modules.values():
        notes.append(_ON_HOST.format(problem.devices[-1]))
    found = () if placement.dtype_LN is None else np.unique(placement.dtype_LN)
    formats = {name: f.bytes for name, f in problem.formats.items() if DTYPES[name] in found}
    return Plan(
        device_LN=placement.device_LN,
        modules=modules,
        module_bytes={module.name: module.bytes for module in problem.modules},
        neuron_bytes_L=problem.neuron_bytes_L,
        activations_LN=problem.activations_LN,
        budgets=dict(problem.budgets),
        policy=policy_name,
        model=model_checksum,
        context=problem.context,
        batch=problem.batch,
        dtype=problem.dtype,
        note="\n".join(note for note in notes if note),
        devices=problem.devices,
        gpus=problem.gpus,
        figures={str(name): float(value) for name, value in placement.figures.items()},
        dtype_LN=placement.dtype_LN if formats else None,
        format_bytes=formats,
    )


def _printable(text: str) -> str:
    """A policy's text without control characters for terminals; line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def _compact(names: list[str]) -> str:
    """Module names with runs of layers folded: "norms, attention.0-7, kv.0-3"."""
    layers: dict[str, list[int]] = {}
    for name in names:
        kind, _, layer = name.partition(".")
        layers.setdefault(kind, []).extend([int(layer)] if layer.isdigit() else [])
    parts = []
    for kind, found in layers.items():
        starts = [layer for layer in found if layer - 1 not in found]
        ends = [layer for layer in found if layer + 1 not in found]
        spans = [
            f"{first}-{last}" if last > first else f"{first}"
            for first, last in zip(sorted(starts), sorted(ends), strict=True)
        ]
        parts.append(f"{kind}.{','.join(spans)}" if spans else kind)
    return ", ".join(parts)


# ---- on disk: plan.json for people and diffs, plan.npz for the arrays


VERSION = 2
_JSON_LIMIT = 2**24
_NEURON_LIMIT = 2**28  # neurons of a plan: 50 times the 175B model's
_ARRAYS = {
    "device_LN": "|i1",
    "neuron_bytes_L": "<i8",
    "activations_LN": "<f8",
    "dtype_LN": "|i1",  # where format_bytes is in the header: both are left out without formats
}
_PLAIN = {name: hint for name, hint in hints(Plan).items() if name not in _ARRAYS}


def _read_header(folder: Path) -> dict[str, Any]:
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
    kinds = {**_PLAIN, "hash": str, "shape": tuple[int, int]}
    for name in {"format_bytes", "gpus"} - set(header):
        del kinds[name]
    wrong = [name for name, kind in kinds.items() if not fits(header.get(name), kind)]
    if not wrong and (len(header["shape"]) != 2 or math.prod(header["shape"]) > _NEURON_LIMIT):
        wrong = ["shape"]
    if wrong:
        raise CheckpointError(f"{path}: {wrong[0]!r} is missing or not what a plan has there")
    return header


def _read_arrays(folder: Path, shape: tuple[int, ...], formats: bool) -> dict[str, Any]:
    """The arrays of plan.npz, in the dtypes and shapes the header promises."""
    layers, neurons = shape
    limit = layers * neurons * (9 + formats) + layers * 8 + 65536
    kinds = {name: dtype for name, dtype in _ARRAYS.items() if formats or name != "dtype_LN"}
    path = folder / "plan.npz"
    if path.stat().st_size > limit:
        raise ValueError(f"{path.name} is larger than {layers} layers of {neurons} neurons need")
    _, arrays = unpack(path.read_bytes(), limit)
    if set(arrays) != set(kinds):
        raise ValueError(f"{path.name} holds {sorted(arrays)}, not {sorted(kinds)}")
    for name, dtype in kinds.items():
        expected = shape if name.endswith("LN") else shape[:1]
        if arrays[name].dtype.str != dtype or arrays[name].shape != expected:
            raise ValueError(f"{path.name}: {name} is {arrays[name].dtype} {arrays[name].shape}")
    return arrays
