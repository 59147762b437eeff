"""The programs that `bench decode` and `bench batch` compare with, and their option."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import Command
from hotcold.runtime.limits import processors

if TYPE_CHECKING:
    from hotcold.runtime.bench.decode import Rate
    from hotcold.runtime.model.checkpoints.bundle import Bundle


def rival_option(default: str) -> Callable[[Command], Command]:
    """Add --rival; `default` says what is compared where it is not given."""
    return click.option(
        "--rival",
        "rivals",
        multiple=True,
        type=click.Choice(("transformers", "llama.cpp", "none")),
        help=f"A program to compare with; may be repeated.  [default: {default}]",
    )


def rivals_of(names: tuple[str, ...], bundle: "Bundle", folder: Path) -> "dict[str, Rate]":
    """What decodes with each, by name and dtype; llama.cpp's file goes into `folder`.

    Raises:
        ConfigError: one is not installed, or has nothing to read.
    """
    from hotcold.runtime.bench.decode import source_folder, transformers_rates
    from hotcold.runtime.bench.llama_cpp import llama_cpp_rate

    cores = processors().at_once
    rivals: dict[str, Rate] = {}
    if "transformers" in names:
        rivals |= transformers_rates(source_folder(bundle), cores)
    if "llama.cpp" in names:
        output.note("bench: writing GGUF for llama.cpp")
        rivals["llama_cpp"] = llama_cpp_rate(bundle, folder, cores)
    return rivals
