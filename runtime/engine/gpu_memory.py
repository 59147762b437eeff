"""Sizes of what a GPU executor holds beside weights and KV: tables, scratch, vectors, graphs.

The same sums as native/cuda/memory/model.cu lays out, rounded up, so that a budget can be checked
before anything is allocated. Called by gpu.py, which adds them up, and by `hotcold roofline`; knows
model shapes and no device.
"""

from collections.abc import Sequence
from typing import Any

from hotcold.runtime.model.spec import ModelSpec

HOT_CHUNKS = 64  # partial sums of the hot FFN; enough blocks to fill a large GPU
ATTENTION_PIECE = (
    256  # positions that decode attention sums up on their own; native/cuda/kernels/kernels.h
)
KERNELS_A_LAYER = 13  # of a graph, at most; see native/cuda/executor/graph.cu


def graph_shape(n_layers: int, max_batch: int) -> tuple[int, int]:
    """Kernels of a pass's graph, at most, and how many graphs there are: one a power of two."""
    return KERNELS_A_LAYER * n_layers + 8, (max_batch - 1).bit_length() + 1


def int8_bytes(layer: Any, spec: ModelSpec) -> int:
    """Bytes of a predictor layer quantised by row: weights, scales, bias."""
    if layer.form == "sign":
        return int(layer.bytes)  # a bit a weight already
    width = int(layer.fc1.shape[0])
    bias = 0 if layer.bias_N is None else int(layer.bias_N.nbytes)
    return width * (spec.d_model + spec.n_neurons) + 4 * (width + spec.n_neurons) + bias


def kept_bytes(layers: Sequence[Any], int8: bool) -> int:
    """Of the predictors' vectors, which stay on the device where the matrices leave it."""
    total = 0
    for layer in layers:
        if layer.form == "matrices":
            scales = 4 * (layer.fc1.shape[0] + layer.fc2.shape[0]) if int8 else 0
            total += scales + (0 if layer.bias_N is None else int(layer.bias_N.nbytes))
        elif layer.form == "sign":
            total += int(layer.bytes) - int(layer.signs_NW.nbytes)
    return total


def pass_bytes(spec: ModelSpec, max_batch: int, hidden: int = 0) -> int:
    """Device memory of a sparse pass that a dense one may use too, rounded up.

    Args:
        spec: the model.
        max_batch: tokens of a pass.
        hidden: widest predictor; 0: none.
    """
    B = 1 << (max_batch - 1).bit_length()
    D, N = spec.d_model, spec.n_neurons
    stream = HOT_CHUNKS * D + 3 * D + 2 * (spec.q_dim + spec.kv_dim) + spec.embed_width
    planes = 16 * -(-D // 64) + 1  # of the form sign
    return 4 * B * (stream + hidden + planes + 2 * N + 1)  # every neuron, and every one audited


def table_bytes(
    spec: ModelSpec, context: int, max_batch: int, early: int = 1, kept: int = 0
) -> int:
    """Device memory beside weights, KV and passes for any plan, rounded up; cuda/model.cu has it.

    A plan that owns every neuron needs the most: eight bytes each say where its record lies.

    Args:
        spec: the model.
        context: positions of the KV cache.
        max_batch: tokens of a pass.
        early: layers that predictions are ahead, at most.
        kept: bytes of predictors that never leave the device.
    """
    B = 1 << (max_batch - 1).bit_length()
    L, N, D = spec.n_layers, spec.n_neurons, spec.d_model
    owners = L * (3 * N + 2 * -(-N // 32))  # proposals, addresses, who owns
    lists = (early + 1) * 2 * (2 * N + 1) + 2 * N  # hot and audited, cold
    norms = (2 * L + 1) * D * (2 if spec.norm == "layer" else 1)
    biases = L * (spec.q_dim + 2 * spec.kv_dim + 2 * D) if spec.biases else 0
    projection = D * spec.embed_width if spec.embed_dim is not None else 0
    tables = owners + lists + norms + biases + projection + context * spec.head_dim
    counts = L * HOT_CHUNKS * 8  # and stamps
    kept += attention_bytes(spec, context, max_batch)
    return 4 * (B * spec.vocab_size + tables + counts) + kept + (L * 24 + 6 * early + 64) * 256


def attention_bytes(spec: ModelSpec, context: int, max_batch: int) -> int:
    """Device memory of decode attention: a sum for every piece of the positions, rounded up."""
    rows = spec.n_heads << (max_batch - 1).bit_length()
    pieces = -(-context // ATTENTION_PIECE)
    sums = rows * pieces * (spec.head_dim + 2) if pieces > 1 else 0
    return 4 * (rows + sums) + 3 * 256


def scratch_bytes(spec: ModelSpec, context: int, max_batch: int) -> int:
    """Device memory beside weights and KV without a dense prompt form, rounded up."""
    return pass_bytes(spec, max_batch) + table_bytes(spec, context, max_batch)
