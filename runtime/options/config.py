"""What the user asked for, validated once: the engine's configuration and a request's sampling.

Plain frozen data; the command line and `Engine.launch` both build it, the actors receive it whole.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hotcold.native.errors import ConfigError
from hotcold.runtime.model.spec import DTYPE_BYTES
from hotcold.runtime.weights.weights import choose_store

TRANSPORTS = ("native", "ray")
PROMPT_FORMS = ("auto", "dense", "sparse")
PREDICTOR_PROCESSES = ("fused", "mps")
MAX_BATCH = 32
DEFAULT_CONTEXT = 512
DEFAULT_RESTARTS = 3
DEFAULT_AUDIT = 256  # see audit.c for what it costs and how sure it makes


@dataclass(frozen=True)
class EngineConfig:
    """Options of an engine; None means "decide from the model and the machine".

    Args:
        model: Hugging Face folder, bundle folder, or None for the embedded model.
        vram: GPU memory budget in bytes or as "24MiB"; without a GPU it bounds what the GPU
            executor's CPU device owns. None: everything dense and half of all neuron bytes.
        policy: placement policy: name, "file.py:Class", "package.module:Class" or object.
        schedule: schedule policy, likewise.
        predictor: "auto", a kind, a folder of learned predictors, "file.py:Class" or object.
        plan: folder of a saved plan; replaces policy and vram.
        threads: worker threads of each executor, the loop's own included.
        transport: "native" or "ray".
        context: positions the KV cache holds; None: the model's own, at most 512, because the
            cache competes with hot neurons for the budget.
        dtype: convert the checkpoint's matrices to this dtype.
        settings: plug-in parameters, as in `--set share=0.8`.
        pin: pin loop threads to cores; None: where there is a core for each of them.
        store: how weights are held in memory: "file", "memfd" or "private"
            (`hotcold.runtime.weights.stores`); None: $HOTCOLD_STORE, else by the model's size.
        max_batch: tokens of one pass of a prompt, 1 to 32.
        prompt_form: on a GPU, "sparse" (blocks of max_batch), "dense" (passes over the whole model,
            what is not resident streamed through) or "auto": dense from a measured length on.
        kv_dtype: of the KV cache on a GPU, "float32" or "float16" (half the bytes; moves logits by
            about 0.02). The CPU device keeps float32.
        bus_share: part of the neurons beside a GPU that the GPU itself reads from pinned host
            memory, over the bus, while the CPU executor computes the others; 0 to 0.9.
        predictor_dtype: None: predictor matrices on a GPU as they are; "int8": quantised by row.
        predictor_process: on a GPU, "fused": the GPU executor predicts in its own graph; "mps": the
            predictor has a process of its own on the GPU, under a private MPS daemon. That takes a
            second CUDA context out of the budget, and prompts are sparse.
        seed: default sampling seed.
        restarts: losses of actors a generation survives; 0: the first one ends it. The actors are
            rebuilt either way, so that the engine can go on being used.
        stuck_s: seconds without progress in a running pass after which its actor is lost.
        kernels: CPU kernels: a built-in variant ("avx2"), or a C file of one's own, which every
            actor compiles and loads; None: HOTCOLD_CPU, or the best built-in one.
        audit: one in so many neurons that a predictor left out is evaluated anyway, to estimate the
            recall; 0: none. Outputs do not depend on it.
        hardware: rates that policies decide by: a reference machine, or a file of `hotcold
            hardware`; None: this machine's file, if it was measured.
        policy_timeout: seconds that a policy given by name or file may take.

    Raises:
        ConfigError: a value out of range.
    """

    model: str | os.PathLike[str] | None = None
    vram: str | int | None = None
    policy: Any = "greedy"
    schedule: Any = "selective"
    predictor: Any = "auto"
    plan: str | os.PathLike[str] | None = None
    threads: int | None = None
    transport: str = "native"
    context: int | None = None
    dtype: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    pin: bool | None = None
    store: str | None = None
    max_batch: int = MAX_BATCH
    prompt_form: str = "auto"
    kv_dtype: str = "float32"
    predictor_dtype: str | None = None
    predictor_process: str = "fused"
    bus_share: float = 0.0
    seed: int = 0
    restarts: int = DEFAULT_RESTARTS
    stuck_s: float = 10.0
    kernels: str | None = None
    audit: int = DEFAULT_AUDIT
    hardware: str | None = None
    policy_timeout: float = 60.0

    def __post_init__(self) -> None:
        check_range("restarts", self.restarts, 0, 1000)
        if not 0.1 <= self.stuck_s <= 3600:
            raise ConfigError(f"stuck_s {self.stuck_s} is outside 0.1..3600 seconds")
        if not (math.isfinite(self.policy_timeout) and self.policy_timeout > 0):
            raise ConfigError(
                f"policy_timeout is {self.policy_timeout} s; it must be a finite number above 0"
            )
        if self.transport not in TRANSPORTS:
            raise ConfigError(
                f"transport {self.transport!r} is unknown; choose from {', '.join(TRANSPORTS)}"
            )
        if self.dtype is not None and self.dtype not in DTYPE_BYTES:
            raise ConfigError(
                f"dtype {self.dtype!r} is unknown; choose from {', '.join(DTYPE_BYTES)}"
            )
        if self.prompt_form not in PROMPT_FORMS:
            forms = ", ".join(PROMPT_FORMS)
            raise ConfigError(f"prompt_form {self.prompt_form!r} is unknown; choose from {forms}")
        if self.kv_dtype not in ("float32", "float16"):
            raise ConfigError(f"kv_dtype {self.kv_dtype!r} is unknown; choose float32 or float16")
        if not 0 <= self.bus_share <= 0.9:
            raise ConfigError(f"bus_share {self.bus_share} is outside 0..0.9")
        if self.predictor_dtype not in (None, "int8"):
            raise ConfigError(f"predictor_dtype {self.predictor_dtype!r} is unknown; choose int8")
        self._check_predictor_process()
        choose_store(self.store, 0)
        cores = len(os.sched_getaffinity(0))
        if self.threads is not None:
            check_range("threads", self.threads, 1, max(4, 2 * cores))
        if self.context is not None:
            check_range("context", self.context, 1, 1 << 24)
        check_range("max_batch", self.max_batch, 1, MAX_BATCH)
        check_range("seed", self.seed, 0, (1 << 64) - 1)
        check_range("audit", self.audit, 0, 1 << 20)

    def _check_predictor_process(self) -> None:
        if self.predictor_process not in PREDICTOR_PROCESSES:
            raise ConfigError(
                f"predictor_process {self.predictor_process!r} is unknown; choose from "
                f"{', '.join(PREDICTOR_PROCESSES)}"
            )
        if self.predictor_process != "mps":
            return
        if self.transport == "ray":
            raise ConfigError(
                "predictor_process 'mps' shares a GPU, and the ray transport uses none; choose "
                "transport native, or predictor_process fused"
            )
        if self.prompt_form == "dense":
            raise ConfigError(
                "predictor_process 'mps' leaves the GPU executor without the predictor's matrices, "
                "which dense prompts need; choose prompt_form sparse, or predictor_process fused"
            )


@dataclass(frozen=True)
class Sampling:
    """How one request is continued.

    Args:
        max_tokens: new tokens at most; the context may end it earlier.
        temperature: 0 is greedy.
        top_k: keep the k likeliest tokens; 0 is off.
        top_p: keep the likeliest tokens that reach this probability; 1 is off.
        seed: the draw is a function of (seed, position) alone.
        stop: strings that end the text; they are not part of it.
        ignore_eos: go on past the end-of-sequence token.

    Raises:
        ConfigError: a value out of range.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        check_range("max_tokens", self.max_tokens, 1, 1 << 24)
        check_range("top_k", self.top_k, 0, 1 << 30)
        check_range("seed", self.seed, 0, (1 << 64) - 1)
        if not (math.isfinite(self.temperature) and 0 <= self.temperature <= 100):
            raise ConfigError(f"temperature {self.temperature} is outside 0..100")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p {self.top_p} is outside (0, 1]; 1 turns it off")
        if isinstance(self.stop, str) or not isinstance(self.stop, Sequence):
            raise ConfigError("stop must be a sequence of strings")
        if any(not isinstance(text, str) or not text for text in self.stop):
            raise ConfigError("stop strings must be non-empty text")


def check_range(name: str, value: int, low: int, high: int) -> None:
    """Raise ConfigError unless value is an integer of [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} {value!r} is not a whole number in {low}..{high}")
