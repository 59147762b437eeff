"""The Ray transport: the same programs, one actor call an operation, payloads carried by Ray.

Slow (some 0.5 ms a step) and easy to look at: the baseline the native exchange is measured against,
and a way to run where processes share no memory. The driver leads; the actors' loops do not run.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from hotcold.native.bindings.executor import Request
from hotcold.native.bindings.kernels import sample
from hotcold.runtime.engine.deployment import Deployment
from hotcold.runtime.engine.executor import Sampled
from hotcold.runtime.plan.program import in_turn, step_slots

STEP_S = 30.0  # deadline of a whole pass


class StepDriver:
    """Leads three actors through passes.

    Args:
        actors: handles by name.
        deployment: what they have loaded.
    """

    def __init__(self, actors: Mapping[str, Any], deployment: Deployment) -> None:
        self._actors, self._deployment, self._seq = actors, deployment, 0

    def generate(self, request: Request) -> Iterator[Sampled]:
        """Run a request; one item a token."""
        ids = request.prompt
        logits = self._prompt(ids)[-1]
        for n in range(request.max_tokens):
            position = len(ids) + n
            id_, logprob = sample(
                logits,
                temperature=request.temperature,
                top_k=request.top_k,
                top_p=request.top_p,
                seed=request.seed,
                position=position,
            )
            yield Sampled([id_], [logprob])
            if id_ in request.eos or n + 1 == request.max_tokens:
                return
            logits = self._pass(np.array([id_], np.int32), position, 1)[-1]

    def score(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """Logits of every position, float32 [T, V]."""
        blocks = [self._pass(block, at, len(block)) for at, block in self._blocks(ids)]
        return np.concatenate(blocks)

    def _prompt(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        logits = np.empty((0, 0), np.float32)
        for at, block in self._blocks(ids):
            logits = self._pass(block, at, 1 if at + len(block) == len(ids) else 0)
        return logits

    def _blocks(self, ids: NDArray[np.int32]) -> Iterator[tuple[int, NDArray[np.int32]]]:
        size = self._deployment.layout.max_batch
        for at in range(0, len(ids), size):
            yield at, np.ascontiguousarray(ids[at : at + size])

    def _pass(self, tokens: NDArray[np.int32], position: int, rows: int) -> NDArray[np.float32]:
        """One pass: begin everywhere, every step in turn, then fetch the logits."""
        self._seq += 1
        deployment, batch = self._deployment, len(tokens)
        begun = [
            actor.begin.remote(self._seq, batch, tokens if name == "gpu" else None, position, rows)
            for name, actor in self._actors.items()
        ]
        ray.get(begun, timeout=STEP_S)
        written: dict[int, Any] = {}  # offset -> the call that wrote it
        last: dict[str, Any] = {}  # actor -> its latest call: an actor takes its steps in order
        for actor, index in in_turn(deployment.programs):
            reads, writes = step_slots(deployment.programs[actor][index], deployment.layout, batch)
            inputs: Sequence[Any] = [
                *dict.fromkeys(written[at] for at, _ in reads if at in written),
                *([last[actor]] if actor in last else []),
            ]
            call = self._actors[actor].step.remote(index, self._seq, writes, *inputs)
            last[actor] = call
            written.update((at, call) for at, _ in writes)
        ray.get(list(last.values()), timeout=STEP_S)
        if not rows:
            return np.empty((0, deployment.spec.vocab_size), np.float32)
        logits: NDArray[np.float32] = ray.get(
            self._actors["gpu"].logits.remote(rows, deployment.spec.vocab_size), timeout=STEP_S
        )
        return logits
