"""`hotcold solve`: a placement policy's plan, saved and explained; nothing is run.

Bytes by device, the share of activations on the GPU and the predicted time of a token are
recomputed here from the plan, whatever the policy says of itself.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import engine_options, json_option, out_option
from hotcold.native.errors import ConfigError
from hotcold.runtime.options.config import DEFAULT_CONTEXT, EngineConfig
from hotcold.runtime.units import parse_budgets

if TYPE_CHECKING:
    from hotcold.runtime.hardware.profile import HardwareProfile
    from hotcold.runtime.plan.cost import TokenTime
    from hotcold.runtime.plan.plan import Plan
    from hotcold.runtime.plan.problem import Placement, Problem


@click.command("solve")
@click.option(
    "--shape",
    metavar="SHAPE",
    help="A published shape with synthetic statistics, instead of MODEL: opt-175b, for example.",
)
@out_option("Folder for the plan; made if it is not there.")
@json_option
@engine_options("solve", argument=True)
def command(options: EngineConfig, shape: str | None, out: Path) -> None:
    """Place MODEL's neurons under a memory budget, save the plan and explain it.

    MODEL is a folder; without one, the embedded model. Times are the cost model's, not measured.
    """
    from hotcold.runtime.engine.prepare import prepare_model
    from hotcold.runtime.hardware.this_machine import chosen_hardware

    check_out(out)
    machine = chosen_hardware(options.hardware)
    check_shape(shape, options)
    if shape is not None:
        problem, name = _shaped(shape, options, machine)
    else:
        prepared = prepare_model(options)
        problem, name = prepared.problem, prepared.bundle.checksum
    placement, plan = placed(problem, options, name)
    plan.save(out)
    result = describe(problem, placement, plan)
    result |= {"solve_s": placement.solve_s, "plan": str(out)}
    _print(result, plan, problem)
    output.emit_json(result)


def check_shape(shape: str | None, options: EngineConfig) -> None:
    """Refuse a shape beside a model by a UsageError."""
    if shape is not None and options.model is not None:
        raise click.UsageError("MODEL and --shape exclude each other; give one of them")


def placed(problem: "Problem", options: EngineConfig, name: str) -> tuple["Placement", "Plan"]:
    """What --policy makes of a problem; name is the model's."""
    from hotcold.runtime.plan.plan import make_plan
    from hotcold.runtime.plugins.run import place
    from hotcold.runtime.plugins.settings import split_settings

    policy, own = options.policy, split_settings(options.settings)["placement"]
    placement = place(policy, problem, own, options.policy_timeout)
    return placement, make_plan(problem, placement, policy, name)


def check_out(out: Path) -> None:
    """Refuse, by a ConfigError, a folder that holds something else than an earlier plan."""
    if out.is_dir() and not (out / "plan.json").exists() and any(out.iterdir()):
        raise ConfigError(
            f"--out {out} exists and is not a plan (it has files but no plan.json); "
            "give another folder"
        )


def _shaped(shape: str, options: EngineConfig, machine: "HardwareProfile") -> tuple["Problem", str]:
    from hotcold.runtime.offline.plant.shaped import Ask, shaped_problem

    budget = parse_budgets(options.vram, options.gpu_executors)
    context, dtype = options.context or DEFAULT_CONTEXT, options.dtype or "float16"
    ask = Ask(sequences=options.sequences, topology=options.topology)
    problem = shaped_problem(shape, budget, context, dtype, machine, ask=ask)
    return problem, f"shape {shape}"


def describe(problem: "Problem", placement: "Placement", plan: "Plan") -> dict[str, Any]:
    """The facts of a plan, units in the keys.

    `objective`, `bound` and `gap` are the policy's; one that gives none has as its objective what
    the paper maximises, the neurons expected to fire on the GPU for a token.
    """
    from hotcold.runtime.plan.cost import predict

    token = predict(problem, plan)
    hot_activations = float(plan.activations_LN[plan.hot_LN].sum())
    figures = placement.figures
    return {
        "policy": plan.policy,
        "hardware": problem.hardware.to_json(),
        "objective": figures.get("objective", hot_activations),
        "bound": figures.get("bound"),
        "gap": figures.get("gap"),
        "bytes": plan.bytes_by_device,
        "budgets": dict(plan.budgets),
        "gpu_activations": hot_activations,
        "gpu_activation_share": plan.gpu_activation_share,
        "predicted_token_s": token.total_s,
        "predicted_tokens_per_s": token.tokens_per_s,
        "predicted_rest_s": token.rest_s,
        "layers": _layers(plan, token),
        "plan_hash": plan.hash,
    }


def _layers(plan: "Plan", token: "TokenTime") -> list[dict[str, Any]]:
    hot_LN, cpus = plan.hot_LN, range(plan.gpus, len(plan.devices))
    p_LN = plan.activations_LN
    return [
        {
            "hot_neurons": int(hot_LN[layer].sum()),
            "neurons": {
                device: len(plan.ids(layer, index)) for index, device in enumerate(plan.devices)
            },
            "hot_format": _format(plan, layer, range(plan.gpus)),
            "cold_format": _format(plan, layer, cpus),
            "gpu_activation_share": float(p_LN[layer, hot_LN[layer]].sum() / total)
            if (total := p_LN[layer].sum()) > 0
            else 0.0,
            "dense_s": time.dense_s,
            "hot_s": time.hot_s,
            "cold_s": time.cold_s,
            "exchange_s": time.exchange_s,
            "predicted_s": time.total_s,
        }
        for layer, time in enumerate(token.layers)
    ]


def _format(plan: "Plan", layer: int, devices: range) -> str:
    """The format of a kind's neurons of a layer; of its first device that has another, that one."""
    found = (plan.format(layer, device) for device in devices)
    return next(filter(None, found), plan.dtype)


def _print(result: dict[str, Any], plan: "Plan", problem: "Problem") -> None:
    click.echo(plan.describe())
    click.echo()
    times = ("dense_s", "hot_s", "cold_s", "exchange_s", "predicted_s")
    rows = [
        (
            str(layer),
            output.count(row["hot_neurons"]),
            output.percent(row["gpu_activation_share"]),
            *(f"{row[key] * 1e6:.1f}" for key in times),
        )
        for layer, row in enumerate(result["layers"])
    ]
    headers = ("layer", "hot neurons", "of activations", "dense us", "hot us", "cold us")
    click.echo(output.table((*headers, "exchange us", "layer us"), rows))
    click.echo()
    measured = "" if problem.hardware.measured else ", rates not measured"
    click.echo(
        f"predicted  {result['predicted_token_s'] * 1e3:.4g} ms a token, "
        f"{result['predicted_tokens_per_s']:.4g} tokens/s ({problem.hardware.name}{measured}; "
        "the cost model's, not a measurement)"
    )
    bound = result["bound"]
    proven = "" if bound is None else f", bound {bound:.6g}, gap {result['gap']:.4%}"
    click.echo(f"objective  {result['objective']:.6g}{proven}")
    click.echo(f"solved in  {result['solve_s']:.3f} s")
    output.note(f"plan in {result['plan']}")
