"""`hotcold roofline`: the bound of a plan on a machine, part by part; nothing is run.

The plan is --plan's or what --policy places here; the arithmetic is
hotcold.runtime.plan.roofline's.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from hotcold.actors.cli.commands.solve import check_shape, placed
from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import engine_options, json_option, option
from hotcold.runtime.options.config import DEFAULT_CONTEXT, ENGINE, EngineConfig
from hotcold.runtime.topology import CLASSIC
from hotcold.runtime.units import format_bytes, parse_budgets

if TYPE_CHECKING:
    from hotcold.runtime.hardware.profile import HardwareProfile
    from hotcold.runtime.model.spec import ModelSpec
    from hotcold.runtime.plan.plan import Plan
    from hotcold.runtime.plan.problem import Problem
    from hotcold.runtime.plan.roofline import Roofline

SHAPE_ONLY = ("predictor_width", "density", "share80", "overfire")


@click.command("roofline")
@click.option(
    "--shape",
    metavar="SHAPE",
    help="A published shape with synthetic statistics, instead of MODEL: llama2-13b, for example.",
)
@option(
    ENGINE["schedule"],
    choices=("selective", "lookahead"),
    metavar=None,
    help="Schedule: with lookahead, the host reads cold neurons while a GPU computes attention.",
)
@option(
    ENGINE["predictor_dtype"],
    choices=("float16", "int8"),
    shown="as they are; of a shape, float16",
    help="Dtype of the predictor's matrices on a GPU.",
)
@click.option(
    "--predictor-width",
    type=click.IntRange(min=0),
    help="With --shape: hidden width of the predictors, 0: none.  [default: 3/16 of d]",
)
@click.option("--density", type=float, help="With --shape: share of neurons that fire.")
@click.option(
    "--share80",
    type=float,
    help="With --shape: share of a layer's neurons that hold 80 % of its activations.",
)
@click.option(
    "--overfire",
    type=float,
    help="With --shape: neurons proposed for each that fires.  [default: 1]",
)
@json_option
@engine_options("roofline", own=("schedule", "predictor_dtype"), argument=True)
def command(
    options: EngineConfig,
    shape: str | None,
    **more: Any,  # noqa: ANN401 - as click parsed them
) -> None:
    """Compute the bound of a plan: bytes over the machine's rates, exchange and gaps.

    MODEL is a folder; without one, the embedded model. A well made engine decodes at 70 to 90 % of
    the bound; if it is slower, the parts show where to look.
    """
    from hotcold.runtime.hardware.this_machine import chosen_hardware
    from hotcold.runtime.plan.plan import Plan
    from hotcold.runtime.plan.roofline import roofline

    _check_usage(options, shape, more)
    machine = chosen_hardware(options.hardware)
    budget = parse_budgets(options.vram, options.gpu_executors)
    if shape is not None:
        problem, name = shape_problem(shape, options, budget, machine, more), f"shape {shape}"
    else:
        problem, name = model_problem(options, budget, machine, more["predictor_dtype"])
    if options.plan is not None:
        made = Plan.load(Path(options.plan))
    else:
        made = placed(problem, options, name)[1]
    bound = roofline(problem, made, ahead=more["schedule"] == "lookahead")
    result = {**describe(problem, made, bound), "schedule": more["schedule"]}
    if budget[0] is not None and machine.has_gpu:
        result["reserve_bytes"] = budget[0] - problem.budgets[problem.devices[0]]
    _print(result, made, bound)
    output.emit_json(result)


def _check_usage(options: EngineConfig, shape: str | None, more: Any) -> None:
    """Refuse options that contradict each other by a UsageError that names both."""
    check_shape(shape, options)
    if shape is None:
        for name in SHAPE_ONLY:
            if more[name] is not None:
                option = name.replace("_", "-")
                raise click.UsageError(f"--{option} belongs to --shape; a model has its own")
    elif options.predictor != "auto":
        raise click.UsageError(
            "--predictor belongs to MODEL; a shape takes --predictor-width and --predictor-dtype"
        )


def shape_problem(
    shape: str,
    options: EngineConfig,
    budget: list[int | None],
    machine: "HardwareProfile",
    more: dict[str, Any],
) -> "Problem":
    """The problem of a published shape on a machine; ConfigError: unknown, or a bad number."""
    from hotcold.runtime.offline.plant.shaped import Ask, shaped_problem
    from hotcold.runtime.offline.plant.shapes import find_shape
    from hotcold.runtime.plan.roofline import for_gpu

    width: int | None = more["predictor_width"]
    dtype = options.dtype or "float16"
    spec = find_shape(shape).spec(None, dtype)
    ask = Ask(
        density=more["density"],
        share80=more["share80"],
        predictor_width=spec.d_model * 3 // 16 if width is None else width,
        predictor_dtype=more["predictor_dtype"] or "float16",
        overfire=1.0 if more["overfire"] is None else more["overfire"],
        kv_bytes=_kv_bytes(machine, options),
        embed_on_host=machine.has_gpu,
        topology=options.topology,
    )
    context = options.context or DEFAULT_CONTEXT
    problem = shaped_problem(shape, budget, context, dtype, machine, ask=ask)
    return for_gpu(problem, budget, _scratch(spec, context)) if machine.has_gpu else problem


def model_problem(
    options: EngineConfig,
    budget: list[int | None],
    machine: "HardwareProfile",
    predictor_dtype: str | None,
) -> tuple["Problem", str]:
    """The problem of a model on a machine, and the model's checksum.

    Without a GPU here, the budget and the KV cache are made what they would be on a machine that
    has one.

    Raises:
        HotcoldError: a model or option that cannot be used.
    """
    from hotcold.runtime.engine.prepare import prepare_model
    from hotcold.runtime.plan.problem import make_problem
    from hotcold.runtime.plan.roofline import for_gpu

    int8 = "int8" if predictor_dtype == "int8" else None
    prepared = prepare_model(replace(options, predictor_dtype=int8))
    checksum = prepared.bundle.checksum
    problem = replace(prepared.problem, hardware=machine)
    if prepared.with_gate:  # every gate row is read, by the predictor's actor if not the others
        problem = replace(problem, predictor_density_L=np.ones(problem.shape[0]))
    if not machine.has_gpu or prepared.gpu is not None:
        return problem, checksum
    spec = prepared.bundle.spec
    problem = make_problem(
        spec,
        prepared.bundle.record.bytes,
        problem.activations_LN if problem.profiled else None,
        budget,
        prepared.context,
        1,
        prepared.predictor_bytes_L or [0] * spec.n_layers,
        problem.predictor_density_L.tolist(),
        machine,
        kv_bytes=_kv_bytes(machine, options),
        embed_on_host=True,
        topology=options.topology,
    )
    return for_gpu(problem, budget, _scratch(spec, prepared.context)), checksum


def _kv_bytes(machine: "HardwareProfile", options: EngineConfig) -> int:
    return 2 if machine.has_gpu and options.kv_dtype == "float16" else 4


def _scratch(spec: "ModelSpec", context: int) -> int:
    from hotcold.native.abi.generated import MAX_BATCH
    from hotcold.runtime.engine.gpu_memory import model_shape

    return model_shape(spec, context, MAX_BATCH).executor().reserve


def describe(problem: "Problem", plan: "Plan", bound: "Roofline") -> dict[str, Any]:
    """The bound and its parts, units in the keys."""
    parts = {f"{name}_ms": seconds * 1e3 for name, seconds in bound.parts_s.items()}
    return {
        "bound_tokens_per_s": bound.tokens_per_s,
        "token_ms": bound.token_s * 1e3,
        **parts,
        "hot_ms": bound.hot_s * 1e3,
        "cold_ms": bound.cold_s * 1e3,
        "bytes": dict(bound.bytes),
        "neuron_bytes": dict(bound.neuron_bytes),
        "hardware": problem.hardware.to_json(),
        "policy": plan.policy,
        "plan_hash": plan.hash,
        "gpu_activation_share": plan.gpu_activation_share,
        "bytes_by_device": plan.bytes_by_device,
        "budgets": dict(problem.budgets),
        "elsewhere": list(bound.elsewhere),
    }


def _print(result: dict[str, Any], plan: "Plan", bound: "Roofline") -> None:
    click.echo(plan.describe())
    if reserve := result.get("reserve_bytes"):
        context = format_bytes(result["hardware"]["context_bytes"])
        click.echo(
            f"  {format_bytes(reserve)} of the budget for the CUDA context ({context}), tables and "
            "the scratch of a pass"
        )
    click.echo()
    hardware, token = result["hardware"], bound.token_s
    rows = [
        (
            name,
            f"{_bytes(result['bytes'], name) / 1e9:.4g}" if _bytes(result["bytes"], name) else "",
            f"{seconds * 1e3:.4g}",
            output.percent(seconds / token),
        )
        for name, seconds in bound.parts_s.items()
    ]
    rows.append(("token", "", f"{token * 1e3:.4g}", output.percent(1.0)))
    click.echo(output.table(("part", "GB", "ms", "of the token"), rows))
    at_once = hardware["has_gpu"] or hardware["at_once"]
    how = "at the same time" if at_once else "in turn, from one memory"
    if hardware["has_gpu"] and result["schedule"] == "lookahead":
        how += "; cold starts with the attention before, the next prediction runs beside hot"
    click.echo(f"\nffn: hot {bound.hot_s * 1e3:.4g} ms and cold {bound.cold_s * 1e3:.4g} ms, {how}")
    if len(bound.neuron_bytes) > len(CLASSIC.devices):
        read = (f"{device} {size / 1e9:.4g}" for device, size in bound.neuron_bytes.items())
        click.echo(f"neurons, GB  {', '.join(read)}")
    measured = "" if hardware["measured"] else ", rates not measured"
    click.echo(f"bound  {bound.tokens_per_s:.4g} tokens/s ({hardware['name']}{measured})")
    if bound.elsewhere and hardware["has_gpu"]:
        output.note(
            f"roofline: {len(bound.elsewhere)} modules do not fit the GPU, {bound.elsewhere[0]} "
            "first; the GPU reads them over the bus, token by token"
        )


def _bytes(sizes: dict[str, float], part: str) -> float:
    return sizes["hot"] + sizes["cold"] if part == "ffn" else sizes.get(part, 0.0)
