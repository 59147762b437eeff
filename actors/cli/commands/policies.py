"""`hotcold policies`: the installed plug-ins by kind, and template files for your own."""

from dataclasses import asdict
from typing import Literal, get_args

import click

from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import debug_option, json_option

Kind = Literal["placement", "schedule", "predictor"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@click.command("policies")
@click.option(
    "--template",
    type=click.Choice(KINDS),
    help="Print a ready file for a policy of your own: --template placement > mine.py",
)
@json_option
@debug_option
def command(template: str | None) -> None:
    """List the installed placement policies, schedule policies and predictors.

    A policy that is not installed is named file.py:Class or package.module:Class.
    """
    if template is not None:
        if output.as_json():
            raise click.UsageError("--template prints a file; give it without --json")
        click.echo(template_text(template), nl=False)
        return
    from hotcold.runtime.plugins import registry

    found = [asdict(entry) for kind in KINDS for entry in registry.listing(kind)]
    columns = ("name", "kind", "version", "origin", "target")
    rows = [tuple(entry[column] for column in columns) for entry in found]
    click.echo(output.table(columns, rows))
    output.emit_json({"policies": found})


def template_text(kind: str) -> str:
    """The file to start a policy of this kind from."""
    from importlib.resources import files

    return files("hotcold.policies.templates").joinpath(f"{kind}.py").read_text(encoding="utf-8")
