"""The float64 oracle for planted Falcon shapes, 40B's form; it shares no code with the project.

Such a model is an OPT without biases, with rotary positions, grouped key and value heads, and
attention beside the feed-forward part: tensors get an OPT's names here.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from support.opt_oracle import OptOracle
from support.oracle import F64, Cache, Oracle, rotate

NAMES = {
    "ln_attn": "self_attn_layer_norm",
    "ln_mlp": "final_layer_norm",
    "self_attention.dense": "self_attn.out_proj",
    "mlp.dense_h_to_4h": "fc1",
    "mlp.dense_4h_to_h": "fc2",
}


class FalconOracle(OptOracle):
    """A Falcon 40B, in float64."""

    side_by_side = True

    @classmethod
    def load(cls, folder: str | Path) -> "FalconOracle":
        """Read a folder of Hugging Face."""
        theirs = Oracle.load(folder)
        config = theirs.config
        heads, groups = config["num_attention_heads"], config["num_kv_heads"]
        tensors: dict[str, F64] = {"lm_head.weight": theirs.tensors["lm_head.weight"]}
        ends = {"word_embeddings": "embed_tokens", "ln_f": "final_layer_norm"}
        for full, tensor in theirs.tensors.items():
            name, _, part = full.removeprefix("transformer.").rpartition(".")
            _, index, inner = [*name.split(".", 2), "", ""][:3]
            layer = f"decoder.layers.{index}"
            if name in ends:
                tensors[f"decoder.{ends[name]}.{part}"] = tensor
            elif inner in NAMES:
                tensors[f"{layer}.{NAMES[inner]}.{part}"] = tensor
            elif inner == "self_attention.query_key_value":  # by group: queries, a key, a value
                rows = tensor.reshape(groups, heads // groups + 2, -1, tensor.shape[1])
                for of, at in (("q", slice(-2)), ("k", slice(-2, -1)), ("v", slice(-1, None))):
                    matrix = rows[:, at].reshape(-1, tensor.shape[1])
                    tensors[f"{layer}.self_attn.{of}_proj.weight"] = matrix
        config |= {
            "num_key_value_heads": groups,
            "ffn_dim": config["ffn_hidden_size"],
            "enable_bias": False,
        }
        return cls(config, tensors)

    def _embedded(self, tokens: Any, start: int) -> F64:
        return self.tensor("embed_tokens.weight")[np.asarray(tokens, dtype=np.int64)]

    def _attend(self, index: int, x_TD: F64, cache: Cache) -> F64:
        name = f"layers.{index}.self_attn"
        heads, groups = (
            int(self.config[f"num_{kind}_heads"]) for kind in ("attention", "key_value")
        )
        count = len(x_TD)
        query, key, value = (
            self.affine(f"{name}.{part}_proj", x_TD).reshape(count, n, -1)
            for part, n in (("q", heads), ("k", groups), ("v", groups))
        )
        start = cache.length if index == 0 else cache.length - count
        angles_TE = Oracle._angles(self, np.arange(start, start + count), query.shape[-1])
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
        return self.affine(f"{name}.out_proj", out_THE.reshape(count, -1))
