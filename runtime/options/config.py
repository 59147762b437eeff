"""What the user asks for, checked once: the options of an engine.

Each field is a row (native/options/table.py): the commands, `Engine.launch` and examples/OPTIONS.md
are made from it. Plain frozen data; the actors receive it whole. Sampling, the table of a request,
is native/options/sampling.py, for the native request holds one.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hotcold.native.abi.generated import MAX_BATCH, MAX_DEVICES
from hotcold.native.abi.names import DTYPES
from hotcold.native.errors import ConfigError
from hotcold.native.options.sampling import Sampling as Sampling  # noqa: PLC0414 - handed on to callers
from hotcold.native.options.table import MAX_SEED, check_all, documented, option, rows
from hotcold.runtime.limits import processors
from hotcold.runtime.topology import Topology
from hotcold.runtime.units import parse_budgets

STORES = ("file", "memfd", "private")
DEFAULT_CONTEXT = 512
# Commands by what they need: each level takes its own options and those of the levels before it.
COMMANDS = {
    "model": ("inspect", "convert", "profile", "sparsity", "train-predictors", "pictures"),
    "placement": ("solve",),
    "plan": ("roofline",),
    "session": ("evaluate", "bench prompt", "bench sync"),
    "actors": (
        "generate",
        "serve",
        "compare",
        "trace",
        "chaos",
        "bench decode",
        "bench batch",
        "bench replan",
    ),
}


@dataclass(frozen=True)
class EngineConfig:
    """Options of an engine; None means "decide from the model and the machine".

    Raises:
        ConfigError: a value that is not allowed, or two that exclude each other.
    """

    model: str | os.PathLike[str] | None = option(
        None,
        "Folder of a Hugging Face checkpoint or of a bundle.",
        "model",
        metavar="DIR",
        shown="the embedded model",
    )
    vram: str | int | None = option(
        None,
        "GPU memory to use, CUDA context included: 24MiB, for example. Without a GPU it limits "
        "what the GPU executor owns in host memory. Several GPU executors have so much each, or "
        "one size each, separated by commas.",
        "placement",
        metavar="SIZE",
        shown="what is free; without a GPU, room for half of the neurons",
    )
    gpu_executors: int = option(
        1,
        "GPU executors: the first one leads, the others compute hot neurons of their own. More "
        "than 1 needs HOTCOLD_CUDA=off.",
        "placement",
        not_for=("bench sync", "bench prompt", "compare"),
        low=1,
        high=MAX_DEVICES - 1,
    )
    cpu_executors: int = option(
        1,
        "CPU executors, which share the cores and the cold neurons. More than 1 needs "
        "HOTCOLD_CUDA=off.",
        "placement",
        not_for=("bench sync", "bench prompt", "compare"),
        low=1,
        high=MAX_DEVICES - 1,
    )
    policy: Any = option(
        "greedy",
        "Placement policy: a name (see `hotcold policies`), file.py:Class or package.module:Class.",
        "placement",
        not_for=("bench sync", "bench replan"),
        metavar="NAME",
    )
    plan: str | os.PathLike[str] | None = option(
        None,
        "Folder of a saved plan (`hotcold solve`), instead of a policy.",
        "plan",
        not_for=("bench sync", "compare", "bench replan"),
        metavar="DIR",
        folder=True,
    )
    schedule: Any = option(
        "selective",
        "Schedule policy, named like a placement policy.",
        "plan",
        not_for=("bench sync",),
        metavar="NAME",
    )
    settings: Mapping[str, str] = option(
        dict,
        "A parameter of a plug-in: share=0.8, schedule.depth=1, predictor.rank=8.",
        "placement",
        metavar="NAME=VALUE",
        flag="set",
        many=True,
    )
    policy_timeout: float = option(
        60.0,
        "Seconds that a policy given by name or file may take.",
        "placement",
        low=0.0,
        above=True,
    )
    hardware: str | None = option(
        None,
        "Machine whose rates policies decide by: h100-16core, h100-box, laptop-8gb, pc-high, "
        "pc-low, xeon-2core, or a file that `hotcold hardware` wrote.",
        "placement",
        metavar="NAME",
        shown="this one, as `hotcold hardware` measured it",
    )
    predictor: Any = option(
        "auto",
        "auto, exact, learned, low-rank, sign, ... (see `hotcold policies`), a folder of trained "
        "predictors, or file.py:Class.",
        "placement",
        metavar="KIND",
    )
    predictor_dtype: str | None = option(
        None,
        "On a GPU, quantise the predictor's matrices, row by row.",
        "plan",
        choices=("int8",),
        shown="as they are",
    )
    dtype: str | None = option(
        None,
        "Convert the checkpoint's matrices to this dtype; int8: its neurons alone.",
        "model",
        choices=tuple(DTYPES),
        shown="the checkpoint's",
    )
    kv_dtype: str = option(
        "float32",
        "Dtype of the KV cache on a GPU; float16 takes half the memory and moves logits by about "
        "0.02. Without a GPU it is float32.",
        "plan",
        choices=("float32", "float16"),
    )
    context: int | None = option(
        None,
        "Positions of the KV cache: the prompt and what follows it. The cache competes with hot "
        "neurons for GPU memory.",
        "placement",
        low=1,
        high=1 << 24,
        shown=f"the model's, at most {DEFAULT_CONTEXT}",
    )
    sequences: int = option(
        1,
        "Generations that run at once, at most; others wait. Each has a KV cache of `context` "
        "positions. More than 1 needs the native transport, and no GPU.",
        "placement",
        not_for=("bench sync", "bench batch", "compare", "roofline"),
        low=1,
        high=MAX_BATCH,
    )
    threads: int | None = option(
        None,
        "Worker threads of each executor, its loop's own included.",
        "session",
        low=1,
        shown="one for each core, or as many as a CPU quota grants; CPU executors share them",
    )
    pin: bool | None = option(
        None,
        "Pin the loops' threads to cores.",
        "session",
        shown="where there is a core for each of them",
    )
    transport: str = option(
        "native",
        "How the actors exchange: through shared memory, or by a Ray call for each operation.",
        "actors",
        not_for=("bench decode", "bench batch", "bench replan"),
        choices=("native", "ray"),
    )
    store: str | None = option(
        None,
        "How weights are held in memory: the mapped file, one shared copy in huge pages, or each "
        "executor's own neurons in private huge pages.",
        "session",
        choices=STORES,
        variable="HOTCOLD_STORE",
        shown="HOTCOLD_STORE, else by the model's size",
    )
    address: str | None = option(
        None,
        "Ray cluster to join.",
        "actors",
        shown="RAY_ADDRESS, else one on this machine, else a new one",
    )
    kernels: str | None = option(
        None,
        "Kernels: a built-in variant (avx2), your own file.c, or your own file.cu for the GPU.",
        "session",
        metavar="NAME",
        shown="HOTCOLD_CPU, or the best one",
    )
    prompt_form: str = option(
        "auto",
        "Prompts on a GPU: dense reads the whole model once for many tokens; sparse reads what "
        f"{MAX_BATCH} tokens need; auto is dense from a measured length on.",
        "session",
        choices=("auto", "dense", "sparse"),
    )
    predictor_process: str = option(
        "fused",
        "Where the predictor runs on a GPU: in the GPU executor's graph, or in its own process "
        "under a private MPS daemon, which takes GPU memory for a second CUDA context.",
        "session",
        choices=("fused", "mps"),
    )
    bus_share: float = option(
        0.0,
        "Share of the neurons in host memory that a GPU reads over the bus and computes itself.",
        "session",
        low=0.0,
        high=0.9,
    )
    audit: int = option(
        256,  # native/loop/audit.c says what it costs and how sure it makes
        "Evaluate one in so many of the neurons that the predictor left out, to estimate its "
        "recall; 0: none. The output does not depend on it.",
        "session",
        flag="audit-every",
        low=0,
        high=1 << 20,
    )
    seed: int = option(
        0, "Seed of sampling and of policies that draw lots.", "session", low=0, high=MAX_SEED
    )
    prefix_cache: bool = option(
        True,
        "Keep what prompts have in common: a request begins with the keys and values that another "
        "has left of the same first tokens. Not on a GPU, and not over the Ray transport.",
        "actors",
        not_for=("compare", "trace", "bench decode", "bench batch", "bench replan"),
        shown="yes",
    )
    restarts: int = option(
        3,
        "How many lost actors a generation survives; 0: the first loss ends it. Lost actors are "
        "replaced in either case.",
        "actors",
        not_for=("chaos",),
        low=0,
        high=1000,
    )
    stuck_s: float = option(
        10.0,
        "Seconds without progress after which a busy actor counts as lost.",
        low=0.1,
        high=3600.0,
    )
    telemetry: str | None = option(
        None,
        "Address at which the engine publishes what it does, such as tcp://127.0.0.1:5599, for "
        "hotcold watch. Whoever reaches it can read it.",
        "actors",
        not_for=("compare", "trace", "chaos", "bench decode", "bench batch", "bench replan"),
        metavar="ADDRESS",
        shown="a free port of this machine, once someone watches",
    )
    max_batch: int = option(
        MAX_BATCH, "Tokens of one sparse pass of a prompt.", low=1, high=MAX_BATCH
    )
    prompt_piece: int = option(
        MAX_BATCH,
        "Tokens of prompts in a pass in which others decode, at most. Fewer make the others wait "
        "less for their next token, and the prompts take longer.",
        low=1,
        high=MAX_BATCH,
    )

    def __post_init__(self) -> None:
        check_all(self)
        topology = self.topology  # raises where there is no room for so many
        parse_budgets(self.vram, topology.gpus)
        here = processors()
        try:
            row = replace(rows(EngineConfig)["threads"], high=max(4, 2 * here.at_once))
            row.check(self.threads)
        except ConfigError as error:
            raise ConfigError(f"{error}; this process has {here}") from None
        if self.telemetry is not None and not re.fullmatch(
            r"tcp://[^\s/]+:\d{1,5}", self.telemetry
        ):
            raise ConfigError(
                f"telemetry {self.telemetry!r:.80} is no address; give one such as "
                "tcp://127.0.0.1:5599"
            )
        if self.sequences > 1 and self.transport == "ray":
            raise ConfigError(
                f"sequences {self.sequences}: the ray transport runs one; choose transport native, "
                "or sequences 1"
            )
        if self.predictor_process == "mps" and self.transport == "ray":
            raise ConfigError(
                "predictor_process 'mps' shares a GPU, and the ray transport uses none; choose "
                "transport native, or predictor_process fused"
            )
        if self.predictor_process == "mps" and self.prompt_form == "dense":
            raise ConfigError(
                "predictor_process 'mps' leaves the GPU executor without the predictor's matrices, "
                "which dense prompts need; choose prompt_form sparse, or predictor_process fused"
            )

    @property
    def topology(self) -> Topology:
        """The actors asked for."""
        return Topology(self.gpu_executors, self.cpu_executors)


ENGINE, SAMPLING = rows(EngineConfig), rows(Sampling)
documented(EngineConfig)(EngineConfig)
