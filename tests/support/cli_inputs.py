"""What commands about predictors are given: a small model that has a profile, and a text."""

from pathlib import Path

import numpy as np
from support.models import TinyLlama, write_llama

from hotcold.runtime.model.checkpoints.bundle import resolve_model
from hotcold.runtime.profiles.profile import ActivationProfile


def profiled_llama(folder: Path) -> Path:
    """Write a model and random counts beside it."""
    write_llama(folder, TinyLlama())
    spec = resolve_model(folder).spec
    counts = np.random.default_rng(0).integers(200, 800, (spec.n_layers, spec.n_neurons))
    ActivationProfile(counts.astype(np.int64), 1000).save(folder / "activations.npz")
    return folder


def random_words(path: Path, count: int) -> Path:
    """Write a text of so many words."""
    words = np.random.default_rng(1).choice(["sea", "old", "fish", "and", "the", "boat"], count)
    path.write_text(" ".join(words), encoding="utf-8")
    return path
