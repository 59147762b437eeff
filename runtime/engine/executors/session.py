"""LocalSession: the resident loops as threads of this process, without Ray.

The same programs, exchange and executors as the actors run; for studies, profiling and tests, where
starting a cluster would only cost time. A predictor with a process of its own on the GPU has a
stream of its own here, in the one context there is, and no MPS. Not what users generate with: that
is `hotcold.actors.Engine`.
"""

import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hotcold.native.bindings.device import Mailbox
from hotcold.native.errors import ConfigError
from hotcold.native.options.sampling import Top
from hotcold.runtime.engine.deployment import Deployment
from hotcold.runtime.engine.executors.base import Executor, Shared
from hotcold.runtime.engine.executors.factory import make_executor
from hotcold.runtime.engine.executors.leading import LeadingExecutor, run_through
from hotcold.runtime.engine.moving import RATE, Moved, cannot_move, own_memory
from hotcold.runtime.engine.request import make_request
from hotcold.runtime.exchange.segment import PoisonCode, Segment
from hotcold.runtime.options.config import Sampling
from hotcold.runtime.plan.moved import Move, check_budgets, owners_after, with_owners
from hotcold.runtime.text.generation import TextCodec, Token

EPOCH = 1


class LocalSession:
    """Run a deployment in this process; fired_LN: int64 [L, N] counts to add fired gates into."""

    def __init__(self, deployment: Deployment, fired_LN: NDArray[np.int64] | None = None) -> None:
        self.deployment = deployment
        self.segment = Segment.private(deployment.layout, EPOCH, deployment.spins)
        self.executors: dict[str, Executor] = {}
        mailbox: Mailbox | None = None
        for actor in deployment.topology.actors:
            shared = Shared(fired_LN=fired_LN, mailbox=mailbox)
            made = self.executors[actor] = make_executor(actor, deployment, self.segment, shared)
            mailbox = made.mailbox or mailbox
            if isinstance(made, LeadingExecutor):
                self.leader = made
        self.text = TextCodec(deployment.bundle_path, deployment.spec)
        self._threads = [
            threading.Thread(target=executor.run, name=f"hotcold-{actor}", daemon=True)
            for actor, executor in self.executors.items()
        ]
        for thread in self._threads:
            thread.start()

    def sample(
        self, ids: Sequence[int], sampling: Sampling
    ) -> Generator[tuple[int, float], None, None]:
        """Ids and log probabilities that continue ids.

        Several threads may do so at once. Who stops taking them early closes the iterator.
        """
        with closing(self._sampled(ids, sampling)) as sampled:
            for id_, logprob, *_ in sampled:
                yield id_, logprob

    def _sampled(
        self, ids: Sequence[int], sampling: Sampling
    ) -> Generator[tuple[int, float, int, Top], None, None]:
        context = self.deployment.context
        checked = self.text.ids(ids, context)
        request = make_request(checked, sampling, context, self.text.eos_ids)
        with closing(self.leader.generate(request)) as stream:
            for ready in stream:
                yield from ready.each

    def generate(self, prompt: str | Sequence[int], sampling: Sampling) -> Iterator[Token]:
        """Tokens that continue a prompt."""
        ids = self.text.ids(prompt, self.deployment.context, sampling.special)
        stream = self.text.stream(sampling)
        with closing(self._sampled(ids, sampling)) as sampled:
            for id_, logprob, time_ns, top in sampled:
                yield from stream.push(id_, logprob, top, time_ns)
                if stream.finish:
                    return
        yield from stream.flush()

    def logits(self, ids: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Run ids through the model.

        Returns:
            logits float32 [T, V], and which neurons were proposed, bool [T, L, N] (all True where
            the executors go gate-first).

        Raises:
            ConfigError: ids that are empty, too many, or outside the vocabulary.
        """
        spec = self.deployment.spec
        checked = self.text.ids(ids, self.deployment.context)
        logits = np.zeros((len(checked), spec.vocab_size), np.float32)
        width = -(-spec.n_neurons // 8)
        fill = 0 if self.deployment.predicts else 255
        masks = np.full((len(checked), spec.n_layers, width), fill, np.uint8)
        request = make_request(checked, None, self.deployment.context)
        request = replace(request, logits_PV=logits, masks_PLN=masks)
        run_through(self.leader.generate(request))
        bits = np.unpackbits(masks, axis=-1, count=spec.n_neurons, bitorder="little")
        return logits, bits.astype(bool)

    def move(self, moves: Iterable[Move], rate: int = RATE) -> Moved:
        """Give single neurons (layer, neuron, device) to other devices, while tokens run.

        Raises:
            ConfigError: moves that cannot be; BudgetError: no room. Nothing has changed then.
        """
        now = self.leader.deployment
        plan = with_owners(now.plan, owners_after(now.plan, moves))
        check_budgets(plan)
        return self.replan(replace(now, plan=plan), rate)

    def replan(self, to: Deployment, rate: int = RATE) -> Moved:
        """Become another deployment by moves alone; ConfigError where that cannot be."""
        now, owns = self.leader.deployment, own_memory(self.deployment)
        if (why := cannot_move(now, to)) is not None:
            raise ConfigError(f"neurons cannot be moved: {why}")
        places = {one.member.index: one for one in self.executors.values()}
        takers = {device: places[device] for device in owns}
        moved = self.leader.move(to, takers, rate)
        assert moved is not None
        self.deployment = self.leader.deployment
        return moved

    def close(self) -> None:
        """End the loops and free everything. Idempotent."""
        self.segment.poison(PoisonCode.CLOSED)
        for thread in self._threads:
            thread.join()
        for executor in reversed(self.executors.values()):
            executor.close()  # a predictor before the GPU executor, whose memory it may use
        self.segment.close()

    def __enter__(self) -> "LocalSession":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
