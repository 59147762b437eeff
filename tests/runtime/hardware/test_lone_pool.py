"""The pool of lone threads: the same bits whichever of its threads computes."""

from collections.abc import Iterator
from dataclasses import dataclass
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from support.predictors import OracleStore, random_oracle, spec_of

from hotcold.policies.predictor.sign import Sign
from hotcold.runtime.hardware.lone_pool import lone_pool
from hotcold.runtime.predictors.predictor import ModelView
from hotcold.runtime.profiles.profile import ActivationProfile

SECONDS = 30  # of waiting for the other layer's thread before the test fails


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_a_new_threads_first_product_is_summed_as_the_callers() -> None:
    rows_ND = torch.from_numpy(np.random.default_rng(0).standard_normal((130, 192)))
    ones_N = torch.ones(130, dtype=torch.float64)
    met = Barrier(2, timeout=SECONDS)

    def first(_: int) -> bytes:
        met.wait()  # so that both threads are new
        return (rows_ND.T @ ones_N).numpy().tobytes()

    with lone_pool(2) as pool:
        own = (rows_ND.T @ ones_N).numpy().tobytes()
        assert list(pool.map(first, range(2))) == [own, own]


@dataclass(frozen=True)
class Meeting(OracleStore):
    """Weights that are handed out once two layers ask: each layer is then a thread's first."""

    met: Barrier

    def neuron_rows(self, layer: int, part: Any) -> Any:
        self.met.wait()
        return super().neuron_rows(layer, part)


@pytest.mark.parametrize("seed", [1, 4])  # where a last bit of float64 outlives float32's rounding
def test_layers_prepared_by_new_threads_and_by_one_are_the_same(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle = random_oracle(seed, layers=2, width=192, neurons=130)
    spec = spec_of(oracle)
    counts_LN = np.random.default_rng(5).geometric(0.02, (2, 130)).clip(0, 400)
    profile = ActivationProfile(counts_LN.astype(np.int64), 400)
    meeting = Meeting(oracle, Barrier(2, timeout=SECONDS))
    found = []
    for workers, store in ((1, OracleStore(oracle)), (2, meeting)):
        monkeypatch.setattr("os.cpu_count", lambda count=workers: count)
        predictor = Sign()
        predictor.prepare(ModelView(spec, store), profile)
        found.append([predictor.native(index).arrays for index in range(spec.n_layers)])
    for one, many in zip(*found, strict=True):
        assert one.keys() == many.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], many[name], err_msg=name)
