"""The option group every command that runs an engine has, and the data it becomes.

`engine_options` decorates a command and hands it one EngineOptions. Values are passed on as typed;
what they mean (sizes, names, files) is checked where they are used, so that a library user gets
the same errors.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from hotcold.native.abi.names import WEIGHT_DTYPES
from hotcold.native.errors import ConfigError
from hotcold.runtime.hardware.machine_file import reference_machines

Command = TypeVar("Command", bound=Callable[..., Any])
TRANSPORTS = ("native", "ray")
STORES = ("file", "memfd", "private")
PROMPT_FORMS = ("auto", "dense", "sparse")
PREDICTOR_PROCESSES = ("fused", "mps")
PREDICTOR_HELP = (
    "auto, exact, learned, low-rank, sign, ... (hotcold policies), a folder, or file.py:Class."
)


@dataclass
class State:
    """What the whole command line shares: whether a failure shows its traceback, what was typed."""

    debug: bool = False
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class EngineOptions:
    """What the user asked of an engine; None leaves the choice to Engine.launch.

    Args:
        model: folder of a checkpoint or bundle; None is the embedded model.
        vram: memory budget of the GPU executor's device, "24MiB" for example.
        plan: folder of a saved plan, used instead of a policy.
        policy: placement policy, a name, `file.py:Class` or `package.module:Class`.
        schedule: schedule policy, named likewise.
        settings: the parameters of policies, as typed.
        predictor: "auto", a kind, a folder or `file.py:Class`.
        dtype: dtype of the stored matrices.
        threads: worker threads of the CPU executor.
        context: positions kept for the prompt and what follows it.
        transport: "native" or "ray".
        store: how weights are held in memory, "file", "memfd" or "private".
        address: address of a Ray cluster to join.
        seed: seed of sampling and of policies that draw.
        restarts: losses of actors that a generation survives.
        kernels: CPU kernels, a built-in variant or a C file.
        prompt_form: on a GPU, "auto", "dense" or "sparse" prompts.
        predictor_process: on a GPU, "fused" or "mps".
        hardware: machine that policies decide for; set by commands that have --hardware.
        policy_timeout: seconds that a policy given by name or file may take.
    """

    model: str | None = None
    vram: str | None = None
    plan: Path | None = None
    policy: str | None = None
    schedule: str | None = None
    settings: dict[str, str] = field(default_factory=dict)
    predictor: str = "auto"
    dtype: str | None = None
    threads: int | None = None
    context: int | None = None
    transport: str = "native"
    store: str | None = None
    address: str | None = None
    seed: int = 0
    restarts: int | None = None
    kernels: str | None = None
    prompt_form: str | None = None
    predictor_process: str | None = None
    hardware: str | None = None
    policy_timeout: float | None = None

    def launch_arguments(self) -> dict[str, Any]:
        """Keyword arguments of Engine.launch; what the user left out is left out here too."""
        given: dict[str, Any] = {
            "model": self.model,
            "vram": self.vram,
            "plan": self.plan,
            "policy": self.policy,
            "schedule": self.schedule,
            "settings": self.settings or None,
            "dtype": self.dtype,
            "threads": self.threads,
            "context": self.context,
            "store": self.store,
            "address": self.address,
            "restarts": self.restarts,
            "kernels": self.kernels,
            "prompt_form": self.prompt_form,
            "predictor_process": self.predictor_process,
            "hardware": self.hardware,
            "policy_timeout": self.policy_timeout,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        always = {"predictor": self.predictor, "transport": self.transport, "seed": self.seed}
        return {**chosen, **always}


def debug_option(command: Command) -> Command:
    """Add --debug: show the traceback of a failure."""

    def remember(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        ctx.ensure_object(State).debug |= value

    option = click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=remember,
        help="Show the traceback of a failure.",
    )
    return option(command)


def json_option(command: Command) -> Command:
    """Add --json: the last line of standard output is one JSON object."""
    option = click.option(
        "--json", "as_json", is_flag=True, help="End with one line of JSON on standard output."
    )
    return option(command)


def model_option(command: Command) -> Command:
    """Add --model."""
    option = click.option(
        "--model",
        metavar="DIR",
        help="Folder of a Hugging Face checkpoint or a bundle.  [default: the embedded model]",
    )
    return option(command)


def dtype_option(command: Command) -> Command:
    """Add --dtype."""
    option = click.option(
        "--dtype",
        type=click.Choice(WEIGHT_DTYPES),
        help="Dtype of the stored matrices.  [default: the checkpoint's]",
    )
    return option(command)


def hardware_option(
    use: str, default: str = "this one, as `hotcold hardware` measured it"
) -> Callable[[Command], Command]:
    """Add --hardware.

    Args:
        use: what the machine is for, "solve for".
        default: which machine it is without the option.
    """
    names = ", ".join(reference_machines())
    return click.option(
        "--hardware",
        metavar="NAME",
        help=f"Machine to {use}: {names}, or a file that `hotcold hardware` wrote."
        f"  [default: {default}]",
    )


def seed_option(command: Command) -> Command:
    """Add --seed."""
    option = click.option(
        "--seed",
        type=click.IntRange(0, 2**63 - 1),
        default=0,
        show_default=True,
        help="Seed of sampling and of policies that draw.",
    )
    return option(command)


def policy_timeout_option(command: Command) -> Command:
    """Add --policy-timeout."""
    option = click.option(
        "--policy-timeout",
        type=click.FloatRange(min=0, min_open=True),
        help="Seconds that a policy given by name or file may take.  [default: 60]",
    )
    return option(command)


def _group(without: Collection[str]) -> list[Callable[[Any], Any]]:
    """The options in the order --help shows them, but for those of the given fields."""
    vram = click.option(
        "--vram",
        metavar="SIZE",
        help="Memory budget of the GPU executor's device, 24MiB for example.",
    )
    schedule = click.option(
        "--schedule", metavar="NAME", help="Schedule policy.  [default: selective]"
    )
    placement = [
        click.option(
            "--policy",
            metavar="NAME",
            help="Placement policy: a name, file.py:Class or package.module:Class."
            "  [default: greedy]",
        ),
        click.option(
            "--plan",
            metavar="DIR",
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            help="A saved plan, instead of --policy.",
        ),
    ]
    prediction = [
        click.option(
            "--predictor",
            metavar="KIND",
            default="auto",
            show_default=True,
            help=PREDICTOR_HELP,
        )
    ]
    return [
        model_option,
        *([] if "vram" in without else [vram]),
        *([] if "policy" in without else placement),
        *([] if "schedule" in without else [schedule]),
        click.option(
            "--set",
            "settings",
            metavar="NAME=VALUE",
            multiple=True,
            help="A parameter of a plug-in (share=0.8, schedule.depth=1); may be repeated.",
        ),
        policy_timeout_option,
        *([] if "predictor" in without else prediction),
        dtype_option,
        click.option("--threads", type=click.IntRange(min=1), help="Worker threads an executor."),
        click.option(
            "--context",
            type=click.IntRange(min=1),
            help="Positions kept for the prompt and what follows.  [default: at most 512]",
        ),
        click.option(
            "--transport",
            type=click.Choice(TRANSPORTS),
            default="native",
            show_default=True,
            help="How the actors exchange: shared memory, or a Ray call an operation.",
        ),
        click.option(
            "--store",
            type=click.Choice(STORES),
            help="How weights are held in memory: mapped file, one shared copy in huge pages, or"
            " its own neurons in private huge pages.  [default: HOTCOLD_STORE, else by size]",
        ),
        click.option(
            "--address", help="Ray cluster to join.  [default: RAY_ADDRESS, or a new one]"
        ),
        click.option(
            "--kernels",
            metavar="NAME",
            help="Kernels: a built-in variant (avx2), your own file.c, or file.cu for the GPU."
            "  [default: HOTCOLD_CPU, or the best one]",
        ),
        click.option(
            "--prompt-form",
            type=click.Choice(PROMPT_FORMS),
            help="Prompts on a GPU: sparse in blocks of 32 tokens, dense in a pass over the model,"
            " or dense from a measured length on.  [default: auto]",
        ),
        click.option(
            "--predictor-process",
            type=click.Choice(PREDICTOR_PROCESSES),
            help="On a GPU, predict in the GPU executor's graph, or in a process of the predictor's"
            " own under MPS.  [default: fused]",
        ),
        seed_option,
        click.option(
            "--restarts",
            type=click.IntRange(min=0),
            help="Losses of actors a generation survives; 0: the first ends it.  [default: 3]",
        ),
        debug_option,
    ]


FIELDS = (
    "model",
    "vram",
    "plan",
    "policy",
    "schedule",
    "predictor",
    "dtype",
    "threads",
    "context",
    "transport",
    "store",
    "address",
    "seed",
    "restarts",
    "kernels",
    "prompt_form",
    "predictor_process",
    "policy_timeout",
)


def engine_options(
    *, policy: bool = True, predictor: bool = True, schedule: bool = True, vram: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the engine's option group; it receives `options: EngineOptions`.

    Args:
        policy: with --plan and --policy; False where the command defines --policy itself.
        predictor: with --predictor; False likewise.
        schedule: with --schedule; False likewise.
        vram: with --vram; False likewise.
    """
    has = {"policy": policy, "predictor": predictor, "schedule": schedule, "vram": vram}
    without = {name for name, there in has.items() if not there}
    without |= set() if policy else {"plan"}

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(**values: Any) -> Any:  # noqa: ANN401 - whatever click parsed
            taken = {name: values.pop(name) for name in FIELDS if name not in without}
            settings = parse_settings(values.pop("settings"))
            if taken.get("plan") is not None and taken.get("policy") is not None:
                raise click.UsageError("--plan and --policy exclude each other; give one of them")
            return function(options=EngineOptions(settings=settings, **taken), **values)

        command: Callable[..., Any] = call
        for option in reversed(_group(without)):
            command = option(command)
        return command

    return decorate


def parse_settings(settings: tuple[str, ...]) -> dict[str, str]:
    """--set NAME=VALUE, repeated, as a dictionary.

    Raises:
        ConfigError: not of that form, or a name given twice.
    """
    parsed: dict[str, str] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not all(part.isidentifier() for part in name.strip().split(".")):
            raise ConfigError(f"--set {setting!r} is not NAME=VALUE; for example --set share=0.8")
        if name.strip() in parsed:
            raise ConfigError(f"--set gives {name.strip()!r} twice; give it once")
        parsed[name.strip()] = value
    return parsed


def choose_model(argument: str | None, option: str | None) -> str | None:
    """The model of a command that takes it as MODEL or as --model.

    Raises:
        click.UsageError: both were given and they differ.
    """
    if argument is not None and option is not None and argument != option:
        raise click.UsageError(
            f"two models, {argument!r} and --model {option!r}; give only one of them"
        )
    return argument if argument is not None else option
