"""The driving signal of a planted model: a walk over the vocabulary, its embedding and its head.

Position j of the walk has a token and a Gaussian vector e_j. A token's embedding is its vector; its
head row is the vector of its predecessor, so that greedy decoding walks on, through every ordinary
token, with a wide margin and no loop. Correlation between tokens and drift are properties of the
vectors along the walk:

    e_j = sqrt(1 - drift) AR(1)_j + sqrt(drift) (a cos(turn_j) + b sin(turn_j))

Channel 0 of the residual stream is the constant one: every embedding has `constant` there and
nothing ever writes it, so that a row's weight on it acts as a bias. Used by `planting`.
"""

import math
from dataclasses import dataclass

import torch

from hotcold.runtime.model import ModelSpec

SPECIAL = 3  # <unk>, <s>, </s>: embedded like any other, never generated
DRIFT_PERIOD = 4096  # tokens of one turn of the drift
TOP_LOGIT = 12.0  # of the walk's next token; the others' are of order one


def generator(device: torch.device, *key: int) -> torch.Generator:
    """A generator of its own for each use, so that no use depends on what was drawn before."""
    seed = 0
    for part in key:
        seed = (seed * 1_000_003 + part + 1) % (1 << 62)
    return torch.Generator(device).manual_seed(seed)


def constant_of(d_model: int) -> float:
    """The value of channel 0: a power of two, a sixteenth of the stream's energy or so.

    Larger, and little signal is left beside it; smaller, and the rows' weights on it stand out so
    far that low-precision formats, which share one scale among neighbours, lose the rest.
    """
    return 2.0 ** round(math.log2(math.sqrt(d_model) / 4))


@dataclass(frozen=True)
class Signal:
    """Embedding and head of a planted model.

    Args:
        embed_VD: in the model's dtype.
        head_VD: likewise.
        walk_W: token at each position of the walk.
        constant: value of channel 0.
    """

    embed_VD: torch.Tensor
    head_VD: torch.Tensor
    walk_W: torch.Tensor
    constant: float

    def sequences(self, count: int, length: int, seed: int) -> torch.Tensor:
        """Token ids [count, length]: pieces of the walk, begun at random."""
        device, n = self.walk_W.device, len(self.walk_W)
        starts = torch.randint(n, (count, 1), generator=generator(device, seed, 9), device=device)
        steps = torch.arange(length, device=device)
        return self.walk_W[(starts + steps) % n]


def make_signal(
    spec: ModelSpec, dtype: torch.dtype, device: torch.device, seed: int, rho: float, drift: float
) -> Signal:
    """Draw embedding and head.

    Args:
        spec: shapes.
        dtype: of the two matrices.
        device: where they are made and stay.
        seed: of everything random.
        rho: correlation between a token's vector and its predecessor's, 0 to under 1.
        drift: share of the signal's energy that turns slowly instead of changing by token.
    """
    v, d = spec.vocab_size, spec.d_model
    n = max(1, v - SPECIAL)
    e_VD = torch.randn((v, d), generator=generator(device, seed, 1), device=device)
    walked_WD = e_VD[v - n :]
    if rho > 0:
        fresh = math.sqrt(1 - rho * rho)
        for j in range(1, n):
            walked_WD[j].mul_(fresh).add_(walked_WD[j - 1], alpha=rho)
    if drift > 0:
        turn_W1 = (torch.arange(n, device=device) * (2 * math.pi / DRIFT_PERIOD))[:, None]
        a_D, b_D = torch.randn((2, d), generator=generator(device, seed, 2), device=device)
        walked_WD.mul_(math.sqrt(1 - drift))
        walked_WD.add_(math.sqrt(drift) * (a_D * turn_W1.cos() + b_D * turn_W1.sin()))
    order_W = torch.randperm(n, generator=generator(device, seed, 3), device=device) + (v - n)
    constant = constant_of(d)
    embed_VD = torch.empty((v, d), dtype=dtype, device=device)
    embed_VD[: v - n] = e_VD[: v - n].to(dtype)
    embed_VD[order_W] = walked_WD.to(dtype)
    embed_VD[:, 0] = constant
    head_VD = torch.zeros((v, d), dtype=dtype, device=device)
    head_VD[order_W.roll(-1)] = (walked_WD * (TOP_LOGIT / d)).to(dtype)
    head_VD[:, 0] = 0
    return Signal(embed_VD, head_VD, order_W, constant)
