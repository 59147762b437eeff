"""Client: what any driver can do with a running actor group, its own or one it connected to."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from hotcold.actors.cluster import ray_cluster as cluster
from hotcold.actors.engine import requests
from hotcold.actors.engine.replanning import across_plans
from hotcold.actors.engine.stats import ActorStats, EngineStats
from hotcold.actors.engine.stepwise import StepDriver
from hotcold.actors.group.actor_group import ActorGroup
from hotcold.actors.group.executor_actors import Facts
from hotcold.native.abi.names import ACTORS
from hotcold.native.bindings.executor import Request, RequestTimes
from hotcold.native.errors import ActorLostError, ConfigError, HotcoldError, PlanReplaced
from hotcold.runtime.engine.deployment import Deployment
from hotcold.runtime.engine.executor import Sampled, make_request
from hotcold.runtime.options.config import EngineConfig, Sampling
from hotcold.runtime.text.generation import GenerationStats, TextCodec, Token, TokenStream
from hotcold.runtime.tracing.spans import Span, as_spans


class Lookup:
    """For connected engines: finds the actors again by name after their owner rebuilt them."""

    def __init__(self, name: str, actors: dict[str, Any]) -> None:
        self._name, self._actors = name, actors
        self.epoch = 0

    def replayed(self, seconds: float) -> None:
        """Nobody here keeps the times of recoveries; the owner does."""

    def await_epoch(self, after: int, timeout_s: float) -> None:
        """Wait until all actors answer to their names again."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                found = {
                    actor: ray.get_actor(f"{self._name}-{actor}", namespace=cluster.NAMESPACE)
                    for actor in ACTORS
                }
                ray.get([handle.ready.remote() for handle in found.values()], timeout=timeout_s)
                self._actors.update(found)
                self.epoch = after + 1
                return
            except (ValueError, RayError):
                time.sleep(0.05)
        raise ActorLostError("gpu", f"the engine {self._name!r} did not come back")


class Client:
    """Talks to three actors.

    Args:
        name: of the engine.
        actors: handles by name.
        deployment: what they have loaded.
        group: the owner's, which knows best why an actor is gone; None when connected.
        recovers: who waits for rebuilt actors; None when connected.
        restarts: losses a generation survives.
    """

    def __init__(
        self,
        name: str,
        actors: dict[str, Any],
        deployment: Deployment,
        group: ActorGroup | None = None,
        recovers: requests.Recovers | None = None,
        restarts: int = EngineConfig.restarts,
    ) -> None:
        self.name, self.actors, self.deployment = name, actors, deployment
        self.restarts = restarts
        self._group = group
        self._recovers = recovers or Lookup(name, actors)
        self._text = TextCodec(deployment.bundle_path, deployment.spec)
        self._busy = threading.Lock()

    def _actor(self, name: str) -> Any:
        """An actor's handle.

        Raises:
            ConfigError: the engine is closed.
        """
        if name not in self.actors:
            raise ConfigError(f"engine {self.name!r} is closed; launch another")
        return self.actors[name]

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Hold the engine while no generation of this client runs.

        Raises:
            ConfigError: one does.
        """
        if not self._busy.acquire(blocking=False):
            raise ConfigError("a generation is running; finish or close its iterator first")
        try:
            yield
        finally:
            self._busy.release()

    @contextmanager
    def _between_steps(self) -> Iterator[None]:
        """Hold the engine where a plan can be replaced: the native transport finds that itself."""
        if self.deployment.transport == "native":
            yield
        else:
            with self.idle():
                yield

    def generate(
        self, prompt: str | Sequence[int], sampling: Sampling
    ) -> Iterator[Token | GenerationStats]:
        """Tokens that continue the prompt, then the figures. Checks the prompt at once."""
        context = self.deployment.context
        ids = self._text.ids(prompt, context)
        request = make_request(
            ids,
            sampling.max_tokens,
            context,
            () if sampling.ignore_eos else self._text.eos_ids,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seed=sampling.seed,
        )
        return self._stream(request, sampling)

    def _stream(self, request: Request, sampling: Sampling) -> Iterator[Token | GenerationStats]:
        with self.idle():
            stream = self._text.stream(sampling)
            times: RequestTimes | None = None
            text = ""
            source = self._sampled(request)
            try:
                for item in source:
                    if isinstance(item, RequestTimes):
                        times = item
                        continue
                    for id_, logprob in zip(item.ids, item.logprobs, strict=True):
                        for token in stream.push(id_, logprob):
                            text += token.text
                            yield token
                    if stream.finish:
                        self._cancel()
                if not stream.finish:
                    yield from stream.flush()
            except ActorLostError as error:
                error.text = text
                raise
            finally:
                self._drain(source)
            if times is not None:
                yield self._figures(request, stream, times)

    def _sampled(self, request: Request) -> Iterator[Sampled | RequestTimes]:
        """The raw stream of either transport, Ray's errors made typed."""
        native = self.deployment.transport == "native"
        kv_survives = native and self.deployment.gpu is None and not self.deployment.remembers
        attempt = self._on_gpu if native else self._stepwise

        def run(rest: Request) -> Iterator[Sampled | RequestTimes]:
            return requests.run(rest, attempt, self._recovers, self.restarts, kv_survives)

        yield from across_plans(request, run, self._recovers, kv_survives)

    def _on_gpu(self, request: Request) -> Iterator[Sampled | RequestTimes]:
        """One attempt by the native transport: the GPU executor leads."""
        stream = self._actor("gpu").generate.options(num_returns="streaming")
        try:
            for ref in stream.remote(request):
                item = ray.get(ref)
                if isinstance(item, Exception):
                    raise item
                yield item
        except RayError as error:
            raise self._typed(error) from None

    def _stepwise(self, request: Request) -> Iterator[Sampled | RequestTimes]:
        """One attempt by the Ray transport: this process leads."""
        try:
            yield from self._led_here(request)
        except RayError as error:
            raise self._typed(error) from None

    def _led_here(self, request: Request) -> Iterator[Sampled | RequestTimes]:
        begin = prompt_done = time.monotonic_ns()
        passes = 0
        before = after = sum(state.bytes for state in self._states().values())
        for item in StepDriver(self.actors, self.deployment).generate(request):
            if not passes:
                prompt_done = time.monotonic_ns()
                after = sum(state.bytes for state in self._states().values())
            passes += 1
            yield item
        end = time.monotonic_ns()
        total = sum(state.bytes for state in self._states().values())
        yield RequestTimes(begin, prompt_done, end, passes, after - before, total - after)

    def _retried(self, call: Callable[[], Any]) -> Any:
        """A control call's result; called again after a recovery where an actor was lost."""
        for losses in itertools.count(1):
            epoch = self._recovers.epoch
            try:
                return call()
            except RayError as error:
                lost = self._typed(error)
                replaced = isinstance(lost, PlanReplaced)
                lasting = not isinstance(lost, ActorLostError) or losses > self.restarts
                if lasting and not replaced:
                    raise lost from None
                self._recovers.await_epoch(epoch, requests.RECOVER_S)
        raise AssertionError  # count() does not end

    def _typed(self, error: BaseException) -> BaseException:
        if isinstance(error, GetTimeoutError):
            return ActorLostError("gpu", f"an actor of {self.name!r} did not answer ({error})")
        if self._group is not None:
            return self._group.lost(error)
        if isinstance(error, RayTaskError) and isinstance(error.cause, HotcoldError):
            return error.cause
        return ActorLostError("gpu", f"the engine {self.name!r} is gone ({error})")

    def _cancel(self) -> None:
        if self.deployment.transport == "native":
            self._actor("gpu").cancel.remote()

    def _drain(self, source: Iterator[Any]) -> None:
        """End a stream the caller may have left early, so that the next request finds it free."""
        if self.deployment.transport == "ray":
            getattr(source, "close", lambda: None)()
            return
        try:
            first = next(source, None)
            if first is not None:
                self._cancel()
                for _ in source:
                    pass
        except Exception:  # noqa: BLE001 - the stream's own error has been raised already
            return

    def _figures(
        self, request: Request, stream: TokenStream, times: RequestTimes
    ) -> GenerationStats:
        return GenerationStats(
            prompt_tokens=len(request.prompt),
            new_tokens=stream.count,
            prompt_s=(times.prompt_ns - times.begin_ns) / 1e9,
            decode_s=(times.end_ns - times.prompt_ns) / 1e9,
            bytes=times.decode_bytes,
            finish=stream.finish or "length",
        )

    def score(
        self, token_ids: Sequence[int], masks: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
        """Logits float32 [T, V]; and the proposed neurons, bool [T, L, N], where asked for.

        Raises:
            ConfigError: ids that cannot be used; masks over the Ray transport.
        """
        spec, context = self.deployment.spec, self.deployment.context
        ids = self._text.ids(list(token_ids), context)
        with self.idle():
            if self.deployment.transport == "ray":
                if masks:
                    raise ConfigError("masks are recorded by the native transport only")
                driver = StepDriver(self.actors, self.deployment)
                return self._retried(lambda: driver.score(np.array(ids, np.int32))), None
            shape = (len(ids), spec.n_layers, -(-spec.n_neurons // 8)) if masks else None
            request = make_request(ids, 0, context)
            logits, bits = self._retried(
                lambda: ray.get(self._actor("gpu").score.remote(request, spec.vocab_size, shape))
            )
        if bits is None:
            return logits, None
        fired = np.unpackbits(bits, axis=-1, count=spec.n_neurons, bitorder="little")
        return logits, fired.astype(bool)

    def _current_facts(self) -> dict[str, Facts]:
        if self._group is not None:
            return self._group.facts
        refs = [self._actor(actor).facts.remote() for actor in ACTORS]
        return dict(zip(ACTORS, ray.get(refs), strict=True))

    def current_deployment(self) -> Deployment:
        """What runs now; the owner may have replaced what was there when this one connected."""
        if self._group is not None:
            self.deployment = self._group.deployment
        else:
            self.deployment, _ = self._retried(
                lambda: ray.get(self._actor("gpu").describe.remote())
            )
        return self.deployment

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the actors, by name."""
        return {actor: facts.pid for actor, facts in self._retried(self._current_facts).items()}

    def load(self, deployment: Deployment) -> None:
        """Have other plans than now run, whoever owns the actors.

        Raises:
            ConfigError: a generation over the Ray transport; made for another machine.
            HotcoldError: the actors refused it; the one before runs.
        """
        with self._between_steps():
            if self._group is not None:
                self._group.load(deployment)
            else:
                self._ask(deployment)
            self.deployment = deployment

    def _ask(self, deployment: Deployment) -> None:
        now = self.deployment
        if deployment.transport != "native":
            raise ConfigError("over the Ray transport only the driver that launched can replan")
        if (deployment.gpu is None, deployment.bundle_path) != (now.gpu is None, now.bundle_path):
            raise ConfigError(
                f"this driver sees the model at {deployment.bundle_path}, the engine at "
                f"{now.bundle_path}, or another GPU; replan from a driver on the engine's node"
            )
        try:
            ray.get(self._actor("gpu").ask.remote(deployment))
        except RayError as error:
            raise self._typed(error) from None

    def _states(self) -> dict[str, Any]:
        if self.deployment.transport == "native":
            states: dict[str, Any] = ray.get(self._actor("gpu").states.remote())
            return states
        refs = [self._actor(actor).state.remote() for actor in ACTORS]
        return dict(zip(ACTORS, ray.get(refs), strict=True))

    def spans(self) -> dict[str, list[Span]]:
        """What every actor did lately, step by step; oldest first."""
        if self.deployment.transport == "native":
            arrays = self._retried(lambda: ray.get(self._actor("gpu").spans.remote(ACTORS)))
        else:
            refs = [self._actor(actor).spans.remote((actor,)) for actor in ACTORS]
            arrays = {actor: own for found in ray.get(refs) for actor, own in found.items()}
        return {actor: as_spans(actor, array) for actor, array in arrays.items()}

    def _phases(self) -> dict[str, float]:
        found: dict[str, float] = ray.get(self._actor("gpu").phases.remote())
        return found

    def stats(self) -> EngineStats:
        """Counters of all actors, and what they run."""
        states = self._retried(self._states)
        facts = self._retried(self._current_facts)
        deployment = self.current_deployment()
        native = deployment.transport == "native"
        phases = self._retried(self._phases) if native else {}
        plan, roles = deployment.plan, deployment.roles
        return EngineStats(
            actors={
                actor: ActorStats.of(
                    states[actor], facts[actor].node_id, facts[actor].pid, roles[actor]
                )
                for actor in ACTORS
            },
            plan_hash=plan.hash,
            policy=plan.policy,
            schedule=deployment.schedule,
            transport=deployment.transport,
            bytes_by_device=dict(plan.bytes_by_device),
            audit_every=deployment.audit_every,
            phase_s=phases,
            clock_error_s=states["gpu"].clock_error_ns / 1e9,
        )
