"""Running a planted layer on the calibration tokens: norms and attention, nothing more.

Float32 on whatever device the weights are made on. Whole sequences at once, no cache, no sparsity.
Used by `planting`, which needs the inputs of the next layer.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import layer_norm, scaled_dot_product_attention

from hotcold.runtime.model.spec import ModelSpec


@dataclass(frozen=True)
class Norm:
    """A norm with its parameters, float32.

    bias_D is None where it is an RMS norm.
    """

    eps: float
    weight_D: torch.Tensor
    bias_D: torch.Tensor | None

    @classmethod
    def plain(cls, spec: ModelSpec, device: torch.device) -> "Norm":
        """A norm of the model's kind that does nothing but normalise."""
        ones = torch.ones(spec.d_model, device=device)
        return cls(spec.norm_eps, ones, torch.zeros_like(ones) if spec.norm == "layer" else None)

    def with_constant(self, constant: float) -> "Norm":
        """The same, giving `constant` on channel 0 whatever it is fed; needs a bias."""
        assert self.bias_D is not None  # noqa: S101 - an RMS norm has none
        weight_D, bias_D = self.weight_D.clone(), self.bias_D.clone()
        weight_D[0], bias_D[0] = 0.0, constant
        return Norm(self.eps, weight_D, bias_D)

    def __call__(self, h: torch.Tensor) -> torch.Tensor:
        """Normalise [..., D]."""
        if self.bias_D is not None:
            return layer_norm(h, h.shape[-1:], self.weight_D, self.bias_D, self.eps)
        mean = h.square().mean(dim=-1, keepdim=True)
        return h * torch.rsqrt(mean + self.eps) * self.weight_D

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Its parameters by a bundle's names."""
        named = {name: self.weight_D}
        return named if self.bias_D is None else {**named, f"{name}_bias": self.bias_D}


def _rotate(x_SHTE: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotary embedding, pairs (e, e + head_dim / 2), positions from 0."""
    length, dim = x_SHTE.shape[-2:]
    steps = torch.arange(0, dim, 2, device=x_SHTE.device, dtype=torch.float32)
    positions = torch.arange(length, device=x_SHTE.device, dtype=torch.float32)
    angles = torch.outer(positions, theta ** -(steps / dim))
    cos, sin = angles.cos(), angles.sin()
    first, second = x_SHTE.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attention(
    x_SMD: torch.Tensor, qkv: torch.Tensor, bias: torch.Tensor | None, spec: ModelSpec
) -> torch.Tensor:
    """What the heads read, [S * M, heads * head_dim], before the output matrix.

    `qkv` is stacked [(heads + 2 kv_heads) * head_dim, D]; `bias` is added to its products.
    """
    count, length, _ = x_SMD.shape
    rows = torch.nn.functional.linear(x_SMD, qkv.to(x_SMD.dtype), bias)
    parts = rows.split([spec.q_dim, spec.kv_dim, spec.kv_dim], dim=-1)
    q, k, v = (part.view(count, length, -1, spec.head_dim).transpose(1, 2) for part in parts)
    if spec.positions == "rotary":
        q, k = _rotate(q, spec.rope_theta), _rotate(k, spec.rope_theta)
    group = spec.n_heads // spec.n_kv_heads
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    out = scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.transpose(1, 2).reshape(count * length, spec.q_dim)
