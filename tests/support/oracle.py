"""The float64 oracle: a Llama with gated ReLU feed-forward layers in plain numpy.

Every kernel, predictor and engine test compares against it, so it shares no code with the project:
it reads a Hugging Face folder itself and computes one obvious line after the other. It knows
nothing of neuron records, devices or plans; what a prediction leaves out is a mask.

Axes: T tokens, L layers, D d_model, N neurons, V vocabulary, H query heads, G key and value heads,
E head_dim.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
# (layer, normed x_TD, residual h_TD) -> proposed neurons [T, N]
Propose = Callable[[int, F64, F64], Mask]


@dataclass(frozen=True)
class Trace:
    """Everything one forward pass computed, in float64.

    Attributes:
        logits_TV: logits of every position.
        gates_LTN: gate pre-activations; a neuron fires where its gate is above 0.
        inputs_LTD: input of each feed-forward layer, after the norm.
        residuals_LTD: the residual stream before that norm.
        masks_LTN: neurons that were let through (all of them for a dense pass).
    """

    logits_TV: F64
    gates_LTN: F64
    inputs_LTD: F64
    residuals_LTD: F64
    masks_LTN: Mask

    @property
    def counts_LN(self) -> npt.NDArray[np.int64]:
        """Tokens for which each neuron fired: what a profiler counts."""
        return (self.gates_LTN > 0).sum(axis=1, dtype=np.int64)


@dataclass
class Cache:
    """Keys and values of the tokens so far, [T, G, E] for each layer."""

    keys: list[F64] = field(default_factory=list)
    values: list[F64] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens held."""
        return len(self.keys[0]) if self.keys else 0

    def extend(self, layer: int, key_TGE: F64, value_TGE: F64) -> tuple[F64, F64]:
        """Append and return all keys and values of a layer."""
        if len(self.keys) == layer:
            self.keys.append(key_TGE)
            self.values.append(value_TGE)
        else:
            self.keys[layer] = np.concatenate([self.keys[layer], key_TGE])
            self.values[layer] = np.concatenate([self.values[layer], value_TGE])
        return self.keys[layer], self.values[layer]


@dataclass(frozen=True)
class Decoded:
    """A greedy continuation: ids and, for each, how far its logit was above the runner-up's."""

    ids: list[int]
    margins: list[float]


@dataclass(frozen=True)
class Oracle:
    """A model: its config.json and its tensors, under their Hugging Face names, in float64."""

    config: dict[str, Any]
    tensors: dict[str, F64]

    @classmethod
    def load(cls, folder: str | Path) -> "Oracle":
        """Read config.json and every safetensors file of a folder."""
        folder = Path(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors: dict[str, F64] = {}
        for path in sorted(folder.glob("*.safetensors")):
            if path.name == "predictors.safetensors":
                continue
            with safe_open(path, "pt") as file:
                for name in file.keys():
                    tensors[name] = file.get_tensor(name).to(torch.float64).numpy()
        return cls(config, tensors)

    @property
    def n_layers(self) -> int:
        """L."""
        return int(self.config["num_hidden_layers"])

    @property
    def n_neurons(self) -> int:
        """N."""
        return int(self.config["intermediate_size"])

    def layer(self, index: int, name: str) -> F64:
        """A weight of a layer, for example layer(0, "mlp.gate_proj")."""
        return self.tensors[f"model.layers.{index}.{name}.weight"]

    def forward(
        self,
        tokens: Sequence[int],
        masks_LTN: Mask | None = None,
        propose: Propose | None = None,
        cache: Cache | None = None,
    ) -> Trace:
        """Run tokens through the model, after those in the cache if one is given.

        Args:
            tokens: ids, T of them.
            masks_LTN: neurons let through; the others contribute nothing, fired or not.
            propose: computes a layer's mask from the layer's own inputs instead.
            cache: keys and values of earlier tokens; extended in place.
        """
        cache = Cache() if cache is None else cache
        start = cache.length
        h_TD = self.tensors["model.embed_tokens.weight"][np.asarray(tokens, dtype=np.int64)]
        kept: list[tuple[F64, F64, F64, Mask]] = []
        for index in range(self.n_layers):
            h_TD = h_TD + self._attention(index, h_TD, start, cache)
            x_TD = self._norm(h_TD, self.layer(index, "post_attention_layernorm"))
            gate_TN = x_TD @ self.layer(index, "mlp.gate_proj").T
            mask_TN = np.ones(gate_TN.shape, dtype=bool)
            if masks_LTN is not None:
                mask_TN = np.asarray(masks_LTN[index], dtype=bool)
            elif propose is not None:
                mask_TN = np.asarray(propose(index, x_TD, h_TD), dtype=bool)
            kept.append((gate_TN, x_TD, h_TD, mask_TN))
            h_TD = h_TD + self.ffn(index, x_TD, gate_TN, mask_TN)
        x_TD = self._norm(h_TD, self.tensors["model.norm.weight"])
        gates, inputs, residuals, masks = (np.stack(part) for part in zip(*kept, strict=True))
        return Trace(x_TD @ self._head().T, gates, inputs, residuals, masks)

    def ffn(self, index: int, x_TD: F64, gate_TN: F64, mask_TN: Mask) -> F64:
        """Sum over the unmasked neurons i of relu(gate_i . x) (up_i . x) down_i."""
        up_TN = x_TD @ self.layer(index, "mlp.up_proj").T
        hidden_TN = np.where(mask_TN, np.maximum(gate_TN, 0.0) * up_TN, 0.0)
        return hidden_TN @ self.layer(index, "mlp.down_proj").T

    def greedy(self, prompt: Sequence[int], count: int, propose: Propose | None = None) -> Decoded:
        """Decode count tokens, always the lowest id among the highest logits; stops nowhere."""
        cache = Cache()
        logits_V = self.forward(prompt, propose=propose, cache=cache).logits_TV[-1]
        decoded = Decoded([], [])
        for step in range(count):
            decoded.ids.append(int(np.argmax(logits_V)))
            decoded.margins.append(float(top2_margin(logits_V)))
            if step + 1 < count:
                trace = self.forward(decoded.ids[-1:], propose=propose, cache=cache)
                logits_V = trace.logits_TV[-1]
        return decoded

    def _head(self) -> F64:
        if self.config.get("tie_word_embeddings", False):
            return self.tensors["model.embed_tokens.weight"]
        return self.tensors["lm_head.weight"]

    def _norm(self, x_TD: F64, weight_D: F64) -> F64:
        mean_T1 = np.mean(x_TD * x_TD, axis=-1, keepdims=True)
        return x_TD / np.sqrt(mean_T1 + float(self.config["rms_norm_eps"])) * weight_D

    def _attention(self, index: int, h_TD: F64, start: int, cache: Cache) -> F64:
        heads = int(self.config["num_attention_heads"])
        groups = int(self.config.get("num_key_value_heads") or heads)
        x_TD = self._norm(h_TD, self.layer(index, "input_layernorm"))
        count = len(x_TD)
        parts = {"q_proj": heads, "k_proj": groups, "v_proj": groups}
        query, key, value = (
            (x_TD @ self.layer(index, f"self_attn.{name}").T).reshape(count, n, -1)
            for name, n in parts.items()
        )
        angles_TE = self._angles(np.arange(start, start + count), query.shape[-1])
        keys, values = cache.extend(index, rotate(key, angles_TE), value)
        query = rotate(query, angles_TE)
        future = np.arange(len(keys))[None, :] > np.arange(start, start + count)[:, None]
        out_THE = np.empty_like(query)
        for head in range(heads):
            group = head * groups // heads
            scores = query[:, head] @ keys[:, group].T / math.sqrt(query.shape[-1])
            scores = np.where(future, -np.inf, scores)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            out_THE[:, head] = weights / weights.sum(axis=1, keepdims=True) @ values[:, group]
        return out_THE.reshape(count, -1) @ self.layer(index, "self_attn.o_proj").T

    def _angles(self, positions_T: npt.NDArray[np.int64], head_dim: int) -> F64:
        """Rotary angles [T, head_dim / 2], by the old spelling of the config keys or the new."""
        rope = dict(self.config.get("rope_scaling") or {}) | dict(
            self.config.get("rope_parameters") or {}
        )
        theta = float(rope.get("rope_theta") or self.config.get("rope_theta") or 10000.0)
        frequency_E = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind == "linear":
            frequency_E = frequency_E / float(rope["factor"])
        elif kind == "llama3":
            frequency_E = np.array([_llama3(float(f), rope) for f in frequency_E])
        elif kind != "default":
            raise ValueError(f"the oracle knows no rotary scaling {kind!r}")
        return positions_T[:, None] * frequency_E[None, :]


def _llama3(frequency: float, rope: dict[str, Any]) -> float:
    """Long waves slowed down by the factor, short ones kept, a linear blend between."""
    wave = 2 * math.pi / frequency
    original = float(rope["original_max_position_embeddings"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    if wave > original / low:
        return frequency / float(rope["factor"])
    if wave < original / high:
        return frequency
    blend = (original / wave - low) / (high - low)
    return (1 - blend) * frequency / float(rope["factor"]) + blend * frequency


def rotate(x_THE: F64, angles_TE: F64) -> F64:
    """Rotate-half rotary embedding: pairs are (e, e + head_dim / 2)."""
    half = x_THE.shape[-1] // 2
    first, second = x_THE[..., :half], x_THE[..., half:]
    cos, sin = np.cos(angles_TE)[:, None, :], np.sin(angles_TE)[:, None, :]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def top2_margin(logits: F64) -> F64:
    """How far the highest logit of the last axis is above the second highest."""
    best = np.partition(logits, -2, axis=-1)[..., -2:]
    return np.asarray(best[..., 1] - best[..., 0])


def clear_until(margins: Iterable[float], tolerance: float) -> int:
    """Tokens before the first near tie: how far two correct greedy runs must agree."""
    clear = 0
    for margin in margins:
        if margin <= tolerance:
            break
        clear += 1
    return clear
