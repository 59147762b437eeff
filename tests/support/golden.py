"""Tokens of every predictor and schedule, recorded once: a change of structure must not move them.

`PYTHONPATH=tests python -m support.golden FILE [--device gpu]` records; tests/golden holds what was
recorded before the folders were rearranged (commit d1e0720), and tests/runtime/test_golden.py
compares. Ids are kept for ever; digests of the logits are for two runs on one machine with one
compiler.
"""

import argparse
import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from support.models import TinyLlama, write_llama
from support.opt_models import FORMS, TinyOpt, write_opt
from support.opt_oracle import OptOracle
from support.oracle import Oracle

from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.options.config import EngineConfig, Sampling
from hotcold.runtime.profiles.profile import ActivationProfile

PROMPT_TOKENS, NEW_TOKENS = 40, 16
LLAMA = TinyLlama(d=35, layers=4, neurons=51, heads=5, kv_heads=1, head_dim=6, vocab=301)
MODELS: dict[str, TinyLlama | TinyOpt | None] = {
    "embedded": None,
    "llama": LLAMA,
    "opt": FORMS["odd"],
    "opt-350m": FORMS["350m"],
}
SCHEDULES = ("paper", "selective", "serial", "lookahead", "fetch")
PREDICTORS = ("exact", "low-rank", "sign", "window", "frequency")
EARLY = ("low-rank", "sign")  # predictors that a layer's input need not have reached yet
ON_GPU = {"serial", "window"}  # what a GPU refuses


@dataclass(frozen=True)
class Case:
    """One deployment.

    Args:
        model: a key of MODELS.
        options: of EngineConfig.
        sampling: of Sampling, beside the number of tokens.
    """

    model: str
    options: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the recording calls it."""
        words = [self.model]
        words += [f"{key}={value}" for key, value in (self.options | self.sampling).items()]
        return " ".join(words)


def cases(device: str) -> Iterator[Case]:
    """Every model with every predictor and schedule that goes with it."""
    for model in MODELS:
        own = ("learned",) if model == "embedded" else ()
        for predictor in (*PREDICTORS, *own):
            for schedule in SCHEDULES:
                early = predictor in (*EARLY, *own)
                if schedule == "lookahead" and not early:
                    continue
                if device == "gpu" and ON_GPU & {schedule, predictor}:
                    continue
                options: dict[str, Any] = {"predictor": predictor, "schedule": schedule}
                yield Case(model, options)
        for batch in (1, 7):
            yield Case(model, {"predictor": "low-rank", "max_batch": batch, "threads": 1})
        yield Case(model, {"policy": "random"}, {"temperature": 0.8, "top_p": 0.9, "seed": 7})
        if device == "gpu":
            yield Case(model, {"predictor": "low-rank", "prompt_form": "dense"})


def write_models(folder: Path) -> dict[str, Path | None]:
    """The models' folders; None is the embedded one."""
    folders: dict[str, Path | None] = {}
    for name, model in MODELS.items():
        folders[name] = None
        if model is None:
            continue
        path = folder / name
        if isinstance(model, TinyLlama):
            write_llama(path, model)
            oracle: Oracle | OptOracle = Oracle.load(path)
        else:
            write_opt(path, model)
            oracle = OptOracle.load(path)
        ids = np.random.default_rng(9).integers(5, 290, 60).tolist()
        fired_LN = oracle.forward(ids).counts_LN
        ActivationProfile(fired_LN.astype(np.int64), 60).save(path / "activations.npz")
        folders[name] = path
    return folders


def run(case: Case, folder: Path | None, device: str) -> dict[str, Any]:
    """Sampled ids, and a digest of the prompt's logits."""
    ids = np.random.default_rng(3).integers(5, 290, PROMPT_TOKENS).tolist()
    options = dict(case.options)
    if device == "gpu":
        options.setdefault("vram", "2GiB")
        options.setdefault("policy", "random")
    prepared = prepare_model(EngineConfig(model=folder, **options))
    if (prepared.gpu is not None) != (device == "gpu"):
        raise SystemExit(f"{case.name}: not on the {device}")
    sampling = Sampling(NEW_TOKENS, ignore_eos=True, **case.sampling)
    with LocalSession(deploy(prepared, solve(prepared))) as local:
        tokens = [id_ for id_, _ in local.sample(ids, sampling)]
        logits = local.logits(ids)[0]
    return {"ids": tokens, "logits": hashlib.sha256(logits.tobytes()).hexdigest()[:16]}


def record(device: str) -> dict[str, Any]:
    """Run every case."""
    with tempfile.TemporaryDirectory() as folder:
        models = write_models(Path(folder))
        return {case.name: run(case, models[case.model], device) for case in cases(device)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    asked = parser.parse_args()
    asked.file.write_text(json.dumps(record(asked.device), indent=0) + "\n")
