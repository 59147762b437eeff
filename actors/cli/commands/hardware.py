"""`hotcold hardware`: measure this machine, print its rates, keep them for later commands.

The file is written once, at the end: an interrupted run leaves nothing.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import debug_option, json_option
from hotcold.actors.cli.common.running import StopSignals
from hotcold.native.errors import ConfigError

if TYPE_CHECKING:
    from hotcold.runtime.hardware.machine_file import MachineFile


@click.command("hardware")
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write here instead, to pass on or for --hardware FILE.  [default: the user's cache,"
    " where later commands on this machine find it]",
)
@click.option("--name", metavar="TEXT", help="Name of the machine.  [default: its parts]")
@click.option("--quick", is_flag=True, help="Take some seconds instead of a minute; less exact.")
@json_option
@debug_option
def command(out: Path | None, name: str | None, quick: bool) -> None:
    """Measure this machine: memory, arithmetic, exchange, and its GPU where there is one.

    Takes about a minute. Other programs should not run meanwhile: they change the result, and a
    line says so. Later commands without --hardware use the result, on this machine only.
    """
    from hotcold.runtime.bench.hardware import doubts, measure
    from hotcold.runtime.hardware.this_machine import own_path

    check_out(out, name)
    with StopSignals():  # SIGTERM, too, ends it with its temporary files removed
        file = measure(name, quick, lambda text: output.note(f"hardware: {text}"))
    path = own_path(str(file.machine["key"])) if out is None else out
    file.save(path)
    show(file)
    output.note(f"hardware: written to {path}")
    if found := doubts(file):
        output.note(
            f"hardware: {' and '.join(found)}: these rates may be too low; measure again when the "
            "machine is quiet"
        )
    output.emit_json(file.to_json() | {"path": str(path)})


def check_out(out: Path | None, name: str | None) -> None:
    """Refuse by a ConfigError, before a minute is spent, what could not be written."""
    if name is not None and not 0 < len(name.strip()) <= 200:
        raise ConfigError(f"--name is {len(name)} characters long; give 1 to 200")
    if out is None:
        return
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; give a file")
    if out.exists():
        from hotcold.native.errors import CheckpointError
        from hotcold.runtime.hardware.machine_file import MachineFile

        try:
            MachineFile.load(out)
        except CheckpointError as error:
            raise ConfigError(
                f"--out {out} exists and is no hardware file; give another name"
            ) from error


def show(file: "MachineFile") -> None:
    """The figures and tables, for people."""
    from hotcold.runtime.hardware.machine_file import UNITS

    named = "" if file.about.startswith(file.name) else f"{file.name}: "
    click.echo(f"{named}{file.about}; {file.date}\n")
    rows = [
        (name, f"{one.value:.4g}", UNITS[name], one.source, one.origin)
        for name, one in file.figures.items()
    ]
    click.echo(output.table(("figure", "value", "unit", "source", "from"), rows))
    for name, lines in file.tables.items():
        if lines:
            click.echo(f"\n{_table(name, [dict(line) for line in lines])}")


def _table(name: str, rows: list[dict[str, Any]]) -> str:
    if name == "host_reads":
        kinds = list(dict.fromkeys(row["store"] for row in rows))
        rates = {(r["threads"], r["record_bytes"], r["store"]): r["gb_per_s"] for r in rows}
        cells = [
            (
                str(threads),
                f"{length / 1024:g}",
                *(f"{rates[threads, length, kind]:.1f}" for kind in kinds),
            )
            for threads, length in dict.fromkeys((r["threads"], r["record_bytes"]) for r in rows)
        ]
        return output.table(
            ("host reads: threads", "record KiB", *(f"{k} GB/s" for k in kinds)), cells
        )
    headers = [key.replace("_", " ") for key in rows[0]]
    headers[0] = f"{name}: {headers[0]}"
    return output.table(
        headers,
        [
            tuple(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
            for row in rows
        ],
    )
