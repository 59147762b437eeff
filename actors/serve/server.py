"""A server's life: its port taken, Ray and the replicas started, HTTP, and all of it ended again.

What cannot work is refused before Ray starts. Told to end, the server takes no more requests, lets
those that run end, and leaves nothing behind.
"""

import asyncio
import importlib.util
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack, closing, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hotcold.actors.cluster import ray_cluster as cluster
from hotcold.actors.serve.settings import ServeConfig, take_key
from hotcold.native.errors import ConfigError
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.prepare import Prepared, prepare_model
from hotcold.runtime.model.checkpoints.bundle import source_folder
from hotcold.runtime.options.config import EngineConfig

if TYPE_CHECKING:
    from fastapi import FastAPI

NEEDED = ("fastapi", "uvicorn", "aiohttp")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
AT_ONCE = 8  # generations on a CPU: half of what they gain by each other costs each little
IDLE_S = 75  # connections that nobody uses are kept so long


def check_installed() -> None:
    """Refuse to go on without the packages of the extra.

    Raises:
        ConfigError: they are not there.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"serving needs {', '.join(missing)}; install it: pip install 'hotcold[serve]'"
        )


def listening(settings: ServeConfig) -> socket.socket:
    """The server's socket, bound; it refuses connections until HTTP begins.

    Raises:
        ConfigError: the address is taken, or none of this machine's.
    """
    host = settings.host.strip("[]")
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind(address)
        except OSError:
            made.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {settings.host} port {settings.port} ({error.strerror}); choose "
            "another --port or --host"
        ) from None
    return made


def run(
    config: EngineConfig,
    settings: ServeConfig,
    sequences: int | None,
    say: Callable[[str], None],
    started: Callable[[], None],
    ending: Callable[[], None],
) -> None:
    """Serve until told to end, so many `sequences` at once; None: as many as suit the device.

    `say` is told once where the server answers. `started` is called once Ray runs, which takes
    handlers of signals away, and `ending` before it all is taken down.

    Raises:
        ConfigError, CheckpointError, PolicyError: input that cannot be used; nothing started.
        LaunchError: Ray or the replicas could not be started.
    """
    from hotcold.actors.serve.app import EMBEDDED, create_app
    from hotcold.actors.serve.chat import find_template

    key = take_key(settings)
    if config.telemetry is not None and settings.replicas > 1:
        raise ConfigError(
            f"telemetry {config.telemetry} is one address, and replicas {settings.replicas} are as "
            "many engines; leave --telemetry out, or serve one replica"
        )
    with ExitStack() as opened:
        at = opened.enter_context(closing(listening(settings)))
        embedded = config.model is None
        if config.model is not None:
            config = replace(config, model=Path(config.model).resolve())
        cluster.look(config.address)
        prepared = _prepared(config, sequences)
        deployment = deploy(prepared, solve(prepared))
        folder = deployment.bundle_path
        file = None if settings.chat_template is None else Path(settings.chat_template)
        template = find_template(folder, embedded, file)
        if template is not None:
            opened.callback(template.close)
        name = settings.model_name or (EMBEDDED if embedded else source_folder(folder).name)
        host, port = at.getsockname()[:2]
        app_name = f"hotcold-{port}"
        from hotcold.actors.serve import replicas  # Ray Serve takes a second to import

        async def is_ready() -> bool:
            return await asyncio.to_thread(replicas.some_run, app_name)

        def answers() -> None:
            url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            wants = "" if key is None else ", for who has the key"
            say(f"{name} is served at {url}/v1, {engine.sequences} generations at once{wants}")

        with cluster.joined(config.address):
            serve_ran = replicas.serve_runs()
            try:
                engine = replicas.start(app_name, prepared.config, deployment, settings.replicas)
                started()
                app = create_app(
                    engine, settings, key=key, name=name, template=template, is_ready=is_ready
                )
                asyncio.run(_answer(app, at, settings, answers))
            finally:
                ending()
                replicas.end(app_name, serve_ran)


def _prepared(config: EngineConfig, sequences: int | None) -> Prepared:
    """As many sequences as asked for; else AT_ONCE, or one where that many cannot be."""
    if sequences is None:
        with suppress(ConfigError):  # what is wrong with one, too, is said below
            return prepare_model(replace(config, sequences=AT_ONCE))
    return prepare_model(replace(config, sequences=sequences or 1))


async def _answer(
    app: "FastAPI", at: socket.socket, settings: ServeConfig, ready: Callable[[], None]
) -> None:
    """Answer HTTP until a signal; then drain. A second signal ends what still runs."""
    import uvicorn

    class Server(uvicorn.Server):
        """Leaves signals alone."""

        def capture_signals(self) -> Any:
            """Nothing."""
            return nullcontext()

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            """Say that it answers."""
            await super().startup(sockets)
            ready()

    server = Server(
        uvicorn.Config(
            app,
            log_level="error",
            access_log=False,
            server_header=False,
            ws="none",
            timeout_keep_alive=IDLE_S,
            timeout_graceful_shutdown=max(1, round(settings.drain_timeout)),
        )
    )

    def drain() -> None:
        server.force_exit = server.should_exit
        app.state.service.draining = server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, drain)
    await server.serve(sockets=[at])
