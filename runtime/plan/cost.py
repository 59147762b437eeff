"""The cost model: how long a token takes under a placement, from a hardware profile and counts.

Used by the policy `latency`, by `hotcold solve`, and wherever seconds are needed for another
machine. One layer, from the bytes that the token reads and a rate for each device:

    dense     attention, its KV cache and predictor, each over the rate of the device it lives on;
              the GPU executor reads what lies in host memory over PCIe
    hot       sum over the GPU's neurons of (gate * q + (1 - gate) * p) * bytes / GPU rate; of
              several GPU executors, the slowest one's
    cold      the same of the CPU's neurons / host rate, which several CPU executors share
    exchange  T_sync * P(some cold neuron is proposed)
    layer     dense + max(hot, cold) + exchange

A schedule may fetch some of the cold neurons, which then cost the bus's rate on the hot side. It
may exchange in every layer, or let hot wait for cold (then their sum counts, not the longer one).
The sum also counts on a machine without a GPU whose executors share all cores: while one reads, the
other waits.

p is the probability that a neuron fires and q that the predictor proposes it. A predictor that
proposes a share d of a layer in which f fires is taken to over-fire evenly,
q = p + (1 - p) * (d - f) / (1 - f), and one that proposes less to miss evenly, q = p * d / f; d = 1
is gate-first, every gate row read. In a batch a neuron is read if any sequence needs it,
1 - (1 - p)**batch, which is an upper bound: real tokens agree more than chance. A rate is the
memory's, or the arithmetic's where that is slower: a byte of a matrix serves every sequence, one of
a neuron those that need it.

Not in it: kernel launches, caches, the gate rows that the predictor `exact` reads in its own actor,
and that loads vary from token to token (the mean of a maximum is more than the maximum of the
means).

Shape suffixes: L layers, N neurons of a layer.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.names import DTYPE_BYTES, DTYPES
from hotcold.runtime.plan.dealing import HOST
from hotcold.runtime.plan.fetch import fetched
from hotcold.runtime.plan.plan import Plan
from hotcold.runtime.plan.problem import Module, Placement, Problem
from hotcold.runtime.plan.schedule import Schedule

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class LayerTime:
    """Seconds that one layer takes for a token.

    Args:
        fetched_s: the neurons that the GPU executor reads over the bus.
    """

    dense_s: float
    hot_s: float
    cold_s: float
    exchange_s: float
    fetched_s: float = 0.0
    overlap: bool = True

    @property
    def total_s(self) -> float:
        """The layer's time: what the two executors do overlaps, the rest does not."""
        gpu_s = self.hot_s + self.fetched_s
        both_s = max(gpu_s, self.cold_s) if self.overlap else gpu_s + self.cold_s
        return self.dense_s + both_s + self.exchange_s


@dataclass(frozen=True)
class TokenTime:
    """Seconds of one decoded token (one pass of the batch): layers, and norms and head."""

    layers: tuple[LayerTime, ...]
    rest_s: float

    @property
    def total_s(self) -> float:
        """The whole token."""
        return self.rest_s + sum(layer.total_s for layer in self.layers)

    @property
    def tokens_per_s(self) -> float:
        """Decode speed of one sequence."""
        return 1 / self.total_s


class CostModel:
    """Times of a problem's placements.

    Args:
        selective: whether the exchange of a layer is skipped for tokens without a cold neuron; if
            not, every layer that has cold neurons pays for it.
        dtype_LN: formats of neurons, as in Placement.
    """

    def __init__(
        self,
        problem: Problem,
        selective: bool = True,
        dtype_LN: NDArray[np.int8] | None = None,
    ) -> None:
        self.problem = problem
        self.selective = selective
        p_LN = problem.activations_LN
        q_LN = _proposed(p_LN, problem.predictor_density_L)
        self.proposed_LN = _union(q_LN, problem.batch)
        # A neuron that fires was proposed, or it would not be computed at all.
        fired_LN = np.minimum(_union(p_LN, problem.batch), self.proposed_LN)

        def read_LN(bytes_L: Any, gate: float, read: float) -> F64:  # noqa: ANN401 - or one for all
            share_LN = gate * self.proposed_LN + (read - gate) * fired_LN
            made_LN: F64 = share_LN * bytes_L
            return made_LN

        self.bytes_LN = read_LN(
            problem.neuron_bytes_L[:, None], problem.gate_share, problem.read_share
        )
        self._formats: dict[str, NDArray[np.bool_]] = {}
        for name, other in problem.formats.items() if dtype_LN is not None else ():
            own_LN = np.asarray(dtype_LN == DTYPES[name])
            self._formats[name] = own_LN
            other_LN = read_LN(other.bytes, other.gate_share, other.read_share)
            self.bytes_LN = np.where(own_LN, other_LN, self.bytes_LN)
        gate, read = problem.gate_share, problem.read_share
        alone = float((gate * q_LN + (read - gate) * np.minimum(p_LN, q_LN)).sum())
        together = float((gate * self.proposed_LN + (read - gate) * fired_LN).sum())
        # Tokens that a byte of the neurons read serves, on the average.
        self._tokens = problem.batch * alone / together if together else 1.0
        hardware = problem.hardware
        self._rates = {
            "hot": (hardware.gpu_gb_per_s, hardware.gpu_gflops),
            "cold": (hardware.host_gb_per_s, hardware.host_gflops),
            "fetched": (hardware.pcie_gb_per_s, hardware.gpu_gflops),
        }
        self.hot_s_per_byte, self.cold_s_per_byte = (
            self._s_per_byte(share, problem.dtype, self._tokens) for share in ("hot", "cold")
        )
        self.overlap = not hardware.in_turn
        self.hot_s_per_byte /= problem.gpus if self.overlap else 1  # which read side by side

    def _s_per_byte(self, share: str, dtype: str, tokens: float) -> float:
        """Seconds that a byte of weights takes which so many tokens multiply."""
        return _rate(*self._rates[share], 2.0 * tokens / DTYPE_BYTES.get(dtype, 4))

    def neurons(self, share: str, chosen_LN: NDArray[np.bool_]) -> F64:
        """Seconds by layer that chosen neurons take as "hot", "cold" or "fetched"."""
        others, seconds_L = chosen_LN, np.zeros(len(chosen_LN))
        for name, own_LN in self._formats.items():
            bytes_L = np.where(chosen_LN & own_LN, self.bytes_LN, 0.0).sum(axis=1)
            seconds_L += bytes_L * self._s_per_byte(share, name, self._tokens)
            others = others & ~own_LN
        bytes_L = np.where(others, self.bytes_LN, 0.0).sum(axis=1)
        seconds_L += bytes_L * self._s_per_byte(share, self.problem.dtype, self._tokens)
        return seconds_L

    def token(self, device_LN: NDArray[np.int8], modules: Mapping[str, str]) -> TokenTime:
        """Times under a placement of neurons (index of a device) and modules (device by name)."""
        dense_L, rest_s = self.dense(modules)
        hot_L, cold_L = self.hot(device_LN), self.cold(device_LN)
        exchange_L = self.exchange(device_LN < self.problem.gpus)
        rows = zip(dense_L, hot_L, cold_L, exchange_L, strict=True)
        layers = tuple(
            LayerTime(
                *(float(dense), float(hot), float(cold), float(exchange)), overlap=self.overlap
            )
            for dense, hot, cold, exchange in rows
        )
        return TokenTime(layers, rest_s)

    def hot(self, device_LN: NDArray[np.int8]) -> F64:
        """Seconds by layer of the GPU executors: of the slowest, or of all that take turns."""
        each_DL = [self.neurons("hot", device_LN == index) for index in range(self.problem.gpus)]
        return np.asarray((np.max if self.overlap else np.sum)(each_DL, axis=0))

    def cold(self, device_LN: NDArray[np.int8]) -> F64:
        """The same of the CPU executors; a neuron of device -1 is nobody's."""
        indices = range(self.problem.gpus, len(self.problem.devices))
        each_DL = [self.neurons("cold", device_LN == index) for index in indices]
        share = len(each_DL) if self.overlap else 1
        return np.asarray((np.max if self.overlap else np.sum)(each_DL, axis=0) * share)

    def dense(self, modules: Mapping[str, str]) -> tuple[F64, float]:
        """Seconds of each layer's modules, and of those that belong to no layer."""
        dense_L, rest_s = np.zeros(self.problem.shape[0]), 0.0
        for module in self.problem.modules:
            seconds = self.module_s(module, modules[module.name])
            if module.layer is None:
                rest_s += seconds
            else:
                dense_L[module.layer] += seconds
        return dense_L, rest_s

    def by_layer(self, modules: Mapping[str, str], kinds: Collection[str]) -> F64:
        """Seconds of each layer's modules of some kinds."""
        seconds_L = np.zeros(self.problem.shape[0])
        for module in self.problem.modules:
            if module.layer is not None and module.kind in kinds:
                seconds_L[module.layer] += self.module_s(module, modules[module.name])
        return seconds_L

    def read_ahead(self, modules: Mapping[str, str], early_L: Sequence[int]) -> F64:
        """Seconds of reading cold neurons that attention hides, at most, in each layer.

        early_L is above 0 where a layer's list comes early and is read ahead.
        """
        if not self.problem.hardware.has_gpu:
            return np.zeros(self.problem.shape[0])  # memory is busy with attention
        return np.where(np.array(early_L) > 0, self.by_layer(modules, ("attention", "kv")), 0.0)

    def module_s(self, module: Module, device: str) -> float:
        """Seconds that one module takes on a device."""
        share = "fetched"
        if device == self.problem.devices[0]:
            share = "hot"
        elif module.kind == "predictor":  # computed where it lies
            share = "cold"
        tokens = 1 if module.kind == "kv" else self.problem.batch  # each sequence has its own keys
        rate = self._s_per_byte(share, self.problem.dtype, tokens)
        return module.bytes * module.read_share * rate

    def exchange(self, hot_LN: NDArray[np.bool_]) -> F64:
        """Seconds that each layer spends on the exchange."""
        sync_s = self.problem.hardware.sync_s
        if not self.selective:
            return np.where(hot_LN.all(axis=1), 0.0, sync_s)
        none_L: F64 = np.exp(np.where(hot_LN, 0.0, self.log_quiet_LN).sum(axis=1))
        return sync_s * (1 - none_L)

    @cached_property
    def log_quiet_LN(self) -> F64:
        """Log of the probability that a neuron is not proposed; minus infinity where it always is.

        Neurons are taken as independent, so these add up to that of a set.
        """
        with np.errstate(divide="ignore"):
            quiet_LN: F64 = np.log1p(-self.proposed_LN)
        return quiet_LN


def predict(problem: Problem, placed: Placement | Plan, selective: bool = True) -> TokenTime:
    """Seconds of one token under a placement or plan of this problem."""
    model = CostModel(problem, selective, placed.dtype_LN)
    return model.token(placed.device_LN, placed.modules)


def predict_schedule(problem: Problem, placed: Placement | Plan, schedule: Schedule) -> TokenTime:
    """Seconds of one token under a placement and a schedule.

    What of the schedule counts: where it synchronises always, what it fetches over the bus, what it
    reads ahead, and in which layers one executor waits for the other. An early prediction costs the
    same bytes.
    """
    model = CostModel(problem, dtype_LN=placed.dtype_LN)
    fetched_LN = fetched(placed.device_LN, schedule.fetch, problem.gpus)
    on_gpu_LN = (placed.device_LN < problem.gpus) | fetched_LN
    plain = model.token(placed.device_LN, placed.modules)
    always_L = CostModel(problem, selective=False).exchange(on_gpu_LN)
    selective_L = model.exchange(on_gpu_LN)
    over_bus_L = model.neurons("fetched", fetched_LN)
    cold_L = model.cold(np.where(fetched_LN, HOST, placed.device_LN).astype(np.int8))
    early_L = schedule.lookahead if schedule.read_ahead else [0] * len(schedule.lookahead)
    hidden_L = model.read_ahead(placed.modules, early_L)
    after = {(source, target) for source, target in schedule.after}
    layers = tuple(
        replace(
            layer,
            cold_s=max(float(cold_L[i] - hidden_L[i]), 0.0),
            exchange_s=float((selective_L if sync == "selective" else always_L)[i]),
            fetched_s=float(over_bus_L[i]),
            overlap=layer.overlap and (f"cold.{i}", f"hot.{i}") not in after,
        )
        for i, (layer, sync) in enumerate(zip(plain.layers, schedule.sync, strict=True))
    )
    return TokenTime(layers, plain.rest_s)


def _proposed(p_LN: F64, density_L: F64) -> F64:
    """Probability that a neuron is proposed, q; see the head of this file."""
    fired_L1, density_L1 = p_LN.mean(axis=1, keepdims=True), density_L[:, None]
    over_L1 = (density_L1 - fired_L1) / np.maximum(1 - fired_L1, 1e-300)
    under_L1 = density_L1 / np.maximum(fired_L1, 1e-300)
    more_LN = p_LN + (1 - p_LN) * np.clip(over_L1, 0.0, 1.0)
    q_LN: F64 = np.where(density_L1 >= fired_L1, more_LN, p_LN * np.minimum(under_L1, 1.0))
    return np.clip(q_LN, 0.0, 1.0)


def _union(p_LN: F64, batch: int) -> F64:
    """Probability that at least one of `batch` independent tokens needs a neuron."""
    return p_LN if batch == 1 else 1 - (1 - p_LN) ** batch


def _rate(gb_per_s: float, gflops: float, flops_per_byte: float) -> float:
    """Seconds a byte of weights takes: the memory's or the arithmetic's, whichever is longer."""
    return max(1 / gb_per_s, flops_per_byte / gflops) * 1e-9
