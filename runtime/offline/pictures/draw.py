"""The pictures themselves, drawn with matplotlib (the extra `pictures`).

Figures 5 and 9 of the paper and two it does not have. Layers are coloured by cividis, which people
with any colour vision tell apart and which prints; single things take the colours of Okabe and Ito.
Nothing is shown on a screen, and no global state of matplotlib is changed.
"""

import io
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from hotcold.native.errors import ConfigError
from hotcold.runtime.offline.pictures.curves import Scene, activation_share, model_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

VERMILLION, BLUE, GREY = "#d55e00", "#0072b2", "#6b6b6b"
_SIZE_IN, _DPI = (7.2, 4.6), 150
_FEW_LAYERS = 12  # up to so many each point can bear its layer's number


def check_matplotlib() -> None:
    """Refuse to draw without matplotlib.

    Raises:
        ConfigError: naming the extra that brings it.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "pictures need matplotlib, which is not installed; pip install 'hotcold[pictures]'"
        ) from error


def png(draw: Callable[[Scene], "Figure"], scene: Scene) -> bytes:
    """One picture as a PNG file; the same scene and matplotlib give the same bytes."""
    return figure_png(draw(scene))


def figure_png(figure: "Figure") -> bytes:
    """A figure as a PNG file."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=_DPI, metadata={"Software": None})
    return out.getvalue()


def empty_axes(
    title: str, caption: str, size_in: tuple[float, float] = _SIZE_IN
) -> tuple["Figure", "Axes"]:
    """An empty picture with its titles."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size_in, layout="constrained")
    axes = figure.add_subplot()
    titled(axes, title, caption)
    return figure, axes


def titled(axes: "Axes", title: str, caption: str) -> None:
    """Give axes a title, a caption below it and a quiet frame."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#e3e3e3", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=22)
    caption = textwrap.shorten(caption, 105, placeholder=" ...")
    text = axes.annotate(
        caption, (0, 1), (0, 8), "axes fraction", "offset points", fontsize=8.5, color=GREY
    )
    text.set_in_layout(False)  # a long one would push the axes together


def _layer_colours(figure: "Figure", axes: "Axes", layers: int) -> list[tuple[float, ...]]:
    """A colour for each layer, and the bar that explains them."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.ticker import MaxNLocator

    # The palest end of the map is left out: it does not show on white.
    shades = colormaps["cividis"].resampled(256)(np.linspace(0.0, 0.88, max(2, layers)))
    mapping = ScalarMappable(Normalize(-0.5, max(2, layers) - 0.5), ListedColormap(shades))
    bar = figure.colorbar(mapping, ax=axes, pad=0.02)
    bar.set_label("layer")
    bar.locator = MaxNLocator(integer=True, nbins=9)
    bar.update_ticks()
    return [tuple(float(part) for part in shade) for shade in shades[:layers]]


def in_percent(axis: "Axis") -> None:
    """Label an axis of shares."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.6g} %"))


def _percent_axes(axes: "Axes", x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    in_percent(axes.xaxis)
    in_percent(axes.yaxis)


def draw_activation_share(scene: Scene) -> "Figure":
    """Figure 5: cumulative share of activations by share of neurons, per layer and model."""
    figure, axes = empty_axes("Share of activations by share of neurons", scene.caption)
    counts_LN = scene.profile.counts_LN
    colours = _layer_colours(figure, axes, len(counts_LN))
    silent = []
    for layer, (counts_N, colour) in enumerate(zip(counts_LN, colours, strict=True)):
        curve = activation_share(counts_N)
        if curve is None:
            silent.append(str(layer))
        else:
            axes.plot(curve.x_P, curve.y_P, color=colour, linewidth=1.0, alpha=0.85)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="all equally hot")
    whole = activation_share(counts_LN)
    if whole is not None:
        axes.plot(whole.x_P, whole.y_P, color=VERMILLION, linewidth=2.2, label="whole model")
        share = scene.profile.share_for_model(0.8)
        axes.plot([share], [0.8], "o", color=VERMILLION, markersize=6)
        axes.annotate(
            f"{100 * share:.0f} % of the neurons\nhold 80 % of the activations",
            (share, 0.8),
            xytext=(0.64, 0.36),
            textcoords="axes fraction",
            fontsize=9,
            arrowprops={"arrowstyle": "-", "color": GREY, "shrinkB": 6},
        )
    _percent_axes(axes, "neurons, hottest first (% of all)", "activations they hold (% of all)")
    axes.set(xlim=(0, 1), ylim=(0, 1.01))
    _legend(axes, silent)
    return figure


def _legend(axes: "Axes", silent: list[str]) -> None:
    """The legend, with the layers that have no line of their own."""
    if silent:
        names = textwrap.shorten(", ".join(silent), 30, placeholder=" ...")
        axes.plot([], [], " ", label=f"no neuron fires in layer {names}")
    axes.legend(loc="lower right", fontsize=9, framealpha=0.9, edgecolor="#cccccc")


def draw_sparsity(scene: Scene) -> "Figure":
    """Sparsity of each layer, and how much it varies from token to token."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = empty_axes("Sparsity of each layer", scene.caption)
    profile = scene.profile
    sparsity_L, layers = profile.sparsity_L, np.arange(len(profile.counts_LN))
    low_L, high_L = profile.density_quantile(0.05), profile.density_quantile(0.95)
    if low_L is not None and high_L is not None:
        axes.vlines(
            layers,
            1 - high_L,
            1 - low_L,
            color=BLUE,
            alpha=0.35,
            linewidth=5,
            label="90 % of tokens",
        )
    axes.plot(layers, sparsity_L, "o", color=BLUE, markersize=6, label="mean over tokens", zorder=3)
    mean = float(sparsity_L.mean())
    axes.axhline(
        mean, color=VERMILLION, linewidth=1.6, zorder=1.5, label=f"whole model, {100 * mean:.1f} %"
    )
    axes.set_xlabel("layer")
    axes.set_ylabel("neurons silent for a token (% of the layer)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    in_percent(axes.yaxis)
    axes.set_xlim(-0.6, len(layers) - 0.4)
    axes.set_ylim(top=min(1.005, axes.get_ylim()[1]))
    figure.legend(loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure


def draw_predictor_size(scene: Scene) -> "Figure":
    """Figure 9: size of each layer's predictor against the layer's sparsity."""
    figure, axes = empty_axes(
        "Size of each layer's predictor by the layer's sparsity", scene.caption
    )
    sparsity_L = scene.profile.sparsity_L
    bytes_L = np.array([facts.nbytes for facts in scene.predictors])
    unit, scale = ("MiB", 2**20) if bytes_L.max() >= 2**21 else ("KiB", 2**10)
    colours = _layer_colours(figure, axes, len(bytes_L))
    size_L = bytes_L / scale
    axes.scatter(sparsity_L, size_L, c=colours, s=52, edgecolors="black", linewidths=0.5, zorder=3)
    if len(size_L) <= _FEW_LAYERS:
        for layer, place in enumerate(zip(sparsity_L, size_L, strict=True)):
            axes.annotate(
                str(layer), place, (0, 7), textcoords="offset points", ha="center", fontsize=9
            )
    axes.set_xlabel("sparsity of the layer (% of neurons silent for a token)")
    axes.set_ylabel(f"matrices of its predictor ({unit})")
    axes.margins(x=0.08)
    axes.set_ylim(0, 1.15 * float(size_L.max()))
    in_percent(axes.xaxis)
    return figure


def draw_recall_density(scene: Scene) -> "Figure":
    """Recall of each predictor by the share of neurons it proposes for it."""
    figure, axes = empty_axes(
        "Recall by share of neurons proposed", f"{scene.model}; predictors: {scene.trained_on}"
    )
    colours = _layer_colours(figure, axes, len(scene.predictors))
    for facts, colour in zip(scene.predictors, colours, strict=True):
        if facts.curve is not None:
            axes.plot(facts.curve.x_P, facts.curve.y_P, color=colour, linewidth=1.1, alpha=0.9)
        if facts.recall is not None and facts.density is not None:
            axes.plot([facts.density], [facts.recall], "D", color=colour, markersize=5, mec="black")
    whole = model_curve(scene.predictors)
    if whole is not None:
        axes.plot(
            whole.x_P, whole.y_P, "o-", color=VERMILLION, linewidth=2.2, markersize=4,
            label="whole model, every layer at this recall",
        )  # fmt: skip
    if any(facts.recall is not None for facts in scene.predictors):
        axes.plot([], [], "D", color="white", mec="black", label="in use, on text set apart")
    _percent_axes(axes, "neurons proposed (% of the layer)", "fired neurons among them (recall, %)")
    axes.set_xlim(left=0)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return figure
