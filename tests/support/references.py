"""Small random models of transformers: their folders, and what they compute in float64.

`Reference` answers what the oracles in numpy answer of Llama and OPT, so that the same checks serve
every architecture.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.gpu import check_batches, check_gate_first, check_masked
from support.oracle import Mask, Trace, top2_margin
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hotcold.native.errors import CheckpointError
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.model.checkpoints.bundle import resolve_model
from hotcold.runtime.offline.training.dense import DenseModel
from hotcold.runtime.options.config import EngineConfig, Sampling
from hotcold.runtime.weights.weights import WeightStore

LOW_RANK: dict[str, Any] = {
    "predictor": "low-rank",
    "settings": {"predictor.rank": "9", "predictor.margin": "0.5"},
}


@dataclass(frozen=True)
class Names:
    """Where modules lie: the layers, and in each the first and the last matrix of its neurons."""

    layers: str = "model.layers"
    gate: str = "mlp.gate_proj"
    down: str = "mlp.down_proj"


class Reference:
    """A model of transformers, run in float64.

    Args:
        model: in float64.
        names: of its modules.
        threshold: from which a gate fires.
    """

    def __init__(self, model: PreTrainedModel, names: Names, threshold: float = 0.0) -> None:
        self.model, self.names, self.threshold = model, names, threshold
        self.vocab = int(model.config.vocab_size)

    def _parts(self, name: str) -> list[nn.Module]:
        layers = self.model.get_submodule(self.names.layers)
        return [layer.get_submodule(name) for layer in layers]

    def forward(self, tokens: Sequence[int], masks_LTN: Mask | None = None) -> Trace:
        """Run tokens; of masked neurons nothing reaches the down matrix."""
        gates: list[Any] = []
        inputs: list[Any] = []

        def see(_: Any, given: Any, made: Any) -> None:
            inputs.append(given[0][0].numpy())
            gates.append(made[0].numpy())

        def masked(layer: int) -> Callable[..., Any]:
            assert masks_LTN is not None
            keep = torch.from_numpy(np.ascontiguousarray(masks_LTN[layer]))
            return lambda _, given: (given[0] * keep,)

        with torch.no_grad(), ExitStack() as hooks:
            for module in self._parts(self.names.gate):
                hooks.callback(module.register_forward_hook(see).remove)
            for layer, module in enumerate(self._parts(self.names.down)):
                if masks_LTN is not None:
                    hooks.callback(module.register_forward_pre_hook(masked(layer)).remove)
            logits_TV = self.model(torch.tensor([list(tokens)])).logits[0].numpy()
        gates_LTN, inputs_LTD = np.stack(gates), np.stack(inputs)
        masks = np.ones(gates_LTN.shape, bool) if masks_LTN is None else masks_LTN
        return Trace(logits_TV, gates_LTN, inputs_LTD, inputs_LTD, masks)

    def ids(self, count: int, seed: int = 0) -> list[int]:
        """Random token ids."""
        return np.random.default_rng(seed).integers(3, self.vocab, count).tolist()


@dataclass(frozen=True)
class Tiny:
    """A random model of transformers to write as a checkpoint.

    Args:
        model: its class.
        config: its configuration.
        names: of its modules.
        centre: of norm weights.
        dtype: of all tensors.
        threshold: from which a gate fires.
        written: entries that overwrite config.json's; ... removes one.
    """

    model: type[PreTrainedModel]
    config: PreTrainedConfig
    names: Names = Names()
    centre: float = 1.0
    dtype: str = "float32"
    threshold: float = 0.0
    written: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Random weights that keep streams of order one, in several files."""
        generator = torch.Generator().manual_seed(0)
        model = self.model(self.config)
        with torch.no_grad():
            for name, values in model.named_parameters():
                noise = torch.randn(values.shape, generator=generator)
                if values.dim() == 2:
                    wide = 4.0 if "embed" in name else 1.5
                    values.copy_(noise * wide / values.shape[1] ** 0.5)
                else:
                    values.copy_((self.centre if name.endswith("weight") else 0.0) + 0.2 * noise)
        model.to(getattr(torch, self.dtype)).save_pretrained(folder, max_shard_size="60KB")
        rewrite(folder, self.written)
        return folder

    def reference(self, folder: Path) -> Reference:
        """What transformers makes of the checkpoint."""
        how = {"dtype": torch.float32, "attn_implementation": "eager"}
        model = self.model.from_pretrained(folder, config=self.config, **how)
        return Reference(model.double().eval(), self.names, self.threshold)


def rewrite(folder: Path, changes: Mapping[str, Any]) -> None:
    """Change entries of config.json; ... removes one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def cpu_session(folder: Path, fired_LN: Any = None, **options: Any) -> LocalSession:
    """A session on the CPU device."""
    prepared = prepare_model(EngineConfig(model=folder, **options))
    return LocalSession(deploy(prepared, solve(prepared)), fired_LN)


def check_on_cpu(folder: Path, reference: Reference, count: int = 50, **options: Any) -> None:
    """Logits of every split, greedy tokens, and proposals that leave neurons out."""
    ids = reference.ids(count)
    expected = reference.forward(ids)
    assert np.abs(expected.logits_TV).max() > 0.5
    for more in ({}, {"vram": "60KiB", "schedule": "selective"}, {"max_batch": 5, "threads": 1}):
        with cpu_session(folder, **options, **more) as local:
            logits, masks_TLN = local.logits(ids)
        np.testing.assert_allclose(logits, expected.logits_TV, atol=1e-3, rtol=0)
    over_LTN = expected.gates_LTN - reference.threshold
    clear = np.abs(over_LTN) > 1e-4
    np.testing.assert_array_equal(masks_TLN.transpose(1, 0, 2)[clear], (over_LTN > 0)[clear])
    with cpu_session(folder, **LOW_RANK, **options) as local:
        logits, masks_TLN = local.logits(ids)
    masked = reference.forward(ids, masks_TLN.transpose(1, 0, 2)).logits_TV
    assert 0.05 < masks_TLN.mean() < 0.95
    np.testing.assert_allclose(logits, masked, atol=1e-3, rtol=0)
    assert np.abs(masked - expected.logits_TV).max() > 1e-2, "nothing was left out"
    with cpu_session(folder, **options) as local:
        check_tokens(local, ids[:8], reference)


def check_tokens(local: LocalSession, prompt: list[int], reference: Reference) -> None:
    """Thirty greedy tokens."""
    drawn = local.sample(prompt, Sampling(max_tokens=30, ignore_eos=True))
    ours = [id_ for id_, _ in drawn]
    at = reference.forward(prompt + ours).logits_TV[len(prompt) - 1 : -1]
    clear_T = top2_margin(at) > 2e-3
    assert len(ours) == 30 and clear_T.mean() > 0.9
    assert np.array(ours)[clear_T].tolist() == at.argmax(axis=-1)[clear_T].tolist()


def check_briefly(folder: Path, reference: Reference, count: int = 50, start: int = 8) -> None:
    """Logits and greedy tokens of one session, in the longest context, and the torch model's."""
    ids = reference.ids(count)
    with cpu_session(folder, context=64) as local:
        logits, _ = local.logits(ids)
        expected = reference.forward(ids).logits_TV
        np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=0)
        check_tokens(local, ids[:start], reference)
    check_in_torch(folder, reference, count)


def check_in_torch(folder: Path, reference: Reference, count: int = 50) -> None:
    """The torch model of training and profiling computes the same."""
    ids = reference.ids(count)
    expected, bundle = reference.forward(ids), resolve_model(folder)
    with WeightStore.open(bundle) as store:
        model = DenseModel(bundle, store, count)
    seen: list[Any] = []
    with torch.no_grad():
        hidden_RD = model.hidden(torch.tensor([ids]), lambda _, x_RD, h_RD: seen.append(x_RD))
        logits = model.logits(hidden_RD).numpy()
    np.testing.assert_allclose(logits, expected.logits_TV, atol=1e-3, rtol=0)
    np.testing.assert_allclose(torch.stack(seen).numpy(), expected.inputs_LTD, atol=1e-3, rtol=0)


def check_on_gpu(folder: Path, reference: Any, count: int = 50, **options: Any) -> None:
    """Decoding with neurons anywhere, proposals, batches, and dense prompts."""
    ids = reference.ids(count)
    for share in (0.0, 0.5, 1.0):
        check_gate_first(folder, reference, ids, share, **options)
    check_masked(folder, reference, ids, 0.3, max_batch=5, **LOW_RANK, **options)
    check_batches(folder, ids[:37], (32, 3, 1), predictor="low-rank", **options)
    check_gate_first(folder, reference, ids, 0.5, prompt_form="dense", **options)


def refused(folder: Path, changes: Mapping[str, Any], *words: str) -> None:
    """config.json with these changes is refused in one line with the words."""
    rewrite(folder, changes)
    with pytest.raises(CheckpointError) as caught:
        resolve_model(folder)
    for word in ("config.json", *words):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
