"""The transformer block as data: operators in their order, with the streams they read and write.

An architecture file names its block; the CPU loop (native/loop/dense.c), the CUDA graph
(native/cuda/executor/graph.cu), the dense prompt (native/cuda/prompt/prompt_layer.cu) and the torch
model of training (runtime/offline/training/dense.py) walk it, and none of them knows an
architecture. Streams, each [tokens, D]: "h" the residual stream, "a" the input of attention, "x"
the input of the feed-forward part, which its predictor reads too. A norm writes its target;
`attend` and `ffn` add to h.

    Llama       norm h -> a | attend a | norm h -> x | ffn x
    opt-350m    attend h | norm h -> h | ffn h | norm h -> h
    Falcon 7B   norm h -> x | attend x | ffn x                  attention and ffn side by side

Where x does not depend on attention, it is handed over before attention starts, by a step of its
own (`input`), so that others compute neurons meanwhile.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from hotcold.native.abi.names import OPERATORS, OPS, STREAMS

Stream = Literal["h", "a", "x"]
Step = Literal["input", "attention", "merge"]
NORMS = ("attention_norm", "ffn_norm")


@dataclass(frozen=True)
class Operator:
    """One operator of a block; `weights` names the tensor of a norm, without its layer."""

    kind: Literal["norm", "attend", "ffn"]
    source: Stream
    target: Stream
    weights: str = ""


Block = tuple[Operator, ...]


def norm(weights: str, source: Stream, target: Stream) -> Operator:
    """Write a normed source to target; weights: "attention_norm" or "ffn_norm"."""
    return Operator("norm", source, target, weights)


def attend(source: Stream) -> Operator:
    """Add attention(source) to h."""
    return Operator("attend", source, "h")


def ffn(source: Stream) -> Operator:
    """Add the feed-forward part of source to h."""
    return Operator("ffn", source, "h")


PRE_NORM: Block = (
    norm("attention_norm", "h", "a"),
    attend("a"),
    norm("ffn_norm", "h", "x"),
    ffn("x"),
)
POST_NORM: Block = (
    attend("h"),
    norm("attention_norm", "h", "h"),
    ffn("h"),
    norm("ffn_norm", "h", "h"),
)


def norms(block: Block) -> tuple[str, ...]:
    """Names of its norms' weights."""
    return tuple(one.weights for one in block if one.kind == "norm")


def input_norm(block: Block) -> str:
    """The norm that the feed-forward part's input comes out of; "" where there is none."""
    at = _place(block, "ffn")
    made = [one.weights for one in block[:at] if one.target == block[at].source]
    return made[-1] if made else ""


@cache
def steps(block: Block) -> tuple[Step, ...]:
    """Which step of a program computes each operator; of `ffn`, which hands its input over."""
    ffn_at = _place(block, "ffn")
    together = _reads_attention(block, ffn_at)
    made: list[Step] = []
    for at, one in enumerate(block):
        early = not together and (one.kind == "ffn" or one.target == block[ffn_at].source)
        made.append("merge" if at > ffn_at else "input" if early else "attention")
    return tuple(made)


def parallel(block: Block) -> bool:
    """Whether attention and the feed-forward part are computed side by side."""
    return "input" in steps(block)


def keeps_both(block: Block) -> bool:
    """Whether attention has an input of its own while the feed-forward part's is alive."""
    return parallel(block) and any(one.target == "a" for one in block)


def operators(block: Block) -> list[dict[str, int]]:
    """As hc_operator (abi/hotcold.h)."""
    return [
        {
            "kind": OPERATORS[one.kind],
            "source": STREAMS[one.source],
            "target": STREAMS[one.target],
            "of_ffn": int(one.weights == "ffn_norm"),
            "step": OPS.index(step),
        }
        for one, step in zip(block, steps(block), strict=True)
    ]


def check_block(block: Sequence[Operator]) -> None:
    """Refuse a block that cannot be computed.

    Raises:
        ValueError: the text says what is wrong with it.
    """
    if not isinstance(block, tuple) or not all(isinstance(one, Operator) for one in block):
        raise ValueError(f"block is {block!r:.80}, it must be a tuple of operators")
    written = {"h"}
    for one in block:
        if one.kind not in OPERATORS or one.source not in STREAMS or one.target not in STREAMS:
            raise ValueError(f"operator {one!r:.120} of the block is unknown")
        if one.source not in written:
            raise ValueError(f"{one.kind} of the block reads {one.source!r} before it is written")
        if (one.kind == "norm") != (one.weights in NORMS) or (one.kind != "norm") > (
            one.target == "h"
        ):
            raise ValueError(f"operator {one!r:.120} of the block cannot be computed")
        written.add(one.target)
    if len(set(norms(block))) < len(norms(block)):
        raise ValueError("a norm of the block appears twice")
    for kind in ("attend", "ffn"):
        if sum(one.kind == kind for one in block) != 1:
            raise ValueError(f"a block has one {kind}, this one has another number")
    if _place(block, "attend") > _place(block, "ffn"):
        raise ValueError("attend comes before ffn in a block")
    made = steps(block)
    first = made.index("attention")
    late = [one for one, step in zip(block[first:], made[first:], strict=True) if step == "input"]
    if any(one.kind == "norm" for one in late):
        raise ValueError("a parallel block begins with the norm of its feed-forward part")


def words(block: Block) -> str:
    """In words, as in this file's head."""
    return " | ".join(
        f"{one.kind} {one.source}" + (f" -> {one.target}" if one.kind == "norm" else "")
        for one in block
    )


def _place(block: Block, kind: str) -> int:
    return next(at for at, one in enumerate(block) if one.kind == kind)


def _reads_attention(block: Block, at: int) -> bool:
    """Whether what operator `at` reads depends on attention."""
    source = block[at].source
    for one in reversed(block[:at]):
        if one.target != source:
            continue
        if one.kind == "attend":
            return True
        source = one.source
    return False
