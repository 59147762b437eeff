"""One token as a picture: what each actor computes and when it waits, on one axis of time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hotcold.runtime.offline.pictures.draw import empty_axes
from hotcold.runtime.tracing.timeline import Pass, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The colours of Okabe and Ito; what computes neurons is warm, hot warmer than cold.
COLOURS = {
    "embed": "#999999",
    "attention": "#0072b2",
    "predict": "#009e73",
    "hot": "#d55e00",
    "cold": "#56b4e9",
    "merge": "#cc79a7",
    "head": "#444444",
}
WAIT = "#e6e6e6"
LANE = 0.62  # of a row's height


def draw_token(token: Pass, caption: str) -> "Figure":
    """The timeline of one pass."""
    figure, axes = empty_axes(f"One token, {token.total_ns / 1e3:,.0f} us", caption, (10.0, 3.4))
    draw_lanes(axes, token)
    axes.set_xlabel("time (us)")
    legend(figure, [token])
    return figure


def draw_lanes(axes: "Axes", token: Pass) -> None:
    """A row an actor: bars where it computes, coloured by operation, pale where it waits."""
    actors = list(token.spans)
    for row, actor in enumerate(actors):
        at = (len(actors) - 1 - row - LANE / 2, LANE)
        own = token.spans[actor]
        waits = [
            ((span.begin_ns - token.begin_ns) / 1e3, span.wait_ns / 1e3)
            for span in own
            if span.wait_ns
        ]
        axes.broken_barh(waits, at, color=WAIT, linewidth=0)
        for op, colour in COLOURS.items():
            bars = [
                ((span.ready_ns - token.begin_ns) / 1e3, span.busy_ns / 1e3)
                for span in own
                if span.op == op
            ]
            axes.broken_barh(bars, at, color=colour, linewidth=0)
    axes.set_yticks(range(len(actors)), [label(actor) for actor in reversed(actors)])
    axes.set_ylim(-0.6, len(actors) - 0.4)
    axes.set_xlim(0, token.total_ns / 1e3)
    axes.grid(False, axis="y")


def legend(figure: "Figure", tokens: Sequence[Pass]) -> None:
    """The operations there are in these tokens, below a picture."""
    from matplotlib.patches import Patch

    there = {span.op for token in tokens for own in token.spans.values() for span in own}
    patches = [Patch(color=colour, label=op) for op, colour in COLOURS.items() if op in there]
    patches.append(Patch(color=WAIT, label="waits"))
    figure.legend(
        handles=patches,
        loc="outside lower center",
        ncols=len(patches),
        fontsize=9,
        frameon=False,
    )
