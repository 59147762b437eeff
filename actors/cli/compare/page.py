"""The page of `hotcold compare --out`: tables and pictures in one HTML file.

It holds all it shows and needs no network; the pictures lie beside it as PNG files, too.
"""

import html
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from hotcold.actors.cli.common import output
from hotcold.actors.cli.compare.cases import format_budget
from hotcold.actors.cli.compare.runs import Manner, Row
from hotcold.actors.cli.compare.table import explain, table

if TYPE_CHECKING:
    from hotcold.runtime.offline.pictures.comparison import Entry, Group

PAGE = "compare.html"


def write_page(out: Path, rows: Sequence[Row], manner: Manner) -> Path:
    """Write the page, whose path is returned, and its pictures as PNG files.

    Raises:
        ConfigError: the folder cannot be written.
    """
    from hotcold.runtime.offline.pictures.comparison import TEXTS, draw_all
    from hotcold.runtime.offline.pictures.draw import figure_png
    from hotcold.runtime.offline.pictures.page import Picture, document, figure, html_table

    parts = [f"<p>{_how(rows, manner)}</p>", f'<p class="small">{html.escape(_origin())}</p>']
    pictures: list[Picture] = []
    for group_rows in _groups(rows):
        group = _group(group_rows, manner.max_tokens)
        parts.append(f"<h2>{html.escape(group.caption)}</h2>")
        parts.append(f'<div class="wide">{html_table(*table([r.run for r in group_rows]))}</div>')
        said = explain(group_rows) + _remarks(group_rows)
        parts += [f'<p class="small">{html.escape(line)}</p>' for line in said]
        for name, drawn in draw_all(group):
            picture = Picture(f"{_file_name(group)}-{name}", *TEXTS[name], figure_png(drawn))
            pictures.append(picture)
            parts.append(figure(picture))
    files = {f"{picture.name}.png": picture.png for picture in pictures}
    files[PAGE] = document("Placements and schedules compared", "\n".join(parts)).encode()
    output.write_files(out, "the page", files)
    return out / PAGE


def _how(rows: Sequence[Row], manner: Manner) -> str:
    if not any(row.measured.tokens_per_s for row in rows):
        return "Nothing was run: placements judged by the cost model."
    runs = output.count(manner.repeat * manner.each, "run")
    return (
        f"Each case continued the same prompt by {manner.max_tokens} tokens, greedily; "
        f"{runs} of each, in an order drawn from seed "
        f"{manner.seed}, with a warm-up before each turn."
    )


def _origin() -> str:
    """Where the page comes from: the day, the machine, and what was typed."""
    from hotcold.actors.cli.common.commands import version
    from hotcold.actors.cli.common.state import State
    from hotcold.runtime.hardware.this_machine import identity

    machine = identity()
    gpus = "".join(f", {name}" for name in machine["gpus"])
    cores = output.count(machine["cores"], "core")
    here = f"{cores} of {machine['cpu']}, {machine['memory_gib']} GiB{gpus}"
    context = click.get_current_context(silent=True)
    state = None if context is None else context.find_object(State)
    typed = "" if state is None else f": {shlex.join(['hotcold', *state.words])}"
    return f"hotcold {version()}, {time.strftime('%Y-%m-%d')}, {here}{typed}"


def _remarks(rows: Sequence[Row]) -> list[str]:
    found = [(row.ready.case.label, row.run["note"].replace("\n", "; ")) for row in rows]
    return [f"{label}: {note}" for label, note in found if note]


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    groups: dict[tuple[str, Any], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.run["model"], row.run["vram"]), []).append(row)
    return list(groups.values())


def _group(rows: Sequence[Row], max_tokens: int) -> "Group":
    from hotcold.runtime.offline.pictures.comparison import Group

    first = rows[0]
    where = "on the GPU" if first.ready.on_gpu else "without a GPU"
    if not any(row.measured.tokens_per_s for row in rows):
        where = "not run"
    caption = f"{first.run['model']}, {format_budget(first.run['vram'])}, {where}"
    entries = tuple(_entry(row, max_tokens) for row in rows)
    return Group(caption, first.ready.hardware.name, entries, first.ready.on_gpu)


def _entry(row: Row, max_tokens: int) -> "Entry":
    from hotcold.runtime.offline.pictures.comparison import Entry, hot_map
    from hotcold.runtime.tracing.timeline import passes, typical

    measured, plan = row.measured, row.ready.plan
    waits = {
        actor: 1e6 * float(np.median(values)) / max_tokens
        for actor, values in measured.waits_s.items()
        if values
    }
    return Entry(
        label=row.ready.case.label,
        speeds=tuple(measured.tokens_per_s),
        predicted=row.ready.predicted.tokens_per_s,
        load=row.run["gpu_neuron_load"],
        predicted_load=row.ready.load,
        waits_us=waits,
        token=typical(passes(measured.spans)[-(max_tokens - 1) :]),
        hot_LB=hot_map(plan.device_LN, plan.activations_LN),
    )


def _file_name(group: "Group") -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", group.caption.rpartition(",")[0]).strip("-")[:80]
