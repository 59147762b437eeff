"""The result: a Hugging Face folder, and a report measured on that folder as written.

`activations.npz`, counted on the way, is the profile hotcold places neurons by; `training.json` is
the report. Perplexity is that of `hotcold evaluate`: windows from an empty context, every token but
the first. Called by the script when the updates are done.
"""

import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from hotcold.runtime.files.atomic import write_atomically
from hotcold.runtime.profiles.profile import ActivationProfile
from relu_recipe.model import load_model, put_gates
from relu_recipe.recipe import Recipe, TrainingError
from relu_recipe.text import COMPANIONS

REPORT, PROFILE = "training.json", "activations.npz"
_TOKENS = 4096  # of a pass


@dataclass(frozen=True)
class Measured:
    """A model on the report text.

    Args:
        perplexity: exp of the mean loss.
        profile: how often each neuron fired; None where the gates are no ReLU.
    """

    perplexity: float
    profile: ActivationProfile | None

    @property
    def density(self) -> float:
        """Mean share of neurons that fire for a token; NaN where none can be silent."""
        return math.nan if self.profile is None else 1.0 - float(self.profile.sparsity_L.mean())


@torch.inference_mode()
def measure(model: Any, windows_WT: NDArray[np.int32], sparse: bool = True) -> Measured:
    """Perplexity and firing counts over windows; the model is left in evaluation mode.

    Args:
        model: the network.
        windows_WT: token ids.
        sparse: its gates are ReLU (or are to be): count what fires.
    """
    model.eval()
    device = next(model.parameters()).device
    config = model.config
    counts_LN = torch.zeros(config.num_hidden_layers, config.intermediate_size, dtype=torch.int64)
    hooks = []
    for layer, counts_N in zip(model.model.layers, counts_LN, strict=True):

        def count(
            _gate: Any, _given: Any, z: torch.Tensor, into_N: torch.Tensor = counts_N
        ) -> None:
            into_N.add_((z > 0).flatten(0, -2).sum(0).cpu())

        if sparse:
            hooks.append(layer.mlp.gate_proj.register_forward_hook(count))
    total, step = 0.0, max(1, _TOKENS // windows_WT.shape[1])
    try:
        for at in range(0, len(windows_WT), step):
            ids_BT = torch.from_numpy(windows_WT[at : at + step].astype(np.int64)).to(device)
            logits_RV = model(ids_BT).logits[:, :-1].float().flatten(0, 1)
            total += float(F.cross_entropy(logits_RV, ids_BT[:, 1:].flatten(), reduction="sum"))
    finally:
        for hook in hooks:
            hook.remove()
    perplexity = math.exp(min(700.0, total / (windows_WT.size - len(windows_WT))))
    counts = counts_LN.numpy()
    return Measured(perplexity, ActivationProfile(counts, windows_WT.size) if sparse else None)


def export(model: Any, recipe: Recipe, dtype: str) -> None:
    """Write the folder: complete, or without config.json and so no model yet.

    Raises:
        TrainingError: a weight does not fit the dtype.
    """
    folder = recipe.work / "export"
    shutil.rmtree(folder, ignore_errors=True)
    kind = getattr(torch, dtype)
    largest = max(float(value.detach().abs().max()) for value in model.parameters())
    if largest > torch.finfo(kind).max:
        raise TrainingError(
            f"a weight is {largest:g}, {dtype} holds {torch.finfo(kind).max:g}; give --dtype "
            "bfloat16 or float32"
        )
    model.config.use_cache = True
    before = model.dtype
    model.to(kind).save_pretrained(folder)
    model.to(before)
    _plain_config(folder / "config.json")
    for name in COMPANIONS:
        if (recipe.work / name).is_file():
            shutil.copyfile(recipe.work / name, folder / name)
    for pattern in ("config.json", "*.safetensors", "*.safetensors.index.json", PROFILE, REPORT):
        for old in recipe.out.glob(pattern):  # of an earlier training, where it is overwritten
            old.unlink()
    names = sorted(path.name for path in folder.iterdir())
    for name in sorted(names, key=lambda name: name == "config.json"):  # last: now it is a model
        os.chmod(folder / name, 0o644)
        os.replace(folder / name, recipe.out / name)
    folder.rmdir()


def _plain_config(path: Path) -> None:
    """rope_theta in the spelling that older readers know too."""
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") == "default":
        config |= {"rope_theta": rope.get("rope_theta", 10000.0), "rope_scaling": None}
        del config["rope_parameters"]
    write_atomically(path, (json.dumps(config, indent=1) + "\n").encode())


def report(
    recipe: Recipe,
    before: dict[str, float],
    windows_WT: NDArray[np.int32],
    steps: int,
    device: str = "cpu",
) -> dict[str, Any]:
    """Measure the folder as written; write its profile and report; the report as plain data.

    Args:
        recipe: what was asked for.
        before: perplexities measured at the start, by name.
        windows_WT: the report text.
        steps: updates done.
        device: where to measure.
    """
    model = load_model(recipe.out).to(device)
    sparse = recipe.activation == "relu"
    if sparse:
        put_gates(model)
    found = measure(model, windows_WT, sparse)
    result: dict[str, Any] = {
        "parameters": sum(value.numel() for value in model.parameters()),
        "steps": steps,
        "tokens": steps * recipe.batch * recipe.context,
        "report_tokens": int(windows_WT.size),
        "before": before,
        "perplexity": found.perplexity,
    }
    if found.profile is not None:
        profile = found.profile
        profile.save(recipe.out / PROFILE)
        result |= {
            "density": found.density,
            "density_L": [float(1 - share) for share in profile.sparsity_L],
            "hot_share_for_80": profile.share_for_model(0.8),
            "hot_share_for_80_L": [float(share) for share in profile.share_for(0.8)],
            "dead": float((profile.counts_LN == 0).mean()),
            "dead_L": [float(share) for share in (profile.counts_LN == 0).mean(axis=1)],
        }
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    write_atomically(recipe.out / REPORT, text.encode())
    return result


def table(result: dict[str, Any]) -> str:
    """The report for people."""
    lines = []
    if "density" in result:
        lines.append(f"{'layer':>5} {'density':>8} {'hot for 80%':>12} {'dead':>6}")
        columns = (result["density_L"], result["hot_share_for_80_L"], result["dead_L"])
        rows = [(str(layer), *row) for layer, row in enumerate(zip(*columns, strict=True))]
        rows.append(("all", result["density"], result["hot_share_for_80"], result["dead"]))
        lines += [f"{n:>5} {d:>8.1%} {h:>12.1%} {x:>6.1%}" for n, d, h, x in rows]
    for name, value in result["before"].items():
        lines.append(f"{name.replace('_', ' ')} before: {value:.4g}")
    lines.append(f"perplexity: {result['perplexity']:.4g}")
    lines.append(f"over {result['report_tokens']:,} tokens that were not trained on")
    return "\n".join(lines)
