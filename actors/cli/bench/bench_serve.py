"""`hotcold bench serve`: servers of the OpenAI API, by the number of clients."""

import os

import click

from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import count_option, debug_option, json_option
from hotcold.actors.serve.settings import KEY_VARIABLE

HEADERS = ("clients", "server", "tokens/s", "first token s")


@click.command("serve")
@click.option(
    "--url",
    "urls",
    multiple=True,
    default=("http://127.0.0.1:8000/v1",),
    show_default=True,
    metavar="URL",
    help="A running server; may be repeated: they take turns.",
)
@count_option(
    *("--clients", "Requests at once; may be repeated.  [default: 1 8 32]", 1, 1024),
    into="counts",
)
@count_option("--max-tokens", "New tokens of each.", 1, 1 << 20, 64)
@count_option("--repeat", "Rounds measured.", 1, 1000, 3)
@json_option
@debug_option
def command(urls: tuple[str, ...], counts: tuple[int, ...], max_tokens: int, repeat: int) -> None:
    """Tokens/s and the wait for the first token of servers that run, at some numbers of clients.

    Each client asks for one streamed completion. HOTCOLD_API_KEY is shown to all of them.
    """
    from hotcold.actors.bench.load import Server, measure

    servers = [Server(url, os.environ.get(KEY_VARIABLE) or None) for url in urls]
    rows = measure(
        *(servers, sorted({*counts}) or [1, 8, 32], max_tokens, repeat),
        lambda text: output.note(f"bench serve: {text}"),
    )
    lines = [
        (str(row["clients"]), row["url"], f"{row['tokens_per_s']:.1f}", f"{row['first_s']:.3f}")
        for row in rows
    ]
    click.echo(output.table(HEADERS, lines))
    output.emit_json({"rows": rows, "rounds": repeat})
