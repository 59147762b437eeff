"""llama.cpp as a rival of `bench decode`: the same weights as GGUF, decoded token by token."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hotcold.native.errors import ConfigError
from hotcold.runtime.model.checkpoints.bundle import Bundle
from hotcold.runtime.weights.gguf import write_gguf

CONTEXT = 512


def llama_cpp_rate(
    bundle: Bundle, folder: Path, prompt: Sequence[int], new_tokens: int, threads: int
) -> Callable[[], float]:
    """A function that decodes once with llama.cpp on the CPU and returns tokens/s.

    Its input is the prompt's ids, repeated: what it reads does not depend on them.
    The bundle is a Llama's, the GGUF file is written into `folder`, and the better of one thread
    and `threads` counts.

    Raises:
        ConfigError: llama-cpp-python is not installed.
    """
    try:
        from llama_cpp import Llama
    except ImportError as error:
        raise ConfigError(
            f"the comparison needs llama-cpp-python ({error}); pip install 'hotcold[rivals]'"
        ) from error
    path = folder / "model.gguf"
    write_gguf(bundle, path)
    models = [
        Llama(
            str(path),
            n_ctx=CONTEXT,
            n_threads=count,
            n_threads_batch=count,
            n_gpu_layers=0,
            verbose=False,
        )
        for count in sorted({1, threads})
    ]

    def rate() -> float:
        rates = []
        for model in models:
            model.reset()
            model.eval(list(prompt))
            begin = time.perf_counter()
            for step in range(new_tokens):
                model.eval([prompt[step % len(prompt)]])
            rates.append(new_tokens / (time.perf_counter() - begin))
        return max(rates)

    return rate
