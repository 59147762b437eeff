"""The engines of a server: a deployment of Ray Serve, each replica of which owns one.

Ray Serve starts the replicas, watches them, replaces those that are lost and chooses one for each
generation. A generation whose replica is lost begins again on another, and what it had said already
is left out: its tokens depend on its prompt and its sampling alone.
"""

import logging
import os
import threading
import time
from collections.abc import Sequence
from contextlib import aclosing, suppress
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError

from hotcold.actors.cluster.processes import is_gone
from hotcold.actors.cluster.ray_cluster import worker_options
from hotcold.actors.engine.engine import Engine
from hotcold.actors.engine.streaming import AsyncBatches
from hotcold.native.errors import ActorLostError, HotcoldError, LaunchError
from hotcold.runtime.engine.deployment import Deployment
from hotcold.runtime.options.config import EngineConfig, Sampling
from hotcold.runtime.text.generation import GenerationStats, TextCodec

LOOK_S = 1.0  # how often Ray Serve looks after a replica
_QUIET = {"enable_access_log": False, "log_level": "WARNING"}
TRIES = 4  # of a generation: replicas may be lost again


class Replica:
    """Owns an engine, for as long as Ray Serve keeps it.

    Ray Serve keeps it longer than the server, where that is killed in a cluster of others: on the
    server's own machine, `node`, the replica notices that process `server` is gone, and ends.
    """

    def __init__(self, config: EngineConfig, name: str, server: int, node: str) -> None:
        number = serve.get_replica_context().replica_id.unique_id
        self._engine = Engine.launch(**vars(config), name=f"{name}-{number}")
        if ray.get_runtime_context().get_node_id() == node:
            threading.Thread(target=self._outlive, args=(name, server), daemon=True).start()

    def _outlive(self, name: str, server: int) -> None:
        while not is_gone(server):
            time.sleep(LOOK_S)
        with suppress(Exception):  # another replica may have asked
            serve.delete(name, _blocking=False)
        self._engine.close()

    async def astream(self, prompt: list[int], sampling: Sampling) -> AsyncBatches:
        """As the engine's; an error of ours comes as an item, so that it arrives as it is."""
        try:
            async with aclosing(self._engine.astream(prompt, sampling)) as batches:
                async for batch in batches:
                    yield batch
        except HotcoldError as error:
            yield error  # type: ignore[misc]

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.close()


class Replicas:
    """All replicas of an app, to the server one engine.

    `name` is the app's, with which the names of their engines begin.
    """

    def __init__(self, name: str, handle: Any, deployment: Deployment, count: int) -> None:
        self.name = name
        self._stream = handle.options(stream=True).astream
        self.text = TextCodec(deployment.bundle_path, deployment.spec)
        self.context, self.sequences = deployment.context, deployment.sequences * count

    async def astream(self, prompt: Sequence[int], sampling: Sampling) -> AsyncBatches:
        """Lists of tokens that came together, then the figures.

        Raises:
            ActorLostError: too many replicas were lost.
            HotcoldError: what the engine says.
        """
        given = 0  # tokens
        for _ in range(TRIES):
            skip = given
            try:
                async with aclosing(self._attempt(list(prompt), sampling)) as batches:
                    async for batch in batches:
                        if isinstance(batch, GenerationStats):
                            yield batch
                            return
                        new, skip = batch[skip:], max(0, skip - len(batch))
                        given += len(new)
                        if new:
                            yield new
            except RayTaskError:
                raise
            except RayError:  # the replica is gone; Ray Serve finds another, or waits for it
                continue
        raise ActorLostError("gpu", f"{TRIES} replicas were lost one after the other")

    async def _attempt(self, prompt: list[int], sampling: Sampling) -> AsyncBatches:
        response = self._stream.remote(prompt, sampling)
        try:
            async for batch in response:
                if isinstance(batch, HotcoldError):
                    raise batch
                yield batch
        finally:
            response.cancel()  # nothing, where it has ended


def start(name: str, config: EngineConfig, deployment: Deployment, count: int) -> Replicas:
    """Start the replicas, and Ray Serve where nobody has; returns once all can generate.

    Raises:
        LaunchError: they cannot be started.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        serve.start(proxy_location="Disabled", logging_config=_QUIET)
    except RayError as error:
        raise LaunchError(
            f"Ray Serve does not start in this cluster ({str(error).strip().splitlines()[-1]}); "
            "every node of it needs hotcold[serve]"
        ) from error
    made = serve.deployment(
        name="Replica",
        num_replicas=count,
        max_ongoing_requests=deployment.sequences,
        ray_actor_options={"num_cpus": 0, **worker_options()},
        health_check_period_s=LOOK_S,
        max_constructor_retry_count=1,
        logging_config=_QUIET,
    )(Replica)
    node = ray.get_runtime_context().get_node_id()
    try:
        handle = serve.run(made.bind(config, name, os.getpid(), node), name=name, route_prefix=None)
    except RuntimeError as error:
        said = [app for key, app in serve.status().applications.items() if key == name]
        why = [one.message for app in said for one in app.deployments.values()]
        line = (why or [str(error)])[0].strip().splitlines()[-1]
        raise LaunchError(f"the replicas could not be started: {line}") from error
    return Replicas(name, handle, deployment, count)


def some_run(name: str) -> bool:
    """Whether a replica of an app can generate."""
    app = serve.status().applications.get(name)
    states = [one.replica_states for one in app.deployments.values()] if app is not None else []
    return any(count and state == "RUNNING" for one in states for state, count in one.items())


def end(name: str, was_running: bool) -> None:
    """End an app's replicas, and Ray Serve where we have started it."""
    if was_running:
        serve.delete(name)
    else:
        serve.shutdown()


def serve_runs() -> bool:
    """Whether Ray Serve runs in this cluster."""
    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return False
    return True
