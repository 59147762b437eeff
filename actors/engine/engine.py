"""Engine: door 1, the actor API. Launch a group of actors, generate, look, replan, close.

The launching driver owns the actors (and the Ray it may have started); an engine that was connected
or unpickled only talks to them. Generation is one Ray call a request, its tokens streamed back.
"""

import itertools
import os
import time
import weakref
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup

from hotcold.actors.cluster import ray_cluster as cluster
from hotcold.actors.engine.client import Client
from hotcold.actors.engine.lookup import find_actors
from hotcold.actors.engine.many import Completion, Tokens
from hotcold.actors.group.actor_group import ActorGroup
from hotcold.actors.group.supervisor import Recovery, Supervisor
from hotcold.native.errors import ConfigError
from hotcold.native.options.table import check_names, documented
from hotcold.runtime.engine.deployment import Deployment, deploy, load_plan, solve
from hotcold.runtime.engine.executors.factory import executor_classes
from hotcold.runtime.engine.moving import RATE, Moved
from hotcold.runtime.engine.prepare import Prepared, prepare_model, with_budget
from hotcold.runtime.options.config import EngineConfig, Sampling
from hotcold.runtime.plan.moved import Move, check_budgets, owners_after, with_owners
from hotcold.runtime.plan.program import Program
from hotcold.runtime.plan.roofline import Roofline, for_batch, roofline
from hotcold.runtime.plugins.run import policy_name
from hotcold.runtime.text.generation import TextCodec, Token
from hotcold.runtime.text.prompts import Given, asked_of, sampling_of
from hotcold.runtime.units import parse_bytes

_numbers = itertools.count()


class Engine(Client):
    """Three actors that run one model. Use `launch` or `connect`, as a context manager.

    Attributes:
        name: prefix of the actors' names.
        actors: Ray handles by label: "gpu", "gpu1", ..., "cpu", ..., "predictor".
        last: figures of the last finished generation, None before.
    """

    _prepared: Prepared | None = None
    _schedule: Any = None
    _supervisor: Supervisor | None = None
    _finalizer: Any = None

    @classmethod
    @documented(EngineConfig)
    def launch(
        cls,
        model: str | os.PathLike[str] | None = None,
        vram: str | int | None = None,
        policy: Any = EngineConfig.policy,
        schedule: Any = EngineConfig.schedule,
        *,
        name: str | None = None,
        placement_group: PlacementGroup | None = None,
        **options: Any,
    ) -> "Engine":
        """Prepare a model, start its three actors, and wait until they are ready.

        Args:
            model: see the options below.
            vram: likewise; also a number of bytes.
            policy: likewise; also an object.
            schedule: likewise; also an object.
            name: of the engine; others connect by it.
            placement_group: the caller's, with room for the actor group (0.3 CPUs) in its first
                bundle; what else it holds is kept from other work of the cluster.
            **options: the options below.

        Raises:
            ConfigError, CheckpointError, PolicyError: input that cannot be used; nothing started.
            LaunchError: Ray or the actors could not be started.
        """
        check_names(options, EngineConfig)
        config = EngineConfig(model=model, vram=vram, policy=policy, schedule=schedule, **options)
        cluster.look(config.address)  # what hinders Ray is said before a model is converted
        prepared = prepare_model(config)
        deployment = deploy(prepared, solve(prepared))
        text = TextCodec(deployment.bundle_path, deployment.spec)  # its faults before Ray starts
        started_ray = cluster.enter(config.address)
        try:
            engine_name = name or f"hotcold-{os.getpid()}-{next(_numbers)}"
            group = ActorGroup(
                deployment, engine_name, placement_group, started_ray, config.stuck_s
            )
        except BaseException:
            if started_ray:
                cluster.leave()
            raise
        supervisor = Supervisor(group, config.stuck_s)
        handles = group.processes.handles
        engine = cls(engine_name, handles, deployment, group, supervisor, config.restarts, text)
        engine._prepared, engine._schedule = prepared, config.schedule
        engine._supervisor = supervisor
        # A generation holds the engine: the actors stay until both are let go.
        engine._finalizer = weakref.finalize(
            engine, _take_down, group, supervisor, started_ray, os.getpid()
        )
        return engine

    @classmethod
    def connect(
        cls, name: str, address: str | None = None, restarts: int = EngineConfig.restarts
    ) -> "Engine":
        """Reach an engine that another driver, task or notebook of the cluster launched.

        Args:
            name: given to `launch`.
            address: Ray cluster to join, where this process is in none.
            restarts: losses of actors a generation of this engine survives.

        Raises:
            ConfigError: no engine of that name in the cluster.
            LaunchError: no such cluster; none is started.
        """
        cluster.join(address, start=False)
        try:
            actors, deployment = find_actors(name)
        except (ValueError, RayError) as error:
            raise ConfigError(
                f"no engine named {name!r} in this Ray cluster; launch one with that name first"
            ) from error
        return cls(name, actors, deployment, restarts=restarts)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Engine.connect, (self.name,)

    @property
    def is_whole(self) -> bool:
        """Whether no actor is being replaced or has to be; a connected engine cannot know."""
        return self._group is None or self._group.is_whole

    @property
    def uses_gpu(self) -> bool:
        """Whether the GPU executor computes on a GPU, and not on its CPU device."""
        return self._deployment.gpu is not None

    @property
    def standing_by(self) -> tuple[str, ...]:
        """Actors whose steps another one computes; nothing runs in them."""
        classes = executor_classes(self._deployment)
        return tuple(actor for actor, made in classes.items() if made.stands_by)

    @property
    def shares_gpu(self) -> bool:
        """Whether the predictor has a process of its own on that GPU, under MPS."""
        gpu = self._deployment.gpu
        return gpu is not None and gpu.remote_predictor

    def generate(
        self, prompt: str | Sequence[int], sampling: Sampling | None = None, **fields: Any
    ) -> Tokens:
        """Continue a prompt; tokens come as they are computed, coalesced over at most 200 ms.

        Leaving the iterator early ends the generation. `last` has its figures afterwards. Several
        threads may generate at once: `sequences` of them run, others wait.

        Args:
            prompt: text, or token ids (taken as they are).
            sampling: how to continue it; None: made of the fields given.
            **fields: of `hotcold.runtime.options.config.Sampling`: max_tokens (64), temperature (0:
                greedy), top_k, top_p, seed (the engine's), stop, ignore_eos, special, logprobs.

        Raises:
            ConfigError: a prompt or parameter that cannot be used; raised at once.
            ActorLostError: an actor died; raised by the iterator, names the actor.
        """
        return self._one(self._request(prompt, self._sampling(sampling, fields)))

    async def agenerate(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling | None = None,
        **fields: Any,
    ) -> AsyncGenerator[Token, None]:
        """`generate` for asyncio, with its arguments; several may run beside each other.

        `sequences` of them run at a time, the others wait. Closing the iterator, or cancelling the
        task, ends the generation. What cannot be used is raised by the first token awaited.
        """
        async with aclosing(self.astream(prompt, self._sampling(sampling, fields))) as batches:
            async for batch in batches:
                if isinstance(batch, list):
                    for token in batch:
                        yield token

    def generate_many(
        self, prompts: Iterable[Given], sampling: Sampling | None = None, **fields: Any
    ) -> Iterator[Completion]:
        """Continue several prompts; a `Completion` comes as soon as one is finished.

        `sequences` of them run at a time, each with the tokens of `generate`, which explains the
        arguments. A prompt may also be a mapping with `prompt` and its own fields of Sampling. One
        that cannot be used is named by its index before any starts.
        """
        return self._many(asked_of(prompts, self._sampling(sampling, fields), self._request))

    def _sampling(self, sampling: Sampling | None, fields: dict[str, Any]) -> Sampling:
        if sampling is None:
            if fields.get("seed") is None:
                fields["seed"] = self._prepared.config.seed if self._prepared is not None else 0
            return sampling_of(fields, Sampling())
        if fields:
            raise ConfigError("generate takes a Sampling or its fields, not both")
        return sampling

    @property
    def recoveries(self) -> list[Recovery]:
        """Losses of actors this engine recovered from, oldest first; none when connected."""
        return list(self._supervisor.recoveries) if self._supervisor is not None else []

    def roofline(self, batch: int = 1) -> Roofline:
        """What bounds the running plan, by the rates it was placed with (`hotcold hardware`).

        `token_s` is of a pass, which makes a token of each of `batch` sequences.

        Raises:
            ConfigError: this engine was connected: only who launched it knows the rates.
        """
        if self._prepared is None:
            raise ConfigError("only the driver that launched an engine knows its machine's rates")
        running = self._deployment
        problem = for_batch(self._prepared.problem, batch)
        return roofline(problem, running.plan, ahead=running.reads_ahead)

    @property
    def programs(self) -> dict[str, Program]:
        """The steps that each actor runs for a token, with the flags they wait for and set."""
        return dict(self._deployment.programs)

    def replan(
        self,
        policy: Any = None,
        schedule: Any = None,
        *,
        plan: str | os.PathLike[str] | None = None,
        vram: str | int | None = None,
        timeout_s: float | None = None,
        rate: str | int = RATE,
    ) -> None:
        """Place and schedule anew; the actors and their weights stay.

        A running generation goes on with the new plan from its next token on, whoever asked for
        it (over the Ray transport it must have ended), and any driver may ask. What fails here
        leaves the old plan running.

        Where both plans have the same programs, so that no layer comes to a device or leaves it,
        the neurons that differ are moved between passes, as by `move`. Else, on a GPU and over the
        Ray transport, a new epoch begins: everything is loaded again, and the next token waits.

        Args:
            policy: placement policy; None: the plan stays as it is.
            schedule: schedule policy; None: that of the last plan.
            plan: folder of a saved plan, instead of a policy.
            timeout_s: seconds that a policy or schedule given by name or file may take; None: the
                engine's `policy_timeout`.
            vram: another budget of the GPU executor, from here on; takes a policy that places
                under it.
            rate: bytes of neuron records a second, where neurons are moved.

        Raises:
            ConfigError: a plan for another model or a larger budget; a budget without a policy;
                over the Ray transport, a generation that runs or an engine that was connected.
            PolicyError: the policy failed; names it.
            BudgetError: the budget cannot hold what must be on the GPU.
        """
        now, speed = self._current_deployment(), parse_bytes(rate, "rate")
        prepared = self._prepare(now)
        if policy is not None and plan is not None:
            raise ConfigError("replan takes a policy or a plan, not both")
        if vram is not None and policy is None:
            raise ConfigError("replan(vram=...) needs a policy that places under the new budget")
        prepared = prepared if vram is None else with_budget(prepared, vram)
        asked = prepared
        if timeout_s is not None:
            asked = replace(prepared, config=replace(prepared.config, policy_timeout=timeout_s))
        chosen = now.plan
        if plan is not None:
            chosen = load_plan(prepared, plan)
        elif policy is not None:
            chosen = solve(asked, policy)
        wanted = self._kept_schedule(now) if schedule is None else schedule
        self._load(deploy(asked, chosen, wanted), speed)
        self._prepared, self._schedule = prepared, wanted

    def _prepare(self, now: Deployment) -> Prepared:
        if self._prepared is None:  # connected: what the owner asked for, prepared once more
            self._prepared = prepare_model(now.config or EngineConfig())
        return self._prepared

    def _kept_schedule(self, now: Deployment) -> Any:
        return self._schedule if policy_name(self._schedule) == now.schedule else now.schedule

    def move(self, moves: Iterable[Move], *, rate: str | int = RATE) -> Moved:
        """Give single neurons to other devices, between passes, while tokens run.

        All of them move, or none. Returns once they have; tokens stay what they are, as under any
        placement. Any driver may ask, one at a time. After a loss of actors neurons are where they
        had been moved to, and the moves that were under way go on.

        A layer that has no neuron of a device has no step there: the first neuron that comes
        begins a new epoch, as `replan` does. So does any move on a GPU, over the Ray transport, or
        where the schedule fetches neurons.

        Args:
            moves: (layer, neuron, device), the device by name ("gpu0") or index.
            rate: bytes of neuron records a second; what is over waits for later passes.

        Returns:
            what was moved, in how many versions of the table of owners.

        Raises:
            ConfigError: a neuron or device that there is not, or moves of another driver that are
                under way; a weight that the device's format cannot hold.
            BudgetError: a device has no room; names it.
        """
        now, speed, begin = self._current_deployment(), parse_bytes(rate, "rate"), time.monotonic()
        plan = with_owners(now.plan, owners_after(now.plan, moves))
        check_budgets(plan)
        moved = self._move(replace(now, plan=plan), speed)
        if moved is None:
            self._load(deploy(self._prepare(now), plan, self._kept_schedule(now)), speed)
            neurons = int(np.count_nonzero(plan.device_LN != now.plan.device_LN))
            moved = Moved(neurons, 1, 0, time.monotonic() - begin)
        return moved

    def close(self) -> None:
        """End the actors this engine launched and free everything; idempotent."""
        self.actors = {}
        if self._finalizer is not None:
            self._finalizer()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _take_down(group: ActorGroup, supervisor: Supervisor, started_ray: bool, owner: int) -> None:
    if os.getpid() != owner:
        return  # a forked child ends; the engine goes on
    try:
        supervisor.close()
        group.close()
    except BaseException:
        group.close()  # a signal's exception cut it short; every part of it may be done again
        raise
    finally:
        if started_ray:
            cluster.leave()
