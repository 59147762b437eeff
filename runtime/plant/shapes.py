"""Shapes that can be planted: sizes of published models, and the statistics measured on them.

Read by the command and by whoever plants. The densities and shares are those the PowerInfer paper
and the model cards report; where neither says anything, those of the nearest relative.
"""

from dataclasses import dataclass
from typing import Literal

from hotcold.runtime.errors import ConfigError
from hotcold.runtime.model import DType, ModelSpec

Family = Literal["llama", "opt", "falcon"]
EOS = 2


@dataclass(frozen=True)
class Shape:
    """One row of the table.

    Args:
        family: the architecture it is written as.
        layers, d_model, neurons, heads, kv_heads, vocab, context: sizes.
        density: share of neurons that fire for a token.
        share80: share of a layer's neurons that hold 80 % of its activations.
        quiet: share of the layers, from the first, in which almost nothing fires.
        theta: base of the rotary frequencies, where there are any.
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

    def spec(self, layers: int | None, dtype: DType) -> ModelSpec:
        """The spec of this shape, or of its first layers.

        Raises:
            ConfigError: more layers than the shape has, or none.
        """
        n_layers = self.layers if layers is None else layers
        if not 1 <= n_layers <= self.layers:
            raise ConfigError(
                f"{n_layers} layers cannot be planted: the shape has {self.layers}, give 1 to "
                f"{self.layers}"
            )
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
            rope_theta=self.theta,
            tied=False,  # with the embedding as its head a planted model would repeat one token
            dtype=dtype,
            bos_ids=(1,),
            eos_ids=(EOS,),
        )


_OPT = {"vocab": 50272, "context": 2048, "share80": 0.26, "quiet": 0.5}

SHAPES: dict[str, Shape] = {
    "tiny": Shape("llama", 2, 64, 192, 4, 2, 512, 512),
    "small": Shape("llama", 4, 256, 1024, 8, 4, 2048, 1024),
    "llama-1b": Shape("llama", 16, 2048, 8192, 32, 8, 32000, 2048),
    "llama2-7b": Shape("llama", 32, 4096, 11008, 32, 32, 32000, 4096, 0.30, 0.43),
    "llama2-13b": Shape("llama", 40, 5120, 13824, 40, 40, 32000, 4096, 0.22, 0.43),
    "llama2-70b": Shape("llama", 80, 8192, 28672, 64, 8, 32000, 4096, 0.18, 0.43),
    "opt-6.7b": Shape("opt", 32, 4096, 16384, 32, 32, density=0.04, **_OPT),  # type: ignore[arg-type]
    "opt-13b": Shape("opt", 40, 5120, 20480, 40, 40, density=0.04, **_OPT),  # type: ignore[arg-type]
    "opt-30b": Shape("opt", 48, 7168, 28672, 56, 56, density=0.03, **_OPT),  # type: ignore[arg-type]
    "opt-66b": Shape("opt", 64, 9216, 36864, 72, 72, density=0.03, **_OPT),  # type: ignore[arg-type]
    "opt-175b": Shape("opt", 96, 12288, 49152, 96, 96, density=0.03, **_OPT),  # type: ignore[arg-type]
    "falcon-40b": Shape("falcon", 60, 8192, 32768, 128, 8, 65024, 2048, 0.05, 0.26),
}


def find_shape(name: str) -> Shape:
    """A shape of the table.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in SHAPES:
        raise ConfigError(f"shape {name!r:.80} is unknown; choose one of {', '.join(SHAPES)}")
    return SHAPES[name]
