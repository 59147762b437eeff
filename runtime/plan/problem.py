"""Problem and Placement: what a placement policy is given, and what it returns.

A policy decides, under every device's memory, where each neuron and each module of a model lives.
Built by `make_problem`, read by policies, checked and completed by plan.py. Both classes are plain
data: no policy sees an engine, an actor or a weight.

Shape suffixes: L layers, N neurons of a layer.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hotcold.native.abi.names import DTYPES
from hotcold.native.errors import ConfigError, PolicyError
from hotcold.runtime.hardware.profile import HardwareProfile
from hotcold.runtime.model.block import norms
from hotcold.runtime.model.neurons import NeuronRecord
from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.plan.dealing import HOST, deal, dealing_order, fit
from hotcold.runtime.plan.work import ModelWork
from hotcold.runtime.topology import CLASSIC, Topology

DEVICES = CLASSIC.devices


@dataclass(frozen=True)
class Module:
    """Something other than a neuron that needs a home.

    Args:
        name: "norms", "head" (embedding, positions, head), "attention.3" (with the
            feed-forward bias), "predictor.3", "kv.3".
        layer: None for what belongs to the whole model.
        must_share_device: None, or a label; modules with the same label go to the same device.
        read_share: part of it that computing one token reads, on average: of an untied head with
            its embedding about a half, of a KV cache that fills up a half.
    """

    name: str
    layer: int | None
    bytes: int
    must_share_device: str | None = None
    read_share: float = 1.0

    @property
    def kind(self) -> str:
        """The name without its layer: "attention" of "attention.3"."""
        return self.name.partition(".")[0]


@dataclass(frozen=True, eq=False)
class Placement:
    """What a placement policy returns; check_placement says what must hold.

    Args:
        device_LN: int8, for every neuron an index into problem.devices.
        modules: device name by module name, one entry for every module of the problem.
        dtype_LN: int8, by neuron the number of the format that its device stores and computes it in
            (DTYPES): problem.dtype or one of problem.formats. In a layer all neurons of a device
            have one. None: problem.dtype, all of them.
        note: a line for people, kept in the plan.
        figures: what the policy can tell in numbers, kept in the plan. Solvers give "objective",
            "bound" (what no placement can beat) and "gap" (their relative distance).
        solve_s: seconds the policy took; put in by whoever ran it.
    """

    device_LN: NDArray[np.int8]
    modules: Mapping[str, str]
    dtype_LN: NDArray[np.int8] | None = None
    note: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    solve_s: float | None = None


@dataclass(frozen=True)
class NeuronFormat:
    """Another format that neurons may be stored in: bytes of one, and shares as in Problem."""

    bytes: int
    gate_share: float
    read_share: float


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything a placement policy may base its decision on; arrays are read-only.

    Args:
        activations_LN: float64, probability that a neuron fires for a token.
        neuron_bytes_L: int64, bytes of one neuron (all its rows and columns) of each layer.
        budgets: bytes that may be used, by device name.
        predictor_density_L: float64, share of the neurons that the layer's predictor proposes.
        context: positions the KV cache has room for.
        batch: sequences that are decoded together, each with its own KV cache.
        devices: names of the devices, one for each executor: those of GPU executors, then those of
            CPU executors, which have room for everything. The first one's executor leads: it
            computes all modules. The last is the host, where modules lie that the first has no room
            for.
        profiled: False where no activation profile was given and all neurons look alike.
        gate_share: part of a neuron's bytes that tell whether it fires, its gate row: read for
            every neuron that is proposed, the rest only for those that fire.
        read_share: part of a neuron's bytes that is not padding.
        formats: what else than `dtype` a device's neurons may be stored in, by its word.
        gpus: how many of the devices are GPU executors'.

    Raises:
        ConfigError: parts that contradict each other.
    """

    activations_LN: NDArray[np.float64]
    neuron_bytes_L: NDArray[np.int64]
    modules: tuple[Module, ...]
    budgets: Mapping[str, int]
    hardware: HardwareProfile
    predictor_density_L: NDArray[np.float64]
    context: int
    batch: int
    dtype: str
    devices: tuple[str, ...] = DEVICES
    profiled: bool = True
    gate_share: float = 1 / 3
    read_share: float = 1.0
    formats: Mapping[str, NeuronFormat] = field(default_factory=dict)
    gpus: int = 1

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        put("activations_LN", frozen_array(self.activations_LN, np.float64))
        put("neuron_bytes_L", frozen_array(self.neuron_bytes_L, np.int64))
        put("predictor_density_L", frozen_array(self.predictor_density_L, np.float64))
        put("budgets", MappingProxyType(dict(self.budgets)))
        put("formats", MappingProxyType(dict(self.formats)))
        put("modules", tuple(self.modules))
        put("devices", tuple(self.devices))
        _check_problem(self)

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        # A mapping proxy cannot be pickled; going through __init__ also freezes the arrays again.
        values = [getattr(self, field.name) for field in fields(self)]
        return type(self), tuple(
            dict(value) if isinstance(value, MappingProxyType) else value for value in values
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(L, N)."""
        layers, neurons = self.activations_LN.shape
        return layers, neurons

    def bytes_by_device(
        self,
        device_LN: NDArray[np.int8],
        modules: Mapping[str, str],
        dtype_LN: NDArray[np.int8] | None = None,
    ) -> dict[str, int]:
        """Bytes that each device holds under a placement of neurons and modules."""
        sizes = {module.name: module.bytes for module in self.modules}
        used = bytes_by_device(device_LN, self.neuron_bytes_L, modules, sizes, self.devices)
        own = {name: other.bytes for name, other in self.formats.items()}
        saved = saved_bytes(device_LN, dtype_LN, self.neuron_bytes_L, own, self.devices)
        return {device: size - saved[device] for device, size in used.items()}

    def homes(self, modules: Sequence[Module] | None = None) -> tuple[dict[str, str], int]:
        """Homes of all modules, or of some, and what they leave of the GPU executors' memory.

        Modules go to the first device in their default order (norms, attention, head, predictors,
        KV; by layer within each): one that does not fit goes to the host, and the next is tried.
        """
        lead, host = self.devices[0], self.devices[-1]
        modules = self.modules if modules is None else modules
        found, left = fill_modules(modules, self.budgets[lead], lead, host)
        return found, self._whole([left, *self._rooms(found)[1:]])

    def _whole(self, rooms: Sequence[int]) -> int:
        """Bytes that neurons can take of several rooms; of one neuron no part may lie elsewhere."""
        if len(rooms) == 1:
            return rooms[0]
        size = int(self.neuron_bytes_L.min())
        return sum(room // size * size for room in rooms)

    def _rooms(self, modules: Mapping[str, str]) -> list[int]:
        """Bytes for neurons on each GPU executor's device."""
        own = [m.bytes for m in self.modules if modules.get(m.name) == self.devices[0]]
        rooms = [self.budgets[device] for device in self.devices[: self.gpus]]
        return [rooms[0] - sum(own), *rooms[1:]]

    def divide(self, hot_LN: NDArray[np.bool_], modules: Mapping[str, str]) -> NDArray[np.int8]:
        """device_LN of what shall be on GPU executors, when modules have their homes.

        Several devices of a kind get the kind's neurons layer by layer, hottest first, GPU
        executors' in proportion to their room and CPU executors' evenly (dealing.py).
        """
        if len(self.devices) == 2:
            return np.where(hot_LN, 0, 1).astype(np.int8)
        order_K = dealing_order(self.activations_LN)
        hot_K = order_K[hot_LN.reshape(-1)[order_K]]
        rooms = [max(0, room) for room in self._rooms(modules)]
        bytes_K = self.neuron_bytes_L[hot_K // self.shape[1]]
        size = int(self.neuron_bytes_L.min())
        who_K = deal(len(hot_K), [room // size for room in rooms])
        device_LN = np.full(self.shape, HOST, np.int8)
        device_LN.reshape(-1)[hot_K] = fit(who_K, bytes_K, rooms)
        cold_K = order_K[device_LN.reshape(-1)[order_K] == HOST]
        cpus = len(self.devices) - self.gpus
        device_LN.reshape(-1)[cold_K] = self.gpus + deal(len(cold_K), [1] * cpus)
        return device_LN

    def fill(self, score_LN: ArrayLike, share: float = 1.0, device: str | None = None) -> Placement:
        """Fill GPU executors: the modules as `homes` has them, then the neurons of best score.

        Of what the modules leave, `share` is filled with neurons of all layers together, best score
        first, until nothing more fits; `divide` says which device gets which. Everything else goes
        to the CPU executors. Equal scores go by layer, then by neuron id, so the result depends
        only on the arguments. With `device` that one alone is filled.
        Infinite scores are allowed; `share` is 0 to 1.

        Raises:
            PolicyError: a score of the wrong shape or NaN, a share out of range, no such device.
        """
        score = np.asarray(score_LN)
        if score.shape != self.shape or score.dtype.kind not in "biuf":
            raise PolicyError(
                f"fill: score_LN is {score.dtype} {score.shape}; "
                f"it must be one number a neuron, {self.shape}"
            )
        if np.isnan(score).any():
            raise PolicyError(f"fill: score_LN has {int(np.isnan(score).sum())} NaN")
        if not 0.0 <= share <= 1.0:
            raise PolicyError(f"fill: share is {share}; it must be from 0 to 1")
        if device is not None and device not in self.devices:
            raise PolicyError(f"fill: no device {device!r}; there are {', '.join(self.devices)}")
        modules, left = self.homes()
        index = -1 if device is None else self.devices.index(device)
        if device is not None and index >= self.gpus:
            modules, left = fill_modules(self.modules, self.budgets[device], device, device)
        elif device is not None:
            left = self._rooms(modules)[index]
        chosen = best_neurons(score, self.neuron_bytes_L, math.floor(share * left))
        hot_LN = np.zeros(self.shape, np.bool_)
        hot_LN.reshape(-1)[chosen] = True
        if device is None:
            return Placement(self.divide(hot_LN, modules), modules)
        device_LN = self.divide(np.zeros(self.shape, np.bool_), modules)
        device_LN[hot_LN] = index
        return Placement(device_LN, modules)


def frozen_array(values: ArrayLike, dtype: type[np.generic]) -> NDArray[Any]:
    """A read-only, C-contiguous copy."""
    array = np.array(values, dtype=dtype, order="C", copy=True)
    array.flags.writeable = False
    return array


def _check_problem(problem: Problem) -> None:
    p_LN = problem.activations_LN
    if p_LN.ndim != 2 or 0 in p_LN.shape:
        raise ConfigError(f"activations_LN has shape {p_LN.shape}; it must be layers by neurons")
    if not ((p_LN >= 0) & (p_LN <= 1)).all():
        raise ConfigError("activations_LN must be probabilities, from 0 to 1")
    for name in ("neuron_bytes_L", "predictor_density_L"):
        if getattr(problem, name).shape != p_LN.shape[:1]:
            raise ConfigError(f"{name} must have one entry for each of {len(p_LN)} layers")
    if (problem.neuron_bytes_L <= 0).any():
        raise ConfigError("neuron_bytes_L must be above 0")
    if not ((problem.predictor_density_L >= 0) & (problem.predictor_density_L <= 1)).all():
        raise ConfigError("predictor_density_L must be from 0 to 1")
    if not 0 <= problem.gate_share <= problem.read_share <= 1:
        raise ConfigError(
            f"gate_share is {problem.gate_share}, read_share {problem.read_share}; they must be "
            "from 0 to 1, the first not above the second"
        )
    if not 1 <= problem.gpus < len(problem.devices):
        raise ConfigError(f"{problem.gpus} of devices {problem.devices} are GPU executors'")
    if set(problem.budgets) != set(problem.devices):
        raise ConfigError(f"budgets are for {sorted(problem.budgets)}, devices {problem.devices}")
    sizes = [*problem.budgets.values(), *(module.bytes for module in problem.modules)]
    if min(sizes) < 0:
        raise ConfigError("budgets and modules must not have negative bytes")
    if not all(0 <= module.read_share <= 1 for module in problem.modules):
        raise ConfigError("read_share of a module must be from 0 to 1")
    names = [module.name for module in problem.modules]
    if len(set(names)) != len(names):
        raise ConfigError(f"modules must have different names: {sorted(names)}")


def make_problem(  # noqa: PLR0917 - every part of the problem, each once
    spec: ModelSpec,
    record_bytes: int,
    activations_LN: ArrayLike | None,
    vram_bytes: int | None | Sequence[int | None],
    context: int,
    batch: int,
    predictor_bytes_L: Sequence[int],
    predictor_density_L: Iterable[float] | None,
    hardware: HardwareProfile,
    kv_bytes: int = 4,
    embed_on_host: bool = False,
    topology: Topology = CLASSIC,
) -> Problem:
    """The placement problem of a model on this machine.

    Sizes count the padding of a record, positions of KV cache a sequence, sequences decoded
    together, and 0 for a predictor that needs no memory of its own; kv_bytes is of an element.
    Without activations every neuron counts as firing for every token, which is the upper bound.
    A vram_bytes of None, for a GPU executor on its CPU device without a budget, is room for all
    modules and half of the neurons, so that all executors share the work; several GPU executors
    share that half, and one budget given is each one's. Densities of None are
    what fires. With embed_on_host the host looks up rows of embedding and positions, so only the
    head counts.

    Raises:
        ConfigError: shapes that do not match the model, or sizes out of range.
    """
    shape = (spec.n_layers, spec.n_neurons)
    p_LN = np.ones(shape) if activations_LN is None else np.asarray(activations_LN, np.float64)
    if p_LN.shape != shape:
        raise ConfigError(f"the activation profile is for {p_LN.shape}, the model has {shape}")
    if len(predictor_bytes_L) != spec.n_layers:
        raise ConfigError(f"{len(predictor_bytes_L)} predictors for {spec.n_layers} layers")
    if context < 1 or batch < 1:
        raise ConfigError(f"context {context} and batch {batch} must be at least 1")
    work = ModelWork(spec, kv_bytes)
    neuron = work.neurons.bytes
    if record_bytes < neuron.proposed + neuron.fired:
        raise ConfigError(
            f"record_bytes {record_bytes} is less than the {neuron.proposed + neuron.fired} of a "
            "neuron"
        )
    modules = _modules(work, context * batch, predictor_bytes_L, embed_on_host)
    module_bytes = sum(module.bytes for module in modules)
    neuron_bytes = spec.n_layers * spec.n_neurons * record_bytes
    given = vram_bytes if isinstance(vram_bytes, Sequence) else [vram_bytes] * topology.gpus
    free = [neuron_bytes // 2 // topology.gpus] * topology.gpus
    free[0] += module_bytes
    rooms = [own if size is None else size for own, size in zip(free, given, strict=True)]
    rooms += [module_bytes + neuron_bytes] * topology.cpus
    return Problem(
        activations_LN=p_LN,
        neuron_bytes_L=np.full(spec.n_layers, record_bytes),
        modules=modules,
        budgets=dict(zip(topology.devices, rooms, strict=True)),
        devices=topology.devices,
        gpus=topology.gpus,
        hardware=hardware,
        predictor_density_L=np.array(
            p_LN.mean(axis=1) if predictor_density_L is None else list(predictor_density_L)
        ),
        context=context,
        batch=batch,
        dtype=spec.neuron_format,
        profiled=activations_LN is not None,
        gate_share=neuron.proposed / record_bytes,
        read_share=(neuron.proposed + neuron.fired) / record_bytes,
        formats={} if spec.neuron_dtype else {"int8": _format(spec.stored("int8"))},
    )


def _format(spec: ModelSpec) -> NeuronFormat:
    size, read = NeuronRecord.for_spec(spec).bytes, ModelWork(spec).neurons.bytes
    return NeuronFormat(size, read.proposed / size, (read.proposed + read.fired) / size)


def _modules(
    work: ModelWork,
    kv_positions: int,
    predictor_bytes_L: Sequence[int],
    embed_on_host: bool,
) -> tuple[Module, ...]:
    """Everything but the neurons: what a token reads of it, and what lies there unread."""
    spec, size = work.spec, work.spec.element_bytes
    layer_norms = work.norm_bytes * len(norms(spec.block))
    attention = work.attention.bytes.fixed - work.norms("attention") + work.ffn_bias_bytes
    last_norm = work.norm_bytes * spec.final_norm
    read = head = work.head.bytes.fixed - last_norm + work.embed.bytes.fixed
    if not embed_on_host:  # of both tables a token looks up a single row
        head += 0 if spec.tied else spec.vocab_size * spec.embed_width * size
        head += spec.max_context * spec.d_model * size if spec.positions == "learned" else 0
    layers = range(spec.n_layers)
    window = min(1.0, (spec.attention_window or kv_positions) / max(1, kv_positions))
    seen = window - window**2 / 2  # of the cache, on the average of all its positions
    return (
        Module("norms", None, spec.n_layers * layer_norms + last_norm),
        *(Module(f"attention.{i}", i, attention) for i in layers),
        Module("head", None, head, read_share=read / head),
        *(
            Module(f"predictor.{i}", i, int(predictor_bytes_L[i]))
            for i in layers
            if predictor_bytes_L[i]
        ),
        *(
            Module(f"kv.{i}", i, kv_positions * work.attention.bytes.position, read_share=seen)
            for i in layers
        ),
    )


# ---- filling one device, and counting bytes


MODULE_ORDER = ("norms", "attention", "head", "predictor", "kv")


def fill_modules(
    modules: Sequence[Module], room: int, device: str, host: str
) -> tuple[dict[str, str], int]:
    """Homes of all modules when `device` has room for `room` bytes, and what is left of them.

    A module that does not fit goes to the host and the next is tried; modules that must share a
    device are one.
    """
    homes: dict[str, str] = {}
    for module in sorted(modules, key=_default_order):
        if module.name in homes:
            continue
        label = module.must_share_device
        group = [other for other in modules if label and other.must_share_device == label]
        group = group or [module]
        size = sum(member.bytes for member in group)
        home = device if size <= room else host
        room -= size if home == device else 0
        homes.update({member.name: home for member in group})
    return homes, room


def best_neurons(
    score_LN: NDArray[Any], neuron_bytes_L: NDArray[np.int64], room: int
) -> NDArray[np.int64]:
    """Flat indices (layer * N + id) of the neurons taken: best first, each if it still fits."""
    # The stable sort keeps equal scores in order of (layer, id).
    best_first = np.argsort(-score_LN.astype(np.float64).reshape(-1), kind="stable")
    bytes_of = neuron_bytes_L[best_first // score_LN.shape[1]]
    taken: list[NDArray[np.int64]] = []
    # Take the longest run that fits, drop what is now too large, continue after it. A neuron that
    # did not fit never fits later, so this is the same as asking one by one; every round but the
    # last exhausts one size of neuron, so there are at most L + 1.
    while True:
        fits = bytes_of <= room
        best_first, bytes_of = best_first[fits], bytes_of[fits]
        if not len(best_first):
            return np.concatenate([*taken, best_first])
        total = np.cumsum(bytes_of)
        run = int(np.searchsorted(total, room, side="right"))
        taken.append(best_first[:run])
        room -= int(total[run - 1])
        best_first, bytes_of = best_first[run:], bytes_of[run:]


def bytes_by_device(
    device_LN: NDArray[np.int8],
    neuron_bytes_L: NDArray[np.int64],
    modules: Mapping[str, str],
    module_bytes: Mapping[str, int],
    devices: tuple[str, ...],
) -> dict[str, int]:
    """Bytes that each device holds under a placement of neurons and modules."""
    used = {}
    for index, device in enumerate(devices):
        count_L = np.count_nonzero(device_LN == index, axis=1)
        used[device] = sum(
            int(count) * int(size) for count, size in zip(count_L, neuron_bytes_L, strict=True)
        )
    for name, home in modules.items():
        used[home] += module_bytes[name]
    return used


def saved_bytes(
    device_LN: NDArray[np.int8],
    dtype_LN: NDArray[np.int8] | None,
    neuron_bytes_L: NDArray[np.int64],
    format_bytes: Mapping[str, int],
    devices: tuple[str, ...],
) -> dict[str, int]:
    """By how many bytes each device's neurons are smaller in formats of their own."""
    saved = dict.fromkeys(devices, 0)
    for name, size in format_bytes.items() if dtype_LN is not None else ():
        for index, device in enumerate(devices):
            own_LN = (device_LN == index) & (dtype_LN == DTYPES[name])
            saved[device] += int(np.count_nonzero(own_LN, axis=1) @ (neuron_bytes_L - size))
    return saved


def _default_order(module: Module) -> tuple[int, int, str]:
    kind = MODULE_ORDER.index(module.kind) if module.kind in MODULE_ORDER else len(MODULE_ORDER)
    return kind, -1 if module.layer is None else module.layer, module.name
