"""The options as a page: python -m hotcold.runtime.options.page > examples/OPTIONS.md."""

from collections.abc import Iterable

from hotcold.native.options.table import Option
from hotcold.runtime.options.config import COMMANDS, ENGINE, SAMPLING

INTRO = """# Options

Made from the table in runtime/options/config.py; a test keeps it so. The keyword is that of
`Engine.launch`, and the field of `EngineConfig`. A command takes the options of every section that
names it, but for those it is excepted from.
"""


def page() -> str:
    """The tables as Markdown, by the commands that take them."""
    parts, levels = [INTRO], list(COMMANDS)
    for place, level in enumerate(levels):
        takers = [name for later in levels[place:] for name in COMMANDS[later]]
        own = (row for row in ENGINE.values() if row.level == level)
        parts.append(_section(", ".join(takers), own, True))
    python_only = (row for row in ENGINE.values() if not row.level)
    parts.append(_section("Engine.launch only", python_only, False))
    parts.append(_section("generate, and Engine.generate", SAMPLING.values(), True))
    return "\n".join(parts)


def _section(title: str, rows: Iterable[Option], typed: bool) -> str:
    lines = [f"## {title}", "", "| option | keyword | values | default | what it is for |"]
    lines.append("|---|---|---|---|---|")
    for row in rows:
        values = row.limits or row.metavar or ("yes or no" if row.type is bool else "TEXT")
        cells = (f"`--{row.dashed}`" if typed else "", f"`{row.name}`", values, row.default_text)
        text = f"{row.help} Not for: {', '.join(row.not_for)}." if row.not_for else row.help
        lines.append("| " + " | ".join((*cells, text)) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(page(), end="")
