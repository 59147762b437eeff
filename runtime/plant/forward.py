"""Running a planted layer on the calibration tokens: norm, attention, nothing more.

Float32 on whatever device the weights are made on. Not an engine: whole sequences at once, no
cache, no sparsity. Used by `planting`, which must know what the next layer's inputs look like.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention

from hotcold.runtime.model import ModelSpec


def rms_norm(h: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm with weights of one, [..., D]."""
    return h * torch.rsqrt(h.square().mean(dim=-1, keepdim=True) + eps)


def layer_norm(h: torch.Tensor, eps: float) -> torch.Tensor:
    """Layer norm with weights of one and no bias, [..., D]."""
    return torch.nn.functional.layer_norm(h, h.shape[-1:], eps=eps)


def _rotate(x_SHTE: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotary embedding, pairs (e, e + head_dim / 2), positions from 0."""
    length, dim = x_SHTE.shape[-2:]
    steps = torch.arange(0, dim, 2, device=x_SHTE.device, dtype=torch.float32)
    positions = torch.arange(length, device=x_SHTE.device, dtype=torch.float32)
    angles = torch.outer(positions, theta ** -(steps / dim))
    cos, sin = angles.cos(), angles.sin()
    first, second = x_SHTE.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attention(x_SMD: torch.Tensor, qkv: torch.Tensor, spec: ModelSpec) -> torch.Tensor:
    """What the heads read, before the output matrix.

    Args:
        x_SMD: normed input of S sequences of M tokens.
        qkv: the stacked matrices [(heads + 2 kv_heads) * head_dim, D].
        spec: shapes; rotary positions for a Llama, none for others.

    Returns:
        [S * M, heads * head_dim].
    """
    count, length, _ = x_SMD.shape
    rows = x_SMD @ qkv.to(x_SMD.dtype).T
    parts = rows.split([spec.q_dim, spec.kv_dim, spec.kv_dim], dim=-1)
    q, k, v = (part.view(count, length, -1, spec.head_dim).transpose(1, 2) for part in parts)
    if spec.architecture != "opt":
        q, k = _rotate(q, spec.rope_theta), _rotate(k, spec.rope_theta)
    group = spec.n_heads // spec.n_kv_heads
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    out = scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.transpose(1, 2).reshape(count * length, spec.q_dim)
