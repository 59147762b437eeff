"""The Ray transport: the same programs, one actor call an operation, payloads carried by Ray.

Slow (some 0.5 ms a step) and easy to look at: the baseline the native exchange is measured against,
and a way to run where processes share no memory. The driver leads; the actors' loops do not run.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from hotcold.actors.engine.transports.base import Transport
from hotcold.native.bindings.executor import Request, RequestTimes
from hotcold.native.bindings.token_kernels import draw
from hotcold.native.errors import ConfigError
from hotcold.runtime.engine.deployment import Deployment
from hotcold.runtime.engine.request import Sampled
from hotcold.runtime.exchange.segment import ActorState
from hotcold.runtime.plan.program import in_turn, step_slots

STEP_S = 30.0  # deadline of a whole pass


class RayTransport(Transport):
    """Leads the actors through passes, in this process."""

    name = "ray"
    one_at_a_time = True

    def __init__(self, deployment: Deployment, actor: Callable[[str], Any]) -> None:
        super().__init__(deployment, actor)
        self._seq = 0

    @property
    def _actors(self) -> tuple[str, ...]:
        return self._deployment.topology.actors

    def attempt(self, request: Request) -> Iterator[Sampled | RequestTimes]:
        """One item a token."""
        begin = prompt_done = time.monotonic_ns()
        passes = 0
        before = after = self._bytes()
        for item in self._generate(request):
            if not passes:
                prompt_done, after = time.monotonic_ns(), self._bytes()
            passes += 1
            yield item
        end, total = time.monotonic_ns(), self._bytes()
        yield RequestTimes(begin, prompt_done, end, passes, after - before, total - after)

    def _bytes(self) -> int:
        return sum(state.bytes for state in self.states().values())

    def _generate(self, request: Request) -> Iterator[Sampled]:
        ids = request.prompt
        logits = self._prompt(ids)[-1]
        for n in range(request.max_tokens):
            position = len(ids) + n
            id_, logprob, top = draw(logits, request.sampling, position)
            yield Sampled([id_], [logprob], [time.monotonic_ns()], [top])
            if id_ in request.eos or n + 1 == request.max_tokens:
                return
            logits = self._pass(np.array([id_], np.int32), position, 1)[-1]

    def cancel(self, request: Request) -> None:
        """Nothing runs between two tokens."""

    def score(self, request: Request) -> NDArray[np.float32]:
        """Pass by pass."""
        blocks = [self._pass(block, at, len(block)) for at, block in self._blocks(request.prompt)]
        return np.concatenate(blocks)

    def states(self) -> dict[str, ActorState]:
        """Of each actor, by itself."""
        refs = [self._actor(actor).state.remote() for actor in self._actors]
        return dict(zip(self._actors, ray.get(refs), strict=True))

    def spans(self) -> dict[str, NDArray[np.void]]:
        """Of each actor, by itself."""
        refs = [self._actor(actor).spans.remote((actor,)) for actor in self._actors]
        return {actor: own for found in ray.get(refs) for actor, own in found.items()}

    def ask(self, deployment: Deployment) -> None:
        """Refused: nobody would hear of it."""
        raise ConfigError("over the Ray transport only the driver that launched can replan")

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
        self._seq += 1
        deployment, batch = self._deployment, len(tokens)
        begun = [
            self._actor(actor).begin.remote(self._seq, batch, tokens, position, rows)
            for actor in self._actors
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
            call = self._actor(actor).step.remote(index, self._seq, writes, *inputs)
            last[actor] = call
            written.update((at, call) for at, _ in writes)
        ray.get(list(last.values()), timeout=STEP_S)
        if not rows:
            return np.empty((0, deployment.spec.vocab_size), np.float32)
        logits: NDArray[np.float32] = ray.get(
            self._actor(self._actors[0]).logits.remote(rows, deployment.spec.vocab_size),
            timeout=STEP_S,
        )
        return logits
