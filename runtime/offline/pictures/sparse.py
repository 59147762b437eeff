"""The picture of `hotcold sparsity`: what fires, what batches need, what thresholds may skip."""

from typing import TYPE_CHECKING, Any

import numpy as np

from hotcold.runtime.offline.pictures.draw import BLUE, GREY, VERMILLION, in_percent, titled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHADES = ("#cfe3f1", "#6aaed6", BLUE)  # of rising errors


def draw_sparse(result: dict[str, Any]) -> "Figure":
    """Of the command's JSON."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    layers = result["layers"]
    at = np.arange(len(layers))
    figure = Figure(figsize=(10.4, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    caption = f"{result['model']}, {result['activation']}, {result['tokens']} tokens"
    titled(left, "Neurons that a token needs", caption)
    low, high = np.array([layer["range90"] for layer in layers]).T
    mean = np.array([layer["fires"] for layer in layers])
    left.fill_between(at, low, high, color=VERMILLION, alpha=0.2, lw=0, label="90 % of the tokens")
    left.plot(at, mean, "o-", ms=3, color=VERMILLION, label="fire, mean")
    dense = any(layer["dense"] for layer in layers)
    for group, style in zip(layers[0]["union"], ("-", "--", ":"), strict=False):
        if group == "1" and not dense:
            continue  # the mean
        needed = [layer["union"][group] for layer in layers]
        what = "a token" if group == "1" else f"a batch of {group}"
        label = f"above 5 % threshold in {what}" if dense else f"fire in {what}"
        left.plot(at, needed, style, color=GREY, label=label)
    left.plot(
        at, [layer["hot80"] for layer in layers], "s", ms=4, color=BLUE, label="make 80 % of it all"
    )
    titled(right, "Neurons a threshold may skip", "by the error it makes in the layer's output")
    errors = list(layers[0]["skipped"])
    for error, colour in reversed(list(zip(errors, SHADES, strict=True))):
        share = np.array([layer["skipped"][error] for layer in layers])
        right.bar(at, share, 0.8, color=colour, label=f"error up to {100 * float(error):g} %")
    right.plot(at, 1 - mean, "_", ms=9, mew=1.8, color=VERMILLION, label="exactly zero")
    for axes in (left, right):
        axes.set_xlabel("layer")
        axes.set_ylabel("share of the layer's neurons")
        axes.set_ylim(0, 1.02)
        in_percent(axes.yaxis)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside lower left" if axes is left else "outside lower right",
            ncols=2,
            fontsize=8.5,
            frameon=False,
        )
    return figure
