"""`hotcold policies`: which plug-ins are installed, by kind."""

from dataclasses import asdict
from typing import Literal

import click

from hotcold.runtime.cli import output
from hotcold.runtime.cli.options import debug_option, json_option

KINDS: tuple[Literal["placement", "schedule", "predictor"], ...] = (
    "placement",
    "schedule",
    "predictor",
)


@click.command("policies")
@json_option
@debug_option
def command(as_json: bool) -> None:
    """List the installed placement policies, schedule policies and predictors.

    A policy that is not installed is named file.py:Class or package.module:Class.
    """
    from hotcold.policies import registry

    found = [asdict(entry) for kind in KINDS for entry in registry.listing(kind)]
    columns = ("name", "kind", "version", "origin", "target")
    rows = [tuple(entry[column] for column in columns) for entry in found]
    click.echo(output.table(columns, rows))
    if as_json:
        output.emit_json({"policies": found})
