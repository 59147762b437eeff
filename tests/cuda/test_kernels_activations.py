"""The CUDA kernels of neurons, of a pass and of dense prompts, with every activation."""

from typing import Any

import numpy as np
import pytest
from support.activations import SPARSE_KINDS, clear_threshold, factor, fires
from support.kernels import BATCHES, DTYPES, close, guarded, relu_table, some, table

from hotcold.native.bindings import device_kernels as kernels
from hotcold.native.bindings import device_prompt_kernels as prompt_kernels

pytestmark = pytest.mark.gpu

SHAPES = some([(51, 35), (700, 256), (900, 2048)], 0, 1)
BITS = {"float32": 24, "float16": 22, "bfloat16": 16}  # of an activation of a dense prompt


@pytest.fixture(scope="module")
def plugin(plugin: Any) -> Any:
    return guarded(plugin)


class Case:
    """A table of neurons, tokens, and what an activation makes of both."""

    def __init__(self, name: str, gated: bool, dtype: str, tokens: int, shape: Any) -> None:
        rows, d = shape
        self.rng = np.random.default_rng(rows + tokens)
        self.x = self.rng.standard_normal((tokens, d)).astype(np.float32)
        self.bias, self.up_bytes, up = 0, None, None
        if gated:
            self.records, (gate, up_ND, self.down) = table(self.rng, rows, d, dtype)
            self.gates, up = np.asarray(self.x @ gate.T), np.asarray(self.x @ up_ND.T)
            self.up_bytes = d * (4 if dtype == "float32" else 2)
        else:
            made = relu_table(self.rng, rows, d, dtype)
            self.records, self.bias, (gate, self.down, bias) = made
            self.gates = np.asarray(self.x @ gate.T + bias)
        self.threshold = clear_threshold(name, self.gates)
        self.fires = fires(name, self.gates, self.threshold)
        self.c = factor(name, self.gates, up, self.threshold)
        self.how = {"gated": gated, "activation": name, "threshold": self.threshold}

    def near(self, distance: float) -> Any:
        """Where rounding may decide whether a neuron fires."""
        return np.abs(self.gates - self.threshold) < distance


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("name", "gated"), SPARSE_KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_ffn(plugin: Any, name: str, gated: bool, dtype: str, batch: int, shape: Any) -> None:
    """Of a list, of all rows, and a token alone; what fired counts where its factor is 0, too."""
    case = Case(name, gated, dtype, batch, shape)
    rows, unsure = shape[0], case.near(1e-5).sum()
    bounds = np.linspace(0, rows, 9).astype(np.int32)
    ids = np.flatnonzero(case.rng.random(rows) < 0.3).astype(np.int32)
    members = case.rng.integers(1, 2**batch, len(ids), dtype=np.uint64).astype(np.uint32)
    on = ((members[:, None] >> np.arange(batch, dtype=np.uint32)) & 1).T > 0
    how = {"bias": case.bias, **case.how}
    y, fired, _ = kernels.ffn(plugin, case.records, dtype, case.x, bounds, ids, members, **how)
    close(y, (case.c[:, ids] * on) @ case.down[ids])
    assert abs(fired - (case.fires[:, ids] & on).sum()) <= unsure
    own = ids[on[-1]]
    last, ones = case.x[-1:].copy(), np.ones(len(own), np.uint32)
    alone, _, _ = kernels.ffn(plugin, case.records, dtype, last, bounds, own, ones, **how)
    np.testing.assert_array_equal(alone[0], y[-1])
    y, fired, _ = kernels.ffn(plugin, case.records, dtype, case.x, bounds, **how)
    close(y, case.c @ case.down)
    assert abs(fired - case.fires.sum()) <= unsure


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", some([7, 70], 0))
@pytest.mark.parametrize(("name", "gated"), SPARSE_KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_dense_prompts(
    plugin: Any, name: str, gated: bool, dtype: str, tokens: int, shape: Any
) -> None:
    case = Case(name, gated, dtype, tokens, shape)
    mask = case.rng.random((tokens, shape[0])) < 0.4
    ids, near = np.arange(shape[0], dtype=np.int32), case.near(1e-3)
    how = prompt_kernels.Neurons(case.up_bytes, case.bias, mask, ids, name, case.threshold)
    c, fired = prompt_kernels.product(plugin, case.records, dtype, case.x, neurons=how)
    tolerance = 2e-5 + 4 * 2.0 ** -BITS[dtype] + shape[1] / 2 * 2.0**-24
    close(c * ~near, case.c * mask * ~near, tolerance)
    assert abs(fired - (case.fires & mask).sum()) <= near.sum()
