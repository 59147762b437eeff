"""Shapes that can be planted: sizes of published models, and the statistics measured on them.

Read by the command and by whoever plants. The densities and shares are those the PowerInfer paper
(2312.12456) and the model cards report; where neither says anything, those of
the nearest relative.

They are planted as they are published, the largest differences being an untied head and a
tokenizer of bytes.
"""

from dataclasses import dataclass
from typing import Any, Literal

from hotcold.native.errors import ConfigError
from hotcold.runtime.model.architectures.falcon import TWO_NORMS
from hotcold.runtime.model.block import POST_NORM, PRE_NORM, Block
from hotcold.runtime.model.spec import ModelSpec, split_dtype

Family = Literal["llama", "opt", "falcon"]
EOS = 2
# What a family's models are built of, in ModelSpec's terms; a Llama is the default.
_KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "opt": {"norm": "layer", "gated": False, "positions": "learned", "biases": True},
    "falcon": {"norm": "layer", "gated": False},
}
NOTES = (
    "opt shapes have OPT's block: ungated ReLU neurons with biases, layer norms, learned "
    "positions. falcon shapes have Falcon 40B's: ungated ReLU neurons without biases, rotary "
    "positions, few key/value heads, and a layer norm each for attention and feed-forward part, "
    "which stand side by side."
)


@dataclass(frozen=True)
class Shape:
    """One row of the table.

    share80 is the share of a layer's neurons that hold 80 % of its activations, `quiet` that of the
    layers, from the first, in which almost nothing fires. embed_dim is the width of embedding and
    head where that is not d_model. With POST_NORM there is no norm before the head.
    """

    family: Family
    layers: int
    d_model: int
    neurons: int
    heads: int
    kv_heads: int
    vocab: int
    context: int
    density: float = 0.12
    share80: float = 0.43
    quiet: float = 0.0
    theta: float = 10000.0
    embed_dim: int | None = None
    block: Block = PRE_NORM

    def spec(self, layers: int | None, dtype: str) -> ModelSpec:
        """The spec of this shape, or of its first layers; int8 neurons are beside float16.

        Raises:
            ConfigError: more layers than the shape has, or none.
        """
        n_layers = self.layers if layers is None else layers
        if not 1 <= n_layers <= self.layers:
            raise ConfigError(
                f"{n_layers} layers cannot be planted: the shape has {self.layers}, give 1 to "
                f"{self.layers}"
            )
        plain, neurons = split_dtype(dtype, "float16")
        return ModelSpec(
            architecture=self.family,
            n_layers=n_layers,
            d_model=self.d_model,
            n_neurons=self.neurons,
            n_heads=self.heads,
            n_kv_heads=self.kv_heads,
            head_dim=self.d_model // self.heads,
            vocab_size=self.vocab,
            max_context=self.context,
            norm_eps=1e-5,
            rope_theta=0.0 if self.family == "opt" else self.theta,
            tied=False,  # with the embedding as its head a planted model would repeat one token
            dtype=plain,
            neuron_dtype=neurons,
            bos_ids=(1,),
            eos_ids=(EOS,),
            block=self.block,
            final_norm=self.block != POST_NORM,
            embed_dim=self.embed_dim,
            **_KINDS[self.family],
        )


def _opt(
    layers: int,
    d: int,
    heads: int,
    density: float = 0.04,
    vocab: int = 50272,
    context: int = 2048,
    embed_dim: int | None = None,
    block: Block = PRE_NORM,
) -> Shape:
    """An OPT: four neurons a channel; the first half of the layers is nearly silent."""
    return Shape(
        "opt",
        *(layers, d, 4 * d, heads, heads, vocab, context),
        density=density,
        share80=0.26,
        quiet=0.5,
        embed_dim=embed_dim,
        block=block,
    )


SHAPES: dict[str, Shape] = {
    "tiny": Shape("llama", 2, 64, 192, 4, 2, 512, 512),
    "small": Shape("llama", 4, 256, 1024, 8, 4, 2048, 1024),
    "tiny-opt": _opt(2, 64, 4, vocab=512, context=512),
    "small-opt": _opt(4, 256, 8, vocab=2048, context=1024),
    "small-falcon": Shape("falcon", 4, 256, 1024, 8, 2, 2048, 1024, 0.05, 0.26, block=TWO_NORMS),
    "llama-1b": Shape("llama", 16, 2048, 8192, 32, 8, 32000, 2048),
    "llama2-7b": Shape("llama", 32, 4096, 11008, 32, 32, 32000, 4096, 0.30, 0.43),
    "llama2-13b": Shape("llama", 40, 5120, 13824, 40, 40, 32000, 4096, 0.22, 0.43),
    "llama2-70b": Shape("llama", 80, 8192, 28672, 64, 8, 32000, 4096, 0.18, 0.43),
    "opt-125m": _opt(12, 768, 12),
    "opt-350m": _opt(24, 1024, 16, embed_dim=512, block=POST_NORM),
    "opt-1.3b": _opt(24, 2048, 32),
    "opt-2.7b": _opt(32, 2560, 32),
    "opt-6.7b": _opt(32, 4096, 32),
    "opt-13b": _opt(40, 5120, 40),
    "opt-30b": _opt(48, 7168, 56, density=0.03),
    "opt-66b": _opt(64, 9216, 72, density=0.03),
    "opt-175b": _opt(96, 12288, 96, density=0.03),
    "falcon-40b": Shape(
        "falcon", 60, 8192, 32768, 128, 8, 65024, 2048, 0.05, 0.26, block=TWO_NORMS
    ),
}


def find_shape(name: str) -> Shape:
    """A shape of the table.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in SHAPES:
        raise ConfigError(f"shape {name!r:.80} is unknown; choose one of {', '.join(SHAPES)}")
    return SHAPES[name]
