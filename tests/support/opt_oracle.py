"""The float64 oracle for OPT, in plain numpy; it shares no code with the project.

An Oracle as the Llama one: gates are the pre-activations of fc1, biases added, and a neuron's
contribution is relu(gate) times its column of fc2. See oracle.py for the axes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from support.oracle import F64, Cache, Mask, Oracle, Propose, Trace

EPS = 1e-5


@dataclass(frozen=True)
class OptOracle(Oracle):
    """An OPT: its config.json and its tensors, in float64."""

    side_by_side = False  # the feed-forward part reads what attention reads, not its result

    @property
    def n_neurons(self) -> int:
        """N."""
        return int(self.config["ffn_dim"])

    def tensor(self, name: str) -> F64:
        """A tensor of the decoder, however the checkpoint's names begin."""
        bare = f"decoder.{name}"
        return self.tensors[f"model.{bare}" if f"model.{bare}" in self.tensors else bare]

    def affine(self, name: str, x_TD: F64) -> F64:
        """A linear layer, with its bias unless the config turns them off."""
        y = x_TD @ self.tensor(f"{name}.weight").T
        return y + self.tensor(f"{name}.bias") if self.config.get("enable_bias", True) else y

    def layer_norm(self, name: str, x_TD: F64) -> F64:
        """A layer norm, with its parameters unless the config turns them off."""
        centred = x_TD - x_TD.mean(axis=-1, keepdims=True)
        y = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPS)
        if not self.config.get("layer_norm_elementwise_affine", True):
            return y
        return y * self.tensor(f"{name}.weight") + self.tensor(f"{name}.bias")

    def forward(
        self,
        tokens: Sequence[int],
        masks_LTN: Mask | None = None,
        propose: Propose | None = None,
        cache: Cache | None = None,
    ) -> Trace:
        """See Oracle.forward."""
        cache = Cache() if cache is None else cache
        pre = bool(self.config.get("do_layer_norm_before", True))
        h_TD = self._embedded(tokens, cache.length)
        kept: list[tuple[F64, F64, F64, Mask]] = []
        for index in range(self.n_layers):
            layer, before_TD = f"layers.{index}", h_TD
            x_TD = self.layer_norm(f"{layer}.self_attn_layer_norm", h_TD) if pre else h_TD
            h_TD = h_TD + self._attend(index, x_TD, cache)
            if not pre:
                h_TD = self.layer_norm(f"{layer}.self_attn_layer_norm", h_TD)
            seen_TD = before_TD if self.side_by_side else h_TD
            x_TD = self.layer_norm(f"{layer}.final_layer_norm", seen_TD) if pre else h_TD
            gate_TN = self.affine(f"{layer}.fc1", x_TD)
            mask_TN = np.ones(gate_TN.shape, dtype=bool)
            if masks_LTN is not None:
                mask_TN = np.asarray(masks_LTN[index], dtype=bool)
            elif propose is not None:
                mask_TN = np.asarray(propose(index, x_TD, seen_TD), dtype=bool)
            kept.append((gate_TN, x_TD, seen_TD, mask_TN))
            h_TD = h_TD + self.affine(
                f"{layer}.fc2", np.where(mask_TN, np.maximum(gate_TN, 0.0), 0.0)
            )
            if not pre:
                h_TD = self.layer_norm(f"{layer}.final_layer_norm", h_TD)
        if pre and not self.config.get("_remove_final_layer_norm", False):
            h_TD = self.layer_norm("final_layer_norm", h_TD)
        if self._projected:
            h_TD = h_TD @ self.tensor("project_out.weight").T
        tied = self.config.get("tie_word_embeddings", True)
        head = self.tensor("embed_tokens.weight") if tied else self.tensors["lm_head.weight"]
        gates, inputs, residuals, masks = (np.stack(part) for part in zip(*kept, strict=True))
        return Trace(h_TD @ head.T, gates, inputs, residuals, masks)

    @property
    def _projected(self) -> bool:
        width = self.config.get("word_embed_proj_dim")
        return width not in (None, self.config["hidden_size"])

    def _embedded(self, tokens: Sequence[int], start: int) -> F64:
        e_TE = self.tensor("embed_tokens.weight")[np.asarray(tokens, dtype=np.int64)]
        if self._projected:
            e_TE = e_TE @ self.tensor("project_in.weight").T
        positions = np.arange(start, start + len(tokens)) + 2
        return e_TE + self.tensor("embed_positions.weight")[positions]

    def _attend(self, index: int, x_TD: F64, cache: Cache) -> F64:
        name, heads = f"layers.{index}.self_attn", int(self.config["num_attention_heads"])
        count = len(x_TD)
        query, key, value = (
            self.affine(f"{name}.{part}_proj", x_TD).reshape(count, heads, -1) for part in "qkv"
        )
        keys, values = cache.extend(index, key, value)
        start = len(keys) - count
        future = np.arange(len(keys))[None, :] > np.arange(start, len(keys))[:, None]
        out_THE = np.empty_like(query)
        for head in range(heads):
            scores = query[:, head] @ keys[:, head].T / math.sqrt(query.shape[-1])
            scores = np.where(future, -np.inf, scores)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            out_THE[:, head] = weights @ values[:, head]
        return self.affine(f"{name}.out_proj", out_THE.reshape(count, -1))
