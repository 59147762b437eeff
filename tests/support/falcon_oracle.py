"""The float64 oracle for planted Falcon shapes, read from a bundle; it shares no code with it.

Such a model is an OPT without biases, with rotary positions and grouped key/value heads; it exists
as a bundle only, so bundle.json and weights.bin are read here by hand.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from support.opt_oracle import OptOracle
from support.oracle import F64, Cache, Oracle, rotate

NORMS = {"attention_norm": "self_attn_layer_norm", "ffn_norm": "final_layer_norm"}


def _read(raw: bytes, entry: dict[str, Any]) -> npt.NDArray[Any]:
    dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
    return np.frombuffer(raw, dtype, math.prod(shape), entry["offset"]).reshape(shape)


class FalconOracle(OptOracle):
    """A planted Falcon shape in float16, in float64."""

    @classmethod
    def load(cls, folder: str | Path) -> "FalconOracle":
        """Read a bundle."""
        header = json.loads((Path(folder) / "bundle.json").read_text())
        raw = (Path(folder) / "weights.bin").read_bytes()
        spec, record = header["spec"], header["record"]
        held = {name: _read(raw, entry) for name, entry in header["tensors"].items()}
        d, tensors = spec["d_model"], {}
        for name, part in (("embed", "decoder.embed_tokens"), ("head", "lm_head")):
            tensors[f"{part}.weight"] = held[name]
        for part in ("weight", "bias"):
            name = "final_norm" if part == "weight" else "final_norm_bias"
            tensors[f"decoder.final_layer_norm.{part}"] = held[name]
        for i in range(spec["n_layers"]):
            layer = f"decoder.layers.{i}"
            for ours, theirs in NORMS.items():
                tensors[f"{layer}.{theirs}.weight"] = held[f"layers.{i}.{ours}"]
                tensors[f"{layer}.{theirs}.bias"] = held[f"layers.{i}.{ours}_bias"]
            sizes = [spec["n_heads"] * spec["head_dim"], spec["n_kv_heads"] * spec["head_dim"]]
            qkv = np.split(held[f"layers.{i}.qkv"], [sizes[0], sum(sizes)])
            for part, matrix in zip("qkv", qkv, strict=True):
                tensors[f"{layer}.self_attn.{part}_proj.weight"] = matrix
            tensors[f"{layer}.self_attn.out_proj.weight"] = held[f"layers.{i}.o"]
            records = held[f"layers.{i}.neurons"]
            for part in record["parts"]:
                begin, end = part["offset"], part["offset"] + part["bytes"]
                rows = np.ascontiguousarray(records[:, begin:end]).view(np.float16)
                name, matrix = ("fc1", rows) if part["name"] == "gate" else ("fc2", rows.T)
                tensors[f"{layer}.{name}.weight"] = matrix
        config = {
            "num_hidden_layers": spec["n_layers"],
            "num_attention_heads": spec["n_heads"],
            "num_key_value_heads": spec["n_kv_heads"],
            "hidden_size": d,
            "ffn_dim": spec["n_neurons"],
            "rope_theta": spec["rope_theta"],
            "enable_bias": False,
            "tie_word_embeddings": False,
        }
        return cls(config, {name: value.astype(np.float64) for name, value in tensors.items()})

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
