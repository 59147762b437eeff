"""`hotcold compare`: several placement policies, one engine, the same prompt.

Every placement is solved before the first token is generated, so a policy that cannot be used ends
the command before it has cost anything. The runs then come in an order drawn from the seed, so
that a machine which warms up or gets busy does not favour one policy.
"""

import random
import statistics
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import click

from hotcold.runtime.cli import output
from hotcold.runtime.cli.options import (
    EngineOptions,
    choose_model,
    engine_options,
    hardware_option,
    json_option,
)
from hotcold.runtime.cli.running import figures, running_engine
from hotcold.runtime.errors import ConfigError

if TYPE_CHECKING:
    from hotcold.actors import Engine
    from hotcold.runtime.problem import Placement, Problem

DEFAULT_POLICIES = ("greedy", "random", "all-cpu")
WARM_UP_TOKENS = 8


@dataclass
class Measured:
    """What the runs of one policy gave; one entry a run."""

    tokens_per_s: list[float] = field(default_factory=list)
    gpu_neuron_load: list[float] = field(default_factory=list)
    wait_s: list[float] = field(default_factory=list)
    wait_share: list[float] = field(default_factory=list)
    token_ids: list[list[int]] = field(default_factory=list)


@click.command("compare")
@click.argument("folder", required=False, metavar="[MODEL]")
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="NAME",
    help="A placement policy; give it once for each to compare."
    f"  [default: {', '.join(DEFAULT_POLICIES)}]",
)
@click.option(
    "--prompt", default="Once upon a time", show_default=True, help="What every run continues."
)
@click.option("--max-tokens", type=click.IntRange(min=2), default=64, show_default=True)
@click.option(
    "--repeat", type=click.IntRange(1, 1000), default=3, show_default=True, help="Runs a policy."
)
@hardware_option("place neurons for")
@json_option
@engine_options(policy=False)
def command(
    options: EngineOptions,
    folder: str | None,
    policies: tuple[str, ...],
    prompt: str,
    max_tokens: int,
    repeat: int,
    hardware: str | None,
    as_json: bool,
) -> None:
    """Run several placement policies on the same prompt and print a table.

    Tokens are chosen greedily, so "same tokens" says whether a policy changed the output.
    """
    model = choose_model(folder, options.model)
    options = replace(options, model=model, hardware=hardware)
    chosen = policies or DEFAULT_POLICIES
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"--policy names one policy twice ({', '.join(chosen)}); give it once")
    if not prompt.strip():
        raise ConfigError("the prompt is empty; give at least one word")
    solved = solve_all(options, chosen)
    with running_engine(options, policy=solved[chosen[0]]) as engine:
        measured = measure_all(engine, solved, prompt, max_tokens, repeat, options.seed)
        schedule = engine.stats().schedule
    runs = summarise(measured, schedule)
    click.echo(_table(runs))
    if as_json:
        output.emit_json({"runs": runs, "report": None})


@dataclass(frozen=True)
class Solved:
    """A placement that is there already, in the place of the policy that made it."""

    placement: "Placement"

    def place(self, problem: "Problem") -> "Placement":
        """The placement, whatever the problem; the engine checks it like any other."""
        return self.placement


def solve_all(options: EngineOptions, policies: tuple[str, ...]) -> dict[str, Solved]:
    """Let every policy place the model once.

    Raises:
        PolicyError: a policy that cannot be used.
        HotcoldError: a model or option that cannot be used.
    """
    from hotcold.runtime.config import EngineConfig
    from hotcold.runtime.deployment import prepare_model, solve
    from hotcold.runtime.problem import Placement

    arguments = options.launch_arguments()
    arguments.pop("address", None)
    prepared = prepare_model(EngineConfig(**arguments))
    plans = {policy: solve(prepared, policy) for policy in policies}
    return {
        policy: Solved(Placement(plan.device_LN, plan.modules)) for policy, plan in plans.items()
    }


def measure_all(
    engine: "Engine",
    solved: dict[str, Solved],
    prompt: str,
    max_tokens: int,
    repeat: int,
    seed: int,
) -> dict[str, Measured]:
    """Generate with every placement, repeat times each, in an order drawn from the seed."""
    order = [policy for policy in solved for _ in range(repeat)]
    random.Random(seed).shuffle(order)
    measured = {policy: Measured() for policy in solved}
    progress = output.Progress("comparing", "runs")
    for done, policy in enumerate(order):
        progress(done, done / len(order))
        engine.replan(policy=solved[policy])
        _run_once(engine, prompt, WARM_UP_TOKENS)
        before = engine.stats().actors["gpu"]
        ids = _run_once(engine, prompt, max_tokens)
        stats = engine.stats()
        after, record = stats.actors["gpu"], measured[policy]
        wait_s, busy_s = after.wait_s - before.wait_s, after.busy_s - before.busy_s
        record.tokens_per_s.append(figures(engine).decode_tokens_per_s)
        record.gpu_neuron_load.append(stats.gpu_neuron_load)
        record.wait_s.append(wait_s)
        record.wait_share.append(wait_s / (wait_s + busy_s) if wait_s + busy_s > 0 else 0.0)
        record.token_ids.append(ids)
    progress.close()
    return measured


def _run_once(engine: "Engine", prompt: str, max_tokens: int) -> list[int]:
    """Ids of a greedy continuation; past the end of text, so that every run is as long."""
    tokens = engine.generate(prompt, max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    return [token.id for token in tokens]


def summarise(measured: dict[str, Measured], schedule: str) -> list[dict[str, Any]]:
    """One entry a policy: medians over its runs, and whether its tokens are the first policy's."""
    reference = next(iter(measured.values())).token_ids[0]
    return [
        {
            "policy": policy,
            "schedule": schedule,
            "decode_tokens_per_s": statistics.median(record.tokens_per_s),
            "decode_tokens_per_s_min": min(record.tokens_per_s),
            "decode_tokens_per_s_max": max(record.tokens_per_s),
            "gpu_neuron_load": statistics.median(record.gpu_neuron_load),
            "wait_s": statistics.median(record.wait_s),
            "wait_share": statistics.median(record.wait_share),
            "same_tokens": all(ids == reference for ids in record.token_ids),
            "repeat": len(record.tokens_per_s),
        }
        for policy, record in measured.items()
    ]


def _table(runs: list[dict[str, Any]]) -> str:
    headers = ("policy", "tokens/s", "min..max", "neurons on gpu", "gpu waits", "same tokens")
    rows = [
        (
            run["policy"],
            f"{run['decode_tokens_per_s']:.1f}",
            f"{run['decode_tokens_per_s_min']:.1f}..{run['decode_tokens_per_s_max']:.1f}",
            output.percent(run["gpu_neuron_load"]),
            output.percent(run["wait_share"]),
            "yes" if run["same_tokens"] else "NO",
        )
        for run in runs
    ]
    return output.table(headers, rows)
