"""Planted models for tests: how they are asked for, walked along and measured."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from support.oracle import F64, Oracle, Trace

from hotcold.policies.placement.greedy import Greedy
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.offline.plant.making import PlantReport
from hotcold.runtime.offline.plant.options import PlantOptions
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.predictors.predictor_file import load_predictors

UNSEEN = 1250  # tokens that statistics are measured on
LENGTH = 250  # tokens of a context


def options(shape: str = "small", **more: Any) -> PlantOptions:
    return PlantOptions(shape, **{"layers": 2, "tokens": 1024, "seed": 7, **more})


def session(model: Path, **more: Any) -> LocalSession:
    prepared = prepare_model(EngineConfig(model=model, **more))
    return LocalSession(deploy(prepared, solve(prepared, Greedy())))


def walk(oracle: Oracle, count: int) -> list[int]:
    """Tokens of the walk, read from the head: the row of a token is its predecessor's vector."""
    embed, head = (
        oracle.tensors[next(name for name in oracle.tensors if name.endswith(ending))]
        for ending in ("embed_tokens.weight", "lm_head.weight")
    )
    following = np.argmax(embed[:, 1:] @ head[:, 1:].T, axis=1)
    ids = [3]
    while len(ids) < count:
        ids.append(int(following[ids[-1]]))
    assert len(set(ids)) == count, "the walk turned back"
    return ids


def traces(oracle: Oracle, count: int = UNSEEN) -> Iterator[Trace]:
    """Passes along the walk, in contexts that no calibration has seen."""
    ids = walk(oracle, count)
    for begin in range(0, count, LENGTH):
        yield oracle.forward(ids[begin : begin + LENGTH])


@dataclass(frozen=True)
class Measured:
    """What a model and its predictor do: tokens for which each neuron fired, and pairs of both."""

    tokens: int
    fired_LN: npt.NDArray[np.int64]
    proposed: int
    hit: int

    @property
    def density_L(self) -> F64:
        """Share of each layer's neurons that fire."""
        return np.asarray(self.fired_LN.mean(axis=1) / self.tokens)

    @property
    def recall(self) -> float:
        """Share of the fired that were proposed."""
        return self.hit / float(self.fired_LN.sum())

    @property
    def precision(self) -> float:
        """Share of the proposed that fired."""
        return self.hit / self.proposed


def measure(oracle: Oracle, planted: PlantReport, count: int = UNSEEN) -> Measured:
    """Run along the walk and count."""
    layers = load_predictors(planted.path, planted.spec).layers
    fired_LN = np.zeros((planted.spec.n_layers, planted.spec.n_neurons), np.int64)
    proposed = hit = 0
    for trace in traces(oracle, count):
        fires_LTN = trace.gates_LTN > 0
        fired_LN += fires_LTN.sum(axis=1)
        for index, layer in enumerate(layers):
            scores = layer.scores(trace.inputs_LTD[index].astype(np.float32))
            proposes = scores >= layer.threshold
            proposed += int(proposes.sum())
            hit += int((proposes & fires_LTN[index]).sum())
    return Measured(count, fired_LN, proposed, hit)


def overlap(trace: Trace) -> float:
    """How much of what fires for a token also fires for the next."""
    fires = trace.gates_LTN > 0
    both = (fires[:, 1:] & fires[:, :-1]).sum()
    return float(both / fires[:, 1:].sum())


def likeness(oracle: Oracle) -> float:
    """Correlation of how often neurons fire early and late in the walk."""
    ids = walk(oracle, UNSEEN)
    early, late = (
        oracle.forward(part).counts_LN.reshape(-1) for part in (ids[:LENGTH], ids[-LENGTH:])
    )
    return float(np.corrcoef(early, late)[0, 1])
