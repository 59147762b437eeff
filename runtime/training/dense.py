"""The model in plain torch: what predictors are trained and judged on.

Reads the same weight store as the executors, in float32, and runs whole windows at once, which is
what makes an offline pass fast. The engine never uses it: a second opinion on the native kernels as
much as a tool. Nothing is skipped unless a `propose` says so.

Axes: B windows, T tokens of a window, D d_model, N neurons, V vocabulary, H heads, E head_dim.
"""

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from hotcold.runtime.formats.bundle import Bundle
from hotcold.runtime.rotary import rotary_tables
from hotcold.runtime.weights import WeightStore

Tensor = torch.Tensor
# Called for every layer with (layer, x_RD, residual_RD): R = B * T rows.
Visit = Callable[[int, Tensor, Tensor], None]
# Like Visit, but returns which neurons may fire, bool [R, N]; None: all of them.
Propose = Callable[[int, Tensor, Tensor], Tensor | None]


class DenseModel:
    """A bundle's model in float32 torch tensors.

    Args:
        bundle: the model.
        store: its open weight store; may be closed afterwards.
        context: longest window.
    """

    def __init__(self, bundle: Bundle, store: WeightStore, context: int) -> None:
        spec = self.spec = bundle.spec
        self.context = context

        def tensor(name: str) -> Tensor:
            return torch.from_numpy(store.float32(name))

        self.embed_VD = tensor("embed")
        self.head_VD = self.embed_VD if spec.tied else tensor("head")
        self.final_norm_D = tensor("final_norm")
        self.layers = []
        for i in range(spec.n_layers):
            names = ("attention_norm", "ffn_norm", "qkv", "o")
            parts = {name: tensor(f"layers.{i}.{name}") for name in names}
            parts["gate"] = torch.from_numpy(store.neuron_rows(i, "gate"))
            parts["up"] = torch.from_numpy(store.neuron_rows(i, "up"))
            parts["down"] = torch.from_numpy(store.neuron_rows(i, "down"))
            self.layers.append(parts)
        cos, sin = rotary_tables(spec, context)
        self.cos_TE, self.sin_TE = torch.from_numpy(cos), torch.from_numpy(sin)

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
            h_RD = self.attend(index, h_RD, *ids_BT.shape)
            x_RD = self.ffn_input(index, h_RD)
            if visit is not None:
                visit(index, x_RD, h_RD)
            mask_RN = None if propose is None else propose(index, x_RD, h_RD)
            h_RD = h_RD + self.feed_forward(index, x_RD, mask_RN)
        return self.final_norm(h_RD)

    def final_norm(self, h_RD: Tensor) -> Tensor:
        """What the head sees of the last layer's output."""
        return self._norm(h_RD, self.final_norm_D)

    def embedded(self, ids_BT: Tensor) -> Tensor:
        """The residual stream before the first layer."""
        return self.embed_VD[ids_BT.reshape(-1)]

    def attend(self, index: int, h_RD: Tensor, batch: int, length: int) -> Tensor:
        """The residual stream after a layer's attention."""
        layer = self.layers[index]
        x_RD = self._norm(h_RD, layer["attention_norm"])
        return h_RD + self._attention(layer, x_RD, batch, length)

    def ffn_input(self, index: int, h_RD: Tensor) -> Tensor:
        """What a layer's feed-forward part and its predictor see."""
        return self._norm(h_RD, self.layers[index]["ffn_norm"])

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """Logits [R, V] of normed outputs."""
        return hidden_RD @ self.head_VD.T

    def feed_forward(self, index: int, x_RD: Tensor, mask_RN: Tensor | None = None) -> Tensor:
        """A layer's sum over its neurons of relu(gate) * up * down, those of the mask alone."""
        layer = self.layers[index]
        gate_RN = torch.relu_(x_RD @ layer["gate"].T)
        if mask_RN is not None:
            gate_RN *= mask_RN
        return (gate_RN * (x_RD @ layer["up"].T)) @ layer["down"]

    def gates(self, index: int, x_RD: Tensor) -> Tensor:
        """Gate pre-activations [R, N]; a neuron fires where they are above 0."""
        return x_RD @ self.layers[index]["gate"].T

    def _norm(self, x_RD: Tensor, weight_D: Tensor) -> Tensor:
        return F.rms_norm(x_RD, (x_RD.shape[-1],), weight_D, self.spec.norm_eps)

    def _attention(self, layer: dict[str, Tensor], x_RD: Tensor, batch: int, length: int) -> Tensor:
        spec = self.spec
        sizes = [spec.q_dim, spec.kv_dim, spec.kv_dim]
        parts = (x_RD @ layer["qkv"].T).view(batch, length, -1).split(sizes, dim=-1)
        q, k, v = (p.view(batch, length, -1, spec.head_dim).transpose(1, 2) for p in parts)
        q, k = self._rotate(q, length), self._rotate(k, length)
        groups = spec.n_heads // spec.n_kv_heads
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.transpose(1, 2).reshape(batch * length, -1) @ layer["o"].T

    def _rotate(self, x_BHTE: Tensor, length: int) -> Tensor:
        first, second = x_BHTE.chunk(2, dim=-1)
        cos, sin = self.cos_TE[:length], self.sin_TE[:length]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


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
