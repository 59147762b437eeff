"""The driving signal of a planted model: a walk over the vocabulary, its embedding and its head.

Position j of the walk has a token and a Gaussian vector e_j. A token's embedding is its vector; its
head row is the vector of its predecessor, so that greedy decoding walks on, through every ordinary
token, with a wide margin and no loop. Correlation between tokens and drift are properties of the
vectors along the walk:

    e_j = sqrt(1 - drift) AR(1)_j + sqrt(drift) (a cos(turn_j) + b sin(turn_j))

Channel 0 of the residual stream is set apart: nothing ever writes it. Where norms are RMS norms,
every embedding has `constant` there, so that a row's weight on it acts as a bias; layer norms make
that constant themselves (see `planting`), and embeddings have 0. Learned positions are random rows,
a sixteenth of the stream's energy. Embeddings narrower than the stream are turned into it by
orthonormal columns, and out of it by the same. Used by `planting`.
"""

import math
from dataclasses import dataclass

import torch

from hotcold.runtime.model.spec import ModelSpec

SPECIAL = 3  # <unk>, <s>, </s>: embedded like any other, never generated
DRIFT_PERIOD = 4096  # tokens of one turn of the drift
TOP_LOGIT = 12.0  # of the walk's next token; the others' are of order one
POSITION = 0.25  # standard deviation of a learned position; an embedding's is 1


def generator(device: torch.device, *key: int) -> torch.Generator:
    """A separate generator for each use, so that no use depends on what was drawn before."""
    seed = 0
    for part in key:
        seed = (seed * 1_000_003 + part + 1) % (1 << 62)
    return torch.Generator(device).manual_seed(seed)


def randn(device: torch.device, rows: int, columns: int, *key: int) -> torch.Tensor:
    """Standard Gaussians, the same for the same key."""
    return torch.randn((rows, columns), generator=generator(device, *key), device=device)


def constant_of(d_model: int) -> float:
    """The value of channel 0: a power of two, a sixteenth of the stream's energy or so.

    With a larger value little signal is left beside it. With a smaller one the rows' weights on it
    are so large that low-precision formats, which share one scale among neighbours, lose the rest.
    """
    return 2.0 ** round(math.log2(math.sqrt(d_model) / 4))


@dataclass(frozen=True)
class Signal:
    """The tensors before the first layer and after the last.

    Args:
        embed_VE: in the model's dtype, like all matrices here; E is the embedding's width.
        head_VE: likewise.
        walk_W: token at each position of the walk.
        constant: value of channel 0 where a neuron reads it, up to the norm.
        positions_PD: learned positions, or None.
        project_in, project_out: [D, E] and [E, D], or None where E is D.
    """

    embed_VE: torch.Tensor
    head_VE: torch.Tensor
    walk_W: torch.Tensor
    constant: float
    positions_PD: torch.Tensor | None = None
    project_in: torch.Tensor | None = None
    project_out: torch.Tensor | None = None

    def stream(self, count: int, length: int, seed: int) -> torch.Tensor:
        """The residual stream [count * length, D] of pieces of the walk, begun at random."""
        device, n = self.walk_W.device, len(self.walk_W)
        starts = torch.randint(n, (count, 1), generator=generator(device, seed, 9), device=device)
        steps = torch.arange(length, device=device)
        ids = self.walk_W[(starts + steps) % n]
        h_MD = self.embed_VE[ids.reshape(-1)].float()
        if self.project_in is not None:
            h_MD = h_MD @ self.project_in.float().T
        if self.positions_PD is not None:
            h_MD += self.positions_PD[:length].float().repeat(count, 1)
        return h_MD

    def tensors(self) -> dict[str, torch.Tensor]:
        """By a bundle's names."""
        named = {
            "embed": self.embed_VE,
            "positions": self.positions_PD,
            "project_in": self.project_in,
            "head": self.head_VE,
            "project_out": self.project_out,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def make_signal(
    spec: ModelSpec, dtype: torch.dtype, device: torch.device, seed: int, rho: float, drift: float
) -> Signal:
    """Draw embedding, head and positions.

    `rho` correlates a token's vector with its predecessor's, 0 to under 1; the share `drift` of the
    signal's energy turns slowly instead of changing by token.
    """
    v, e = spec.vocab_size, spec.embed_width
    n = max(1, v - SPECIAL)
    e_VE = randn(device, v, e, seed, 1)
    walked_WE = e_VE[v - n :]
    _correlate(walked_WE, rho, drift, seed)
    order_W = torch.randperm(n, generator=generator(device, seed, 3), device=device) + (v - n)
    constant = constant_of(spec.d_model)
    embed_VE = torch.empty((v, e), dtype=dtype, device=device)
    embed_VE[: v - n] = e_VE[: v - n].to(dtype)
    embed_VE[order_W] = walked_WE.to(dtype)
    head_VE = torch.zeros((v, e), dtype=dtype, device=device)
    head_VE[order_W.roll(-1)] = walked_WE.mul_(TOP_LOGIT / e).to(dtype)
    inwards, outwards = _projections(spec, dtype, device, seed)
    if inwards is None:  # else channel 0 of the stream is none of these
        embed_VE[:, 0] = constant if spec.norm == "rms" else 0.0
        head_VE[:, 0] = 0
    positions = _positions(spec, dtype, device, seed)
    return Signal(embed_VE, head_VE, order_W, constant, positions, inwards, outwards)


def _correlate(walked_WE: torch.Tensor, rho: float, drift: float, seed: int) -> None:
    """Turn independent vectors along the walk into ones that correlate and drift, in place."""
    n, e = walked_WE.shape
    device = walked_WE.device
    if rho > 0:
        fresh = math.sqrt(1 - rho * rho)
        for j in range(1, n):
            walked_WE[j].mul_(fresh).add_(walked_WE[j - 1], alpha=rho)
    if drift > 0:
        turn_W1 = (torch.arange(n, device=device) * (2 * math.pi / DRIFT_PERIOD))[:, None]
        a_E, b_E = randn(device, 2, e, seed, 2)
        walked_WE.mul_(math.sqrt(1 - drift))
        walked_WE.add_(math.sqrt(drift) * (a_E * turn_W1.cos() + b_E * turn_W1.sin()))


def _positions(
    spec: ModelSpec, dtype: torch.dtype, device: torch.device, seed: int
) -> torch.Tensor | None:
    if spec.positions != "learned":
        return None
    rows = randn(device, spec.max_context, spec.d_model, seed, 4).mul_(POSITION)
    rows[:, 0] = 0
    return rows.to(dtype)


def _projections(
    spec: ModelSpec, dtype: torch.dtype, device: torch.device, seed: int
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Orthonormal columns, scaled so that the stream has variance 1, and what undoes them."""
    if spec.embed_dim is None:
        return None, None
    q_DE, _ = torch.linalg.qr(randn(device, spec.d_model, spec.embed_dim, seed, 5))
    q_DE[0] = 0
    scale = math.sqrt(spec.d_model / spec.embed_dim)
    return (q_DE * scale).to(dtype), (q_DE.T / scale).to(dtype).contiguous()
