"""bench sync: what leaving out exchanges saves, and where none can be left out.

A plan with nearly all neurons of the quiet layers (under 0.1 % fire) on the GPU runs in turn with
the schedules `paper`, which waits for the CPU executor in every layer, and `selective`, which does
not where no cold neuron is active: same plan, same tokens. The time by which a pass gets shorter,
divided by the exchanges left out, is what one exchange costs.

For comparison, the number expected from the profile: a layer's exchange is left out when none of
its cold neurons fires, with the probability prod(1 - p_i) over them if they fire independently. At
the 13B shape every layer has thousands of cold neurons of which hundreds fire, so that is 0.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.errors import ConfigError
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import Prepared, prepare_model
from hotcold.runtime.engine.request import make_request
from hotcold.runtime.offline.plant.shaped import Ask, shaped_problem
from hotcold.runtime.options.config import EngineConfig, Sampling
from hotcold.runtime.plan.plan import Plan
from hotcold.runtime.plan.problem import Placement, Problem
from hotcold.runtime.tracing.phases import pass_lengths

QUIET = 1e-3  # a layer in which a smaller share of the neurons fires
SCHEDULES = ("paper", "selective")
PROMPT = 8
BIG = {"vram_bytes": 16 << 30, "density": 0.12, "share80": 0.3, "width": 960}  # MEASURED.md's 13B


@dataclass(frozen=True)
class QuietResident:
    """A placement: of the quiet layers the hottest share on the GPU, of the others what fits."""

    resident: float

    def place(self, problem: Problem) -> Placement:
        """The rest of a quiet layer stays with the host even where there is room."""
        p_LN = problem.activations_LN
        rank_LN = np.argsort(np.argsort(-p_LN, axis=1, kind="stable"), axis=1)
        quiet_L = p_LN.mean(axis=1) < QUIET
        stays_LN = quiet_L[:, None] & (rank_LN >= self.resident * problem.shape[1])
        filled = problem.fill(np.where(quiet_L[:, None], 2.0, p_LN) - 4.0 * stays_LN)
        device_LN = np.where(stays_LN, len(problem.devices) - 1, filled.device_LN)
        return replace(filled, device_LN=device_LN.astype(np.int8))


def expected_skips_L(p_LN: NDArray[np.float64], cold_LN: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Probability of each layer that none of its cold neurons fires; 0 where it has none.

    The last layer with cold neurons is always awaited: it is what lets the next token begin.
    """
    logs_LN = np.log1p(-np.clip(p_LN, 0.0, 1.0 - 1e-12))
    there_L = cold_LN.any(axis=1)
    skips_L: NDArray[np.float64] = np.where(
        there_L, np.exp(np.where(cold_LN, logs_LN, 0.0).sum(axis=1)), 0.0
    )
    if there_L.any():
        skips_L[np.flatnonzero(there_L)[-1]] = 0.0
    return skips_L


def measure(
    config: EngineConfig,
    resident: float = 0.96,
    tokens: int = 64,
    rounds: int = 2,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Run both schedules in turn on one plan.

    The config's policy and schedule are not used; `resident` is the share of each quiet layer's
    neurons on the GPU.

    Raises:
        ConfigError: nothing is predicted, so that no list says that a layer has no cold neuron; or
            the model has no quiet layer.
    """
    prepared = prepare_model(config)
    _check(prepared)
    plan = solve(prepared, QuietResident(resident))
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in SCHEDULES}
    for number in range(rounds):
        for name in SCHEDULES:
            progress(f"round {number + 1} of {rounds}, schedule {name}")
            runs[name].append(_run(prepared, plan, name, tokens, number))
    result: dict[str, Any] = {
        name: {key: statistics.median(run[key] for run in own) for key in own[0]}
        for name, own in runs.items()
    }
    saved_us = result["paper"]["pass_us"] - result["selective"]["pass_us"]
    skipped = result["selective"]["skipped_per_token"]
    return result | {
        "saved_us_each": saved_us / skipped if skipped else None,
        "plan": describe(prepared.problem.activations_LN, plan.device_LN != 0),
        "llama2-13b": shape_13b(),
    }


def _check(prepared: Prepared) -> None:
    if not prepared.predicts:
        raise ConfigError(
            "without a predictor no list says that a layer has no cold neuron, so no exchange is "
            "ever left out; choose --predictor learned or low-rank"
        )
    density_L = prepared.problem.activations_LN.mean(axis=1)
    if not (density_L < QUIET).any():
        raise ConfigError(
            f"no layer of this model is quiet: in the quietest {density_L.min():.2%} of neurons "
            f"fire, quiet is under {QUIET:.1%}; plant one with --quiet 0.5 --quiet-density 0.0008"
        )


def _run(prepared: Prepared, plan: Plan, schedule: str, tokens: int, seed: int) -> dict[str, float]:
    with LocalSession(deploy(prepared, plan, schedule)) as local:
        gpu = local.leader
        prompt = np.random.default_rng(seed).integers(3, prepared.bundle.spec.vocab_size, PROMPT)
        for count in (4, tokens):  # the first warms up
            before = local.segment.actor_state("gpu")
            sampling = Sampling(count, temperature=1.0, seed=seed)
            request = make_request(prompt.tolist(), sampling, prepared.context)
            for _ in gpu.generate(request):
                pass
        times, after = gpu.request_times(), local.segment.actor_state("gpu")
        lengths_s = pass_lengths(local.segment, times.prompt_ns)
    return {
        "pass_us": float(np.median(lengths_s)) * 1e6,
        "skipped_per_token": (after.skipped_exchanges - before.skipped_exchanges)
        / (after.passes - before.passes),
    }


def describe(p_LN: NDArray[np.float64], cold_LN: NDArray[np.bool_]) -> dict[str, Any]:
    """The properties of a plan that decide how often an exchange can be left out."""
    density_L = p_LN.mean(axis=1)
    quiet_L = density_L < QUIET
    there_L = cold_LN.any(axis=1)
    active_L = np.where(cold_LN, p_LN, 0.0).sum(axis=1)
    return {
        "layers": len(p_LN),
        "quiet_layers": int(quiet_L.sum()),
        "quiet_firing": float(density_L[quiet_L].max()) if quiet_L.any() else None,
        "quiet_resident": float((~cold_LN[quiet_L]).mean()) if quiet_L.any() else None,
        "layers_with_exchange": int(there_L.sum()),
        "expected_skipped_per_token": float(expected_skips_L(p_LN, cold_LN).sum()),
        "fewest_cold_active": float(active_L[there_L].min()) if there_L.any() else None,
    }


def shape_13b() -> dict[str, Any]:
    """The same of the 13B shape in float16 at 16 GiB, hottest neurons first; nothing is run."""
    ask = Ask(BIG["density"], BIG["share80"], int(BIG["width"]), kv_bytes=2, embed_on_host=True)
    problem = shaped_problem("llama2-13b", int(BIG["vram_bytes"]), ask=ask)
    placement = problem.fill(problem.activations_LN)
    return describe(problem.activations_LN, placement.device_LN != 0)
