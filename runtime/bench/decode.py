"""bench decode: tokens/s of this engine beside `transformers` on the same model, in one run.

Rivals take turns, so that a slow minute of the machine affects both; each figure is the median of
its rounds. Decoding alone is timed: the prompt and the first token are left out on both sides.
"""

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hotcold.native.bindings.pool import Pool
from hotcold.native.bindings.timing import timed_read
from hotcold.native.errors import ConfigError
from hotcold.runtime.bench.kernels import ColdBuffer
from hotcold.runtime.bench.nested import put
from hotcold.runtime.model.checkpoints.bundle import Bundle

PROMPT = "Once upon a time there was a king who"
Prompts = Sequence[Sequence[int]]
Rate = Callable[[Prompts, int], float]  # of prompts and new tokens of each: tokens/s of all


def transformers_rates(folder: str, threads: int) -> dict[str, Rate]:
    """One function per dtype that decodes prompts of one length together.

    Raises:
        ConfigError: transformers is not installed.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise ConfigError(
            f"the comparison needs transformers ({error}); pip install 'hotcold[test]'"
        ) from error

    def rate(model: Any, threads: int, prompts: Prompts, new_tokens: int) -> float:
        torch.set_num_threads(threads)
        ids = torch.tensor([list(prompt) for prompt in prompts])
        stamps: list[float] = []

        class Clock:
            def put(self, _: object) -> None:
                stamps.append(time.perf_counter())

            def end(self) -> None:
                pass

        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                streamer=Clock(),
            )
        steps = stamps[1:]  # the streamer is given the prompt first
        return len(ids) * (len(steps) - 1) / (steps[-1] - steps[0])

    def best(model: Any, prompts: Prompts, new_tokens: int) -> float:
        """The better of one thread and all: in small models more threads can be slower."""
        return max(rate(model, count, prompts, new_tokens) for count in {1, threads})

    runs: dict[str, Rate] = {}
    for dtype in ("float32", "bfloat16"):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        runs[f"transformers {dtype}"] = functools.partial(best, model)
    return runs


def compare(
    engine_rate: Callable[[], tuple[float, float]],
    rivals: Mapping[str, Callable[[], float]],
    rounds: int,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Run the engine and its rivals in turn.

    Rivals are by name and dtype ("transformers float32"); one more round is thrown away. Returns
    medians by the keys of `hotcold bench decode --json`.
    """
    native: list[tuple[float, float]] = []
    others: dict[str, list[float]] = {dtype: [] for dtype in rivals}
    for number in range(rounds + 1):
        progress(f"round {number} of {rounds}" if number else "warming up")
        native.append(engine_rate())
        for dtype, run in rivals.items():
            others[dtype].append(run())
    rates = [rate for rate, _ in native[1:]]
    result: dict[str, Any] = {
        "native": {
            "decode_tokens_per_s": statistics.median(rates),
            "min": min(rates),
            "max": max(rates),
            "gb_per_s": statistics.median(gb for _, gb in native[1:]),
        },
        "rounds": rounds,
    }
    best = 0.0
    for name, times in others.items():
        rate = statistics.median(times[1:])
        put(result, tuple(name.split()), {"decode_tokens_per_s": rate})
        best = max(best, rate)
    if others:
        result["speedup"] = result["native"]["decode_tokens_per_s"] / best
    return result


def read_bandwidth(record_bytes: int, threads: int) -> float:
    """GB/s at which this machine reads records of that length from memory, in random order.

    Bytes per token over this rate is the least time that a token can take.
    """
    length = max(64, record_bytes // 64 * 64)
    buffer = ColdBuffer(1 << 30, "float16")
    with Pool(threads) as pool:
        return max(
            statistics.median(read_rates(buffer.address, buffer.size, length, pool, side))
            for side in (1, 8)
        )


def read_rates(address: int, size: int, length: int, pool: Pool, side: int) -> list[float]:
    """GB/s of reads of random records, ascending as in an active list; none is read twice.

    `length` is a multiple of 64; `side` records are read side by side.
    """
    order = np.random.default_rng(0).permutation(size // length).astype(np.int32)
    read = timed_read(length, length, side, pool)
    times = [read(address, np.sort(part)) for part in np.array_split(order, 8)]
    return [size / seconds / 1e9 for seconds, size in times[1:]]


def source_folder(bundle: Bundle) -> str:
    """The Hugging Face folder a bundle was converted from, for rivals that read only that."""
    if not bundle.source:
        raise ConfigError("this bundle does not say what it was converted from")
    return bundle.source
