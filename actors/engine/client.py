"""Client: what any driver can do with a running actor group, its own or one it connected to."""

import itertools
import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from hotcold.actors.engine import requests
from hotcold.actors.engine.lookup import Lookup
from hotcold.actors.engine.many import Completion, Tokens, completions
from hotcold.actors.engine.replanning import across_plans
from hotcold.actors.engine.stats import ActorStats, EngineStats
from hotcold.actors.engine.streaming import AsyncBatches, Batches, streamed
from hotcold.actors.engine.transports.base import Transport
from hotcold.actors.engine.transports.native import NativeTransport
from hotcold.actors.engine.transports.ray_calls import RayTransport
from hotcold.actors.group.actor_group import ActorGroup
from hotcold.actors.group.executor_actors import Facts
from hotcold.actors.telemetry.following import publishers
from hotcold.native.bindings.executor import Request, RequestTimes
from hotcold.native.errors import ActorLostError, ConfigError, HotcoldError, PlanReplaced
from hotcold.runtime.engine.deployment import Deployment
from hotcold.runtime.engine.executors.factory import roles
from hotcold.runtime.engine.moving import RATE, Moved, cannot_move
from hotcold.runtime.engine.request import Sampled, make_request
from hotcold.runtime.options.config import EngineConfig, Sampling
from hotcold.runtime.text.generation import GenerationStats, TextCodec, Token, TokenStream
from hotcold.runtime.tracing.spans import Span, as_spans

TRANSPORTS: dict[str, type[Transport]] = {
    made.name: made for made in (NativeTransport, RayTransport)
}


class Client:
    """Talks to three actors.

    `group` and `recovers` are the owner's, and None when connected; `restarts` are the losses that
    a generation survives; `text` is the model's tokenizer, where the caller has read it.

    """

    def __init__(
        self,
        name: str,
        actors: dict[str, Any],
        deployment: Deployment,
        group: ActorGroup | None = None,
        recovers: requests.Recovers | None = None,
        restarts: int = EngineConfig.restarts,
        text: TextCodec | None = None,
    ) -> None:
        self.name, self.actors, self._deployment = name, actors, deployment
        self._restarts = restarts
        self.last: GenerationStats | None = None
        self._group = group
        self._recovers = recovers or Lookup(name, actors)
        self._text = text or TextCodec(deployment.bundle_path, deployment.spec)
        self._busy = threading.Lock()
        self._process = os.getpid()

    def _actor(self, name: str) -> Any:
        """An actor's handle; ConfigError where the engine is closed or was forked."""
        if os.getpid() != self._process:
            raise ConfigError(
                f"engine {self.name!r} belongs to process {self._process}, and Ray survives no "
                "fork; start the child by spawn and call Engine.connect(name) there"
            )
        if name not in self.actors:
            raise ConfigError(f"engine {self.name!r} is closed; launch another")
        return self.actors[name]

    @contextmanager
    def _idle(self) -> Iterator[None]:
        """Hold the engine where its transport does one thing at a time.

        Raises:
            ConfigError: a generation of this client runs.
        """
        if not self._transport.one_at_a_time:
            yield
            return
        if not self._busy.acquire(blocking=False):
            raise ConfigError("a generation is running; finish or close its iterator first")
        try:
            yield
        finally:
            self._busy.release()

    @property
    def _leader(self) -> str:
        return self._deployment.topology.leader.actor

    @property
    def _transport(self) -> Transport:
        return TRANSPORTS[self._deployment.transport](self._deployment, self._actor)

    def _request(self, prompt: str | Sequence[int], sampling: Sampling) -> Request:
        context = self._deployment.context
        ids = self._text.ids(prompt, context, sampling.special)
        return make_request(ids, sampling, context, self._text.eos_ids)

    def _one(self, request: Request) -> Tokens:
        with self._idle():
            return (yield from self._tokens(request))

    def _many(self, made: Sequence[Request]) -> Iterator[Completion]:
        with self._idle():
            yield from completions(made, self.sequences, self._tokens)

    def astream(self, prompt: str | Sequence[int], sampling: Sampling) -> AsyncBatches:
        """Like `Engine.agenerate`: lists of tokens that came together, then their figures.

        Raises:
            ConfigError: a prompt that cannot be used; raised at once.
        """
        request = self._request(prompt, sampling)

        def batches() -> Batches:
            with self._idle():
                return (yield from self._batches(request))

        return streamed(batches, lambda: self._transport.cancel(request))

    @property
    def sequences(self) -> int:
        """Requests that run at the same time, at most."""
        return self._transport.sequences

    @property
    def context(self) -> int:
        """Tokens of a prompt and what follows it, at most."""
        return self._deployment.context

    @property
    def text(self) -> TextCodec:
        """The model's tokenizer."""
        return self._text

    def _tokens(self, request: Request) -> Tokens:
        batches = self._batches(request)
        try:
            while True:
                yield from next(batches)
        except StopIteration as end:
            made: GenerationStats | None = end.value
            return made
        finally:
            batches.close()

    def _batches(self, request: Request) -> Batches:
        stream = self._text.stream(request.sampling)
        times: RequestTimes | None = None
        text, ended_ns = "", 0
        source = self._sampled(request)
        try:
            for item in source:
                if isinstance(item, RequestTimes):
                    times = item
                    continue
                made: list[Token] = []
                for id_, logprob, time_ns, top in item.each:
                    if stream.finish is None:  # what comes after a stop string is no part of it
                        ended_ns = time_ns
                    made += stream.push(id_, logprob, top, time_ns)
                text += "".join(token.text for token in made)
                if made:
                    yield made
                if stream.finish:
                    self._transport.cancel(request)
            if not stream.finish:
                yield stream.flush()
        except ActorLostError as error:
            error.text = text
            raise
        finally:
            if times is None:  # left early, or failed
                with suppress(Exception):  # closed meanwhile: the stream says so
                    self._transport.cancel(request)
                source.close()
        if times is None:
            return None
        self.last = figures = _figures(request, stream, times, ended_ns)
        return figures

    def _sampled(self, request: Request) -> Generator[Sampled | RequestTimes, None, None]:
        def run(rest: Request) -> Iterator[Sampled | RequestTimes]:
            return requests.run(rest, self._attempt, self._recovers, self._restarts)

        yield from across_plans(request, run, self._recovers)

    def _attempt(self, request: Request) -> Iterator[Sampled | RequestTimes]:
        try:
            yield from self._transport.attempt(request)
        except RayError as error:
            raise self._typed(error) from None

    def _retried(self, call: Callable[[], Any]) -> Any:
        for losses in itertools.count(1):
            epoch = self._recovers.epoch
            try:
                return call()
            except RayError as error:
                lost = self._typed(error)
                replaced = isinstance(lost, PlanReplaced)
                lasting = not isinstance(lost, ActorLostError) or losses > self._restarts
                if lasting and not replaced:
                    raise lost from None
                self._recovers.await_epoch(epoch, requests.RECOVER_S)
        raise AssertionError  # count() does not end

    def _typed(self, error: BaseException) -> BaseException:
        if isinstance(error, GetTimeoutError):
            return ActorLostError(
                self._leader, f"an actor of {self.name!r} did not answer ({error})"
            )
        if self._group is not None:
            return self._group.processes.lost(error)
        if isinstance(error, RayTaskError) and isinstance(error.cause, HotcoldError):
            return error.cause
        return ActorLostError(self._leader, f"the engine {self.name!r} is gone ({error})")

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits of every position of a sequence, float32 [T, V].

        Raises:
            ConfigError: ids that cannot be used.
        """
        context = self._deployment.context
        request = make_request(self._text.ids(list(token_ids), context), None, context)
        with self._idle():
            logits: NDArray[np.float32] = self._retried(lambda: self._transport.score(request))
        return logits

    def _current_facts(self) -> dict[str, Facts]:
        if self._group is not None:
            return self._group.processes.facts
        actors = self._deployment.topology.actors
        refs = [self._actor(actor).facts.remote() for actor in actors]
        return dict(zip(actors, ray.get(refs), strict=True))

    def _current_deployment(self) -> Deployment:
        """What runs now; the owner may have replaced what was there when this one connected."""
        if self._group is not None:
            self._deployment = self._group.current
        else:
            leader = self._leader
            self._deployment = self._retried(lambda: ray.get(self._actor(leader).describe.remote()))
        return self._deployment

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the actors, by name."""
        return {actor: facts.pid for actor, facts in self._retried(self._current_facts).items()}

    def _move(self, to: Deployment, rate: int, anew: bool = False) -> Moved | None:
        """Become another deployment by moves alone, while tokens run; None: that cannot be.

        What was lost with an actor meanwhile is moved once it has recovered.
        """
        if cannot_move(self._current_deployment(), to) is not None:
            return None
        moved: Moved | None = self._retried(lambda: self._transport.move(to, rate, anew))
        if moved is not None:
            self._deployment = to
            if self._group is not None:
                self._group.moved_to(to)
        return moved

    def _load(self, deployment: Deployment, rate: int = RATE) -> None:
        """Load another deployment, whoever owns the actors: by moves alone where that can be.

        Raises:
            ConfigError: a generation over the Ray transport; made for another machine.
            HotcoldError: the actors refused it; the one before runs.
        """
        if self._move(deployment, rate, anew=True) is not None:
            return
        with self._idle():
            if self._group is not None:
                self._group.load(deployment)
            else:
                try:
                    self._transport.ask(deployment)
                except RayError as error:
                    raise self._typed(error) from None
            self._deployment = deployment

    def spans(self) -> dict[str, list[Span]]:
        """The last steps of every actor with their times, oldest first, some hundred tokens.

        `hotcold.runtime.tracing.timeline` makes passes, a Perfetto file and sums of them.
        """
        arrays = self._retried(self._transport.spans)
        return {actor: as_spans(actor, array) for actor, array in arrays.items()}

    def telemetry(self) -> list[str]:
        """Where the actors publish what they do, for `hotcold watch` and readers of your own.

        Raises:
            ConfigError: pyzmq or msgpack are missing where the actors run.
        """
        return list(self._retried(lambda: publishers(self._actor)))

    def stats(self) -> EngineStats:
        """Counters of the actors since the current plan was loaded, and what they run."""
        states = self._retried(self._transport.states)
        facts = self._retried(self._current_facts)
        deployment = self._current_deployment()
        plan, words = deployment.plan, roles(deployment)
        version, moved = self._retried(self._transport.ownership)
        return EngineStats(
            actors={
                name: ActorStats.of(states[name], facts[name].node_id, facts[name].pid, words[name])
                for name in deployment.topology.actors
            },
            plan_hash=plan.hash,
            policy=plan.policy,
            schedule=deployment.schedule,
            transport=deployment.transport,
            bytes_by_device=dict(plan.bytes_by_device),
            processors=deployment.threads_text,
            audit_every=deployment.audit_every,
            phase_s=self._retried(self._transport.phases),
            gpu_executors=tuple(m.actor for m in deployment.topology.executors if m.on_gpu),
            cpu_executors=tuple(m.actor for m in deployment.topology.executors if not m.on_gpu),
            clock_error_s=states[self._leader].clock_error_ns / 1e9,
            owners_version=version,
            neurons_moved=moved,
        )


def _figures(
    request: Request, stream: TokenStream, times: RequestTimes, ended_ns: int
) -> GenerationStats:
    """Figures until the text's last token; passes that ran after it do not count."""
    decode_ns, all_ns = max(0, ended_ns - times.prompt_ns), times.end_ns - times.prompt_ns
    return GenerationStats(
        prompt_tokens=len(request.prompt),
        new_tokens=stream.count,
        prompt_s=(times.prompt_ns - times.begin_ns) / 1e9,
        decode_s=decode_ns / 1e9,
        bytes=round(times.decode_bytes * decode_ns / all_ns) if all_ns > 0 else 0,
        finish=stream.finish or "length",
        begin_ns=times.begin_ns,
        reused_tokens=times.reused,
    )
