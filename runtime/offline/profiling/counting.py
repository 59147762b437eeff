"""Counting: one unit of windows through the dense model, layer by layer.

Layers are the outer loop, so that a model larger than the device's memory is read once per unit and
not once per window. Windows of about equal length run side by side, shorter ones padded at the end,
where a causal model does not see the padding; it is not counted. Batches depend on the windows
alone, each runs on one thread, and their counts are added in order, so the result depends neither
on the number of threads nor on which finishes first.

Axes: B windows, T tokens of a unit, R rows of a batch (B times its longest window), L layers,
N neurons, S = ceil(N / 8) bytes of packed bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from hotcold.native.errors import CheckpointError
from hotcold.runtime.hardware.lone_pool import lone_pool
from hotcold.runtime.model.checkpoints.bundle import Bundle
from hotcold.runtime.offline.profiling.tally import Tally
from hotcold.runtime.offline.training.dense import DenseModel
from hotcold.runtime.weights import host_memory as memory

Tensor = torch.Tensor
Bits = NDArray[np.uint8]
# Of one layer over some tokens: counts_N, sums_N, and neurons fired for each token.
Counted = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]
BATCH_TOKENS = 2048
_KEEP_FREE = 0.25  # of a device's free memory: hidden states, gates, and everybody else


@dataclass
class _Batch:
    """Windows run side by side.

    Args:
        ids_BT: padded with id 0.
        rows_R: rows that are tokens, not padding.
        places_R: position in the unit of each of these.
        h_RD: the residual stream.
    """

    ids_BT: Tensor
    rows_R: Tensor
    places_R: NDArray[np.int64]
    h_RD: Tensor = field(default_factory=lambda: torch.empty(0))


def count_unit(
    model: DenseModel, windows: Sequence[Sequence[int]], workers: int, bits_TLS: Bits | None = None
) -> Tally:
    """Run windows and count what fires.

    Args:
        model: the model.
        windows: token ids; each starts from an empty context.
        workers: batches run at a time; use 1 on a GPU.
        bits_TLS: filled with the firing neurons of each token, as numpy.packbits packs them.

    Raises:
        CheckpointError: the model yields values that are not finite.
    """
    spec = model.spec
    tally = Tally.empty(spec.n_layers, spec.n_neurons)
    tally.tokens = sum(len(window) for window in windows)
    batches = _batches(windows)

    def run(batch: _Batch, layer: int) -> Counted:
        return _layer(model, batch, layer, bits_TLS)

    def start(batch: _Batch) -> None:
        with torch.inference_mode():
            batch.h_RD = model.embedded(batch.ids_BT)

    with lone_pool(workers) as pool:
        list(pool.map(start, batches))
        for layer in range(spec.n_layers):
            model.layers[layer]  # streamed ones are read once, not by every worker  # noqa: B018
            for counts_N, sums_N, fired_T in pool.map(lambda b, i=layer: run(b, i), batches):
                tally.add_layer(layer, counts_N, sums_N, fired_T)
            if not np.isfinite(tally.sums_LN[layer]).all():
                raise CheckpointError(
                    f"the gates of layer {layer} are not finite on this text; convert the model "
                    "again, or take a checkpoint whose values fit float32"
                )
    return tally


def _layer(model: DenseModel, batch: _Batch, layer: int, bits_TLS: Bits | None) -> Counted:
    """One layer over one batch, whose residual stream moves on."""
    with torch.inference_mode():
        h_RD, x_RD, _ = model.enter(layer, batch.h_RD, *batch.ids_BT.shape)
        gate_RN = model.gates(layer, x_RD)
        value_RN, fired_RN = model.spec.gate_values(gate_RN), model.spec.fires(gate_RN)
        batch.h_RD = model.after_ffn(layer, h_RD, model.combine(layer, x_RD, value_RN))
        if len(batch.rows_R) < len(fired_RN):
            rows_R = batch.rows_R.to(fired_RN.device)
            value_RN, fired_RN = value_RN[rows_R], fired_RN[rows_R]
        if bits_TLS is not None:
            bits_TLS[batch.places_R, layer] = np.packbits(fired_RN.cpu().numpy(), axis=-1)
        return (
            fired_RN.sum(dim=0).cpu().numpy(),
            value_RN.sum(dim=0, dtype=torch.float64).cpu().numpy(),
            fired_RN.sum(dim=1).cpu().numpy(),
        )


def _batches(windows: Sequence[Sequence[int]]) -> list[_Batch]:
    """Windows by length, longest first, about BATCH_TOKENS rows a batch."""
    starts = np.cumsum([0, *[len(window) for window in windows]])
    order = sorted(range(len(windows)), key=lambda i: -len(windows[i]))
    batches, at = [], 0
    while at < len(order):
        length = len(windows[order[at]])
        part = order[at : at + max(1, BATCH_TOKENS // length)]
        at += len(part)
        ids_BT = torch.zeros(len(part), length, dtype=torch.int64)
        for row, index in enumerate(part):
            ids_BT[row, : len(windows[index])] = torch.tensor(list(windows[index]))
        sizes = [len(windows[index]) for index in part]
        rows = [np.arange(size) + row * length for row, size in enumerate(sizes)]
        places = [np.arange(size) + starts[index] for size, index in zip(sizes, part, strict=True)]
        batches.append(
            _Batch(ids_BT, torch.from_numpy(np.concatenate(rows)), np.concatenate(places))
        )
    return batches


def choose_streamed(bundle: Bundle, device: torch.device) -> bool:
    """Whether the model in float32 is too large for a device's free memory."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = memory.available(private=True).nbytes
    return 4 * _weights(bundle) > (1 - _KEEP_FREE) * free


def choose_unit(bundle: Bundle, device: torch.device, streamed: bool) -> int:
    """Tokens of a unit: what an interrupted job loses at most; streamed layers are read once each.

    A few seconds' to a few minutes' work on the machines of 2026.
    """
    if device.type == "cuda":
        return 32768 if streamed else 16384
    return 4096 if streamed else int(min(8192, max(1024, 1e12 / _weights(bundle))))


def _weights(bundle: Bundle) -> float:
    """How many weights it has, about."""
    spec = bundle.spec
    records = spec.n_layers * spec.n_neurons * bundle.record.bytes
    rows = spec.n_layers * spec.n_neurons * spec.neuron_rows * spec.d_model
    return rows + (bundle.weights_bytes - records) / spec.element_bytes
