"""The model in plain torch, for counting profiles and for training and judging predictors.

Reads the same weight store as the executors, in float32, and runs whole windows at once, which is
what makes an offline pass fast. The same code runs on the CPU and on a GPU. The engine never uses
it, so it is also an independent check of the native kernels. Nothing is skipped unless `propose`
says so.

Axes: B windows, T tokens of a window, D d_model, N neurons, V vocabulary, H heads, E head_dim.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F

from hotcold.runtime.model.block import Operator, parallel, steps
from hotcold.runtime.model.checkpoints.bundle import Bundle
from hotcold.runtime.model.rotary import rotary_tables
from hotcold.runtime.weights.weights import WeightStore

Tensor = torch.Tensor
# Called for every layer with (layer, x_RD, residual_RD): R = B * T rows.
Visit = Callable[[int, Tensor, Tensor], None]
# Like Visit, but returns which neurons may fire, bool [R, N]; None: all of them.
Propose = Callable[[int, Tensor, Tensor], Tensor | None]
_PARTS = (
    *("attention_norm", "attention_norm_bias", "ffn_norm", "ffn_norm_bias"),
    *("qkv", "qkv_bias", "o", "o_bias", "ffn_bias"),
    *("q_norm", "q_norm_bias", "k_norm", "k_norm_bias"),
)


class Entered(NamedTuple):
    """A layer before its feed-forward part, each [R, D].

    h_RD: the residual stream, attention added. x_RD: the feed-forward part's input. seen_RD: the
    residual stream as it is when x is handed over, which predictors may read.
    """

    h_RD: Tensor
    x_RD: Tensor
    seen_RD: Tensor


class DenseModel:
    """A bundle's model in float32 torch tensors.

    Args:
        bundle: the model.
        store: its open weight store; may be closed afterwards, unless layers are streamed.
        context: longest window.
        device: where it computes.
        streamed: hold one layer at a time, read from the store whenever another one is asked for.
    """

    def __init__(
        self,
        bundle: Bundle,
        store: WeightStore,
        context: int,
        device: torch.device | str = "cpu",
        streamed: bool = False,
    ) -> None:
        spec = self.spec = bundle.spec
        self.context, self.device = context, torch.device(device)
        self._bundle, self._store = bundle, store
        self.embed_VD = self._tensor("embed")
        self.head_VD = self.embed_VD if spec.tied else self._tensor("head")
        names = ("final_norm", "final_norm_bias", "positions", "project_in", "project_out")
        self._parts = {name: self._tensor(name) for name in names if name in bundle.tensors}
        self.layers: Sequence[dict[str, Tensor]]
        self.layers = (
            _Streamed(self._layer, spec.n_layers)
            if streamed
            else [self._layer(index) for index in range(spec.n_layers)]
        )
        if spec.positions == "rotary":
            cos, sin = rotary_tables(spec, context)
            self.cos_TE = torch.from_numpy(cos).to(self.device)
            self.sin_TE = torch.from_numpy(sin).to(self.device)

    def _tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self._store.float32(name)).to(self.device)

    def _layer(self, index: int) -> dict[str, Tensor]:
        """A layer's tensors: those it has of _PARTS, its neurons' rows, and their biases."""
        store, tensors = self._store, self._bundle.tensors
        stem = f"layers.{index}."
        parts = {name: self._tensor(stem + name) for name in _PARTS if stem + name in tensors}
        for part in ("gate", "up", "down") if self.spec.gated else ("gate", "down"):
            rows_ND = store.neuron_rows(index, part)
            parts[part] = torch.from_numpy(rows_ND).to(self.device)
        if self.spec.biases:
            parts["bias"] = torch.from_numpy(store.neuron_biases(index)).to(self.device)
        return parts

    def hidden(
        self, ids_BT: Tensor, visit: Visit | None = None, propose: Propose | None = None
    ) -> Tensor:
        """Run windows of equal length; the normed output of the last layer, [B * T, D].

        Args:
            ids_BT: token ids.
            visit: sees the input of every feed-forward part.
            propose: which neurons may fire; the others contribute nothing.
        """
        h_RD = self.embedded(ids_BT)
        for index in range(len(self.layers)):
            h_RD, x_RD, seen_RD = self.enter(index, h_RD, *ids_BT.shape)
            if visit is not None:
                visit(index, x_RD, seen_RD)
            mask_RN = None if propose is None else propose(index, x_RD, seen_RD)
            h_RD = self.after_ffn(index, h_RD, self.feed_forward(index, x_RD, mask_RN))
        return self.final_norm(h_RD)

    def final_norm(self, h_RD: Tensor) -> Tensor:
        """What the head sees of the last layer's output."""
        if self.spec.final_norm:
            h_RD = self._norm(h_RD, self._parts, "final_norm")
        project = self._parts.get("project_out")
        return h_RD if project is None else h_RD @ project.T

    def embedded(self, ids_BT: Tensor) -> Tensor:
        """The residual stream before the first layer."""
        h_RD = self.embed_VD[ids_BT.reshape(-1).to(self.device)] * self.spec.embed_scale
        if "project_in" in self._parts:
            h_RD = h_RD @ self._parts["project_in"].T
        if self.spec.positions == "learned":
            h_RD = h_RD + self._parts["positions"][: ids_BT.shape[1]].repeat(ids_BT.shape[0], 1)
        return h_RD

    def enter(self, index: int, h_RD: Tensor, batch: int, length: int) -> Entered:
        """A layer up to its feed-forward part."""
        streams = {"h": h_RD}
        for one, step in zip(self.spec.block, steps(self.spec.block), strict=True):
            if one.kind == "attend":
                added = self._attention(self.layers[index], streams[one.source], batch, length)
                streams["h"] = streams["h"] + added
            elif one.kind == "norm" and step != "merge":
                streams[one.target] = self._normed(index, one, streams[one.source])
            elif one.kind == "ffn":
                x_RD = streams[one.source]
        return Entered(streams["h"], x_RD, h_RD if parallel(self.spec.block) else streams["h"])

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """Logits [R, V] of normed outputs."""
        return hidden_RD @ self.head_VD.T

    def feed_forward(self, index: int, x_RD: Tensor, mask_RN: Tensor | None = None) -> Tensor:
        """A layer's sum over its neurons of act(gate) * up * down, those of the mask alone."""
        value_RN = self.spec.gate_values(self.gates(index, x_RD))
        if mask_RN is not None:
            value_RN *= mask_RN
        return self.combine(index, x_RD, value_RN)

    def combine(self, index: int, x_RD: Tensor, value_RN: Tensor) -> Tensor:
        """The second half of feed_forward, from gates behind their activation."""
        layer = self.layers[index]
        if "up" in layer:
            value_RN = value_RN * self.spec.up_values(x_RD @ layer["up"].T)
        return _plus(value_RN @ layer["down"], layer.get("ffn_bias"))

    def after_ffn(self, index: int, h_RD: Tensor, ffn_RD: Tensor) -> Tensor:
        """The residual stream after a layer's feed-forward part, whose output is given."""
        h_RD = h_RD + ffn_RD
        for one, step in zip(self.spec.block, steps(self.spec.block), strict=True):
            if step == "merge":
                h_RD = self._normed(index, one, h_RD)
        return h_RD

    def gates(self, index: int, x_RD: Tensor) -> Tensor:
        """Gate pre-activations [R, N]."""
        layer = self.layers[index]
        return _plus(x_RD @ layer["gate"].T, layer.get("bias"))

    def fires(self, index: int, x_RD: Tensor) -> Tensor:
        """Which neurons fire, bool [R, N]."""
        fires_RN: Tensor = self.spec.fires(self.gates(index, x_RD))
        return fires_RN

    def _normed(self, index: int, one: Operator, x_RD: Tensor) -> Tensor:
        return self._norm(x_RD, self.layers[index], one.weights)

    def _norm(self, x_RD: Tensor, parts: dict[str, Tensor], name: str) -> Tensor:
        shape, eps = (x_RD.shape[-1],), self.spec.norm_eps
        if self.spec.norm == "layer":
            return F.layer_norm(x_RD, shape, parts[name], parts[f"{name}_bias"], eps)
        return F.rms_norm(x_RD, shape, parts[name], eps)

    def _attention(self, layer: dict[str, Tensor], x_RD: Tensor, batch: int, length: int) -> Tensor:
        spec = self.spec
        sizes = [spec.q_dim, spec.kv_dim, spec.kv_dim]
        qkv_RE = _plus(x_RD @ layer["qkv"].T, layer.get("qkv_bias"))
        parts = qkv_RE.view(batch, length, -1).split(sizes, dim=-1)
        q, k, v = (p.view(batch, length, -1, spec.head_dim).transpose(1, 2) for p in parts)
        if spec.qk_norm:
            q, k = self._norm(q, layer, "q_norm"), self._norm(k, layer, "k_norm")
        if spec.positions == "rotary":
            q, k = self._rotate(q, length), self._rotate(k, length)
        groups = spec.n_heads // spec.n_kv_heads
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        window = spec.attention_window or length
        if window < length:
            seen_TT = torch.ones(length, length, dtype=torch.bool, device=q.device)
            seen_TT = seen_TT.tril().triu(1 - window)
            out = F.scaled_dot_product_attention(q, k, v, seen_TT)
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out_RE = out.transpose(1, 2).reshape(batch * length, -1)
        return _plus(out_RE @ layer["o"].T, layer.get("o_bias"))

    def _rotate(self, x_BHTE: Tensor, length: int) -> Tensor:
        first, second = x_BHTE.chunk(2, dim=-1)
        cos, sin = self.cos_TE[:length], self.sin_TE[:length]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class _Streamed(Sequence[dict[str, Tensor]]):
    """Layers read one at a time; the one used last is kept."""

    def __init__(self, load: Callable[[int], dict[str, Tensor]], count: int) -> None:
        self._load, self._count = load, count
        self._index, self._layer = -1, dict[str, Tensor]()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Tensor]:  # type: ignore[override]
        if index != self._index:
            self._layer = {}  # freed before the next one is read
            self._index, self._layer = index, self._load(index)
        return self._layer


def _plus(x_RN: Tensor, bias_N: Tensor | None) -> Tensor:
    return x_RN if bias_N is None else x_RN.add_(bias_N)


def token_batches(
    windows: Sequence[Sequence[int]], tokens: int = 4096
) -> list[tuple[Tensor, list[int]]]:
    """Windows of equal length side by side, about `tokens` ids a batch.

    Returns:
        ids_BT and the index of each row's window, for every batch.
    """
    by_length: dict[int, list[int]] = {}
    for index, window in enumerate(windows):
        by_length.setdefault(len(window), []).append(index)
    batches = []
    for length, rows in by_length.items():
        step = max(1, tokens // max(1, length))
        for at in range(0, len(rows), step):
            part = rows[at : at + step]
            batches.append((torch.tensor([list(windows[i]) for i in part]), part))
    return batches
