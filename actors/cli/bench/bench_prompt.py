"""`hotcold bench prompt`: both forms of a prompt on a GPU, and from which length dense is faster.

The measurement is runtime/bench/prompt.py; this is its table.
"""

from dataclasses import replace
from typing import Any

import click

from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import count_option, engine_options, json_option, option
from hotcold.runtime.options.config import ENGINE, EngineConfig


@click.command("prompt")
@count_option(
    *("--tokens", "Length of a prompt; may be repeated.  [default: 32 64 128 256 500]", 1, 1 << 20),
    into="lengths",
)
@option(ENGINE["kv_dtype"], default="float16")
@json_option
@engine_options("bench prompt", own=("kv_dtype",))
def command(options: EngineConfig, lengths: tuple[int, ...], kv_dtype: str) -> None:
    """Prompt tokens/s by length on a GPU, sparse and dense.

    Sparse goes in blocks; dense streams the cold weights to the GPU. The switch point is the length
    from which a dense pass takes less time than the sparse blocks it replaces. An engine measures
    it once, on its first prompt that is long enough.
    """
    from hotcold.native.errors import BackendError
    from hotcold.runtime.bench.prompt import measure
    from hotcold.runtime.engine.deployment import deploy, solve
    from hotcold.runtime.engine.executors.session import LocalSession
    from hotcold.runtime.engine.prepare import prepare_model

    prepared = prepare_model(replace(options, kv_dtype=kv_dtype))
    if prepared.gpu is None or not prepared.gpu.prompt_rows:
        raise BackendError(
            "there is no dense prompt form to measure: it needs a GPU, and with --prompt-form auto "
            "a context above 64 and memory to spare; see hotcold doctor"
        )
    with LocalSession(deploy(prepared, solve(prepared))) as local:
        result = measure(local, lengths or (32, 64, 128, 256, 500))
    click.echo(output.table(("prompt", "sparse tokens/s", "dense tokens/s"), rows_of(result)))
    click.echo(sentence(result))
    output.emit_json(result)


def rows_of(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """A table row for each length."""
    sparse, dense = result["sparse"], result["dense"]
    return [(length, f"{sparse[length]:.1f}", f"{dense[length]:.1f}") for length in sparse]


def sentence(result: dict[str, Any]) -> str:
    """The switch point and what it follows from."""
    switch = result["switch_tokens"]
    text = "prompts stay sparse" if switch is None else f"dense from {switch} tokens on"
    return (
        f"{text}: {result['sparse_block_ms']:.1f} ms a sparse block of {result['block']}, "
        f"{result['dense_pass_ms']:.1f} ms a dense pass of up to {result['rows']}, "
        f"{result['streamed_gb']:.2f} GB streamed at {result['streamed_gb_per_s']:.1f} GB/s"
    )
