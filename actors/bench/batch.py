"""bench batch: tokens/s by the number of sequences that an engine decodes together.

Rivals decode as many of the same prompts in the same rounds (runtime/bench/decode.py). Counters say
what a pass reads: those of a run, less those of its prompts alone. What is left without neurons is
the same for any number of sequences, but for the KV cache: it is known from one sequence, where
every neuron counted was read once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np

from hotcold.actors.engine.engine import Engine
from hotcold.actors.engine.many import Completion
from hotcold.runtime.bench.decode import Rate, compare
from hotcold.runtime.model.checkpoints.bundle import Bundle
from hotcold.runtime.options.config import Sampling
from hotcold.runtime.plan.work import ModelWork
from hotcold.runtime.text.tokenizer import Tokenizer

COUNTS = (1, 2, 4, 8, 16, 32)
SUBJECTS = "king sea dog house tree girl river wind bird road ship child door fire horse night moon"
SUBJECTS += (
    " mill hill field bridge boat star lamp garden queen soldier stone forest church clock cat"
)
LENGTH = 8  # of prompts without a tokenizer


@dataclass(frozen=True)
class Counts:
    """What all actors have done since their plan was loaded."""

    passes: int
    gate_rows: int
    up_down_rows: int
    bytes: int

    @classmethod
    def of(cls, engine: Engine) -> "Counts":
        """Of an engine until now."""
        actors = engine.stats().actors
        sums = {
            field.name: sum(getattr(actor, field.name) for actor in actors.values())
            for field in fields(cls)
        }
        return cls(**sums | {"passes": actors["gpu"].passes})

    def __sub__(self, other: "Counts") -> "Counts":
        names = [field.name for field in fields(self)]
        return Counts(*(getattr(self, name) - getattr(other, name) for name in names))

    def __add__(self, other: "Counts") -> "Counts":
        names = [field.name for field in fields(self)]
        return Counts(*(getattr(self, name) + getattr(other, name) for name in names))


def prompts_of(bundle: Bundle, count: int) -> list[list[int]]:
    """Different prompts of one length: beginnings of sentences, or any ids without a tokenizer."""
    if not Tokenizer.in_folder(bundle.path):
        rng = np.random.default_rng(0)
        ids: list[list[int]] = rng.integers(3, bundle.spec.vocab_size, (count, LENGTH)).tolist()
        return ids
    tokenizer = Tokenizer.load(bundle.path, bundle.spec.vocab_size)
    made = [tokenizer.encode(f"The {word} was once so very") for word in SUBJECTS.split()[:count]]
    return [ids[: min(map(len, made))] for ids in made]


class Batch:
    """Some sequences decoded together, any number of times."""

    def __init__(self, engine: Engine, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
        self._engine, self._prompts, self._new_tokens = engine, prompts, new_tokens
        self._alone = self._counted(1)[1]
        self.counts = Counts(0, 0, 0, 0)

    def rate(self) -> tuple[float, float]:
        """Tokens/s of all sequences from the first prompt's end on, and GB/s meanwhile."""
        results, counts = self._counted(self._new_tokens)
        spans = [one.stats for one in results]
        begin_s = min(one.begin_ns * 1e-9 + one.prompt_s for one in spans)
        end_s = max(one.begin_ns * 1e-9 + one.prompt_s + one.decode_s for one in spans)
        made, decoding = sum(one.new_tokens - 1 for one in spans), counts - self._alone
        self.counts += decoding
        return made / (end_s - begin_s), decoding.bytes / (end_s - begin_s) / 1e9

    def _counted(self, new_tokens: int) -> tuple[list[Completion], Counts]:
        asked = [
            {"prompt": prompt, "max_tokens": new_tokens, "seed": seed}
            for seed, prompt in enumerate(self._prompts)
        ]
        before = Counts.of(self._engine)
        results = list(
            self._engine.generate_many(asked, Sampling(temperature=1.0, ignore_eos=True))
        )
        return results, Counts.of(self._engine) - before


def _told(progress: Callable[[str], None], count: int, text: str) -> None:
    progress(f"{count} at once, {text}")


def measure(
    engine: Engine,
    bundle: Bundle,
    counts: Sequence[int],
    new_tokens: int,
    rounds: int,
    rivals: dict[str, Rate],
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """A row for each number of sequences, in ascending order, 1 among them.

    union_density: neuron bytes that a pass reads over those of all neurons. density: neurons that
    fire for a token over all neurons.
    """
    spec, work = bundle.spec, ModelWork(bundle.spec)
    neuron, neurons = work.neurons.bytes, spec.n_layers * spec.n_neurons
    prompts = prompts_of(bundle, max(counts))
    positions = len(prompts[0]) + new_tokens / 2  # of the cache that a token reads, on the average
    kv_bytes = spec.n_layers * work.attention.bytes.position * positions
    rows: list[dict[str, Any]] = []
    other_bytes = 0.0
    for count in sorted({1, *counts}):
        batch = Batch(engine, prompts[:count], new_tokens)
        others = {name: partial(rate, prompts[:count], new_tokens) for name, rate in rivals.items()}
        row = compare(batch.rate, others, rounds, partial(_told, progress, count))
        done, rate = batch.counts, row["native"]["decode_tokens_per_s"]
        read = done.bytes / done.passes
        if count == 1:
            used = done.gate_rows * neuron.proposed + done.up_down_rows * neuron.fired
            other_bytes = read - used / done.passes
        read -= other_bytes + (count - 1) * kv_bytes
        bound_s = engine.roofline(count).token_s
        row["native"] |= {
            "decode_tokens_per_s_each": rate / count,
            "union_density": read / (neurons * (neuron.proposed + neuron.fired)),
            "density": done.up_down_rows / (count * (new_tokens - 1) * (rounds + 1) * neurons),
            "bound_tokens_per_s": count / bound_s,
            "bound_fraction": rate * bound_s / count,
        }
        rows.append({"sequences": count} | row)
    return rows
