"""llama.cpp as a rival: the same weights as GGUF, some sequences decoded together, step by step."""

import time
from pathlib import Path
from typing import Any

from hotcold.native.errors import ConfigError
from hotcold.runtime.bench.decode import Prompts, Rate
from hotcold.runtime.model.checkpoints.bundle import Bundle
from hotcold.runtime.weights.gguf import write_gguf

CELLS = 256  # a sequence's share of the KV cache is a multiple of it


def llama_cpp_rate(bundle: Bundle, folder: Path, threads: int) -> Rate:
    """A function that decodes prompts of one length with llama.cpp on the CPU.

    Its input is the prompts' ids, repeated: what it reads does not depend on them.
    The bundle is a Llama's, the GGUF file is written into `folder`, and the better of one thread
    and `threads` counts.

    Raises:
        ConfigError: llama-cpp-python is not installed.
    """
    try:
        import llama_cpp as api
    except ImportError as error:
        raise ConfigError(
            f"the comparison needs llama-cpp-python ({error}); pip install 'hotcold[rivals]'"
        ) from error
    path = folder / "model.gguf"
    write_gguf(bundle, path)
    api.llama_log_set(_quiet(api), None)
    api.llama_backend_init()
    asked = api.llama_model_default_params()
    asked.n_gpu_layers = 0
    model = api.llama_model_load_from_file(str(path).encode(), asked)
    if not model:
        raise ConfigError(f"llama.cpp cannot read {path}, made of {bundle.path}; leave it out")

    def rate(prompts: Prompts, new_tokens: int) -> float:
        return max(_decode(api, model, prompts, new_tokens, n) for n in sorted({1, threads}))

    return rate


def _quiet(api: Any) -> Any:
    _quiet.callback = api.llama_log_callback(lambda *_: None)  # type: ignore[attr-defined] # it stays
    return _quiet.callback  # type: ignore[attr-defined]


def _decode(api: Any, model: Any, prompts: Prompts, new_tokens: int, threads: int) -> float:
    """Tokens/s of all sequences, the prompts left out."""
    count, length = len(prompts), len(prompts[0])
    asked = api.llama_context_default_params()
    asked.n_seq_max = count
    asked.n_ctx = count * -(-(length + new_tokens) // CELLS) * CELLS
    asked.n_batch = asked.n_ubatch = count * length
    asked.n_threads = asked.n_threads_batch = threads
    context = api.llama_init_from_model(model, asked)
    if not context:
        raise ConfigError(f"llama.cpp has no room for {count} sequences; give fewer")
    batch = api.llama_batch_init(count * length, 0, 1)
    try:
        passes = [range(length), *(range(at, at + 1) for at in range(length, length + new_tokens))]
        for positions in passes:
            _fill(batch, prompts, positions)
            if api.llama_decode(context, batch):
                raise ConfigError(f"llama.cpp cannot decode {count} sequences; leave it out")
            if positions is passes[0]:
                begin = time.perf_counter()
        return count * new_tokens / (time.perf_counter() - begin)
    finally:
        api.llama_batch_free(batch)
        api.llama_free(context)


def _fill(batch: Any, prompts: Prompts, positions: range) -> None:
    """One pass: the ids at some positions of every sequence, logits for the last of each."""
    rows = [(sequence, at) for sequence in range(len(prompts)) for at in positions]
    batch.n_tokens = len(rows)
    for row, (sequence, at) in enumerate(rows):
        batch.token[row] = prompts[sequence][at % len(prompts[sequence])]
        batch.pos[row] = at
        batch.n_seq_id[row] = 1
        batch.seq_id[row][0] = sequence
        batch.logits[row] = at == positions[-1]
