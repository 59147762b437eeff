"""The page that holds all pictures: one HTML file that needs no network and runs no script.

Images are embedded as data, styles are inline, text from files is escaped.
"""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass

from hotcold.runtime.offline.pictures.curves import Scene
from hotcold.runtime.units import format_bytes

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
figure { margin: 0; } img { width: 100%; height: auto; border: 1px solid #ddd; }
figcaption, .small { color: #555; font-size: .9rem; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; overflow-wrap: normal; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid #ddd;
         font-variant-numeric: tabular-nums; }
th { font-weight: 600; } table.total tr:last-child td { font-weight: 600; }
.wide { overflow-x: auto; }
@media (max-width: 40rem) { table { font-size: .75rem; } th, td { padding: .2rem; } }
"""


@dataclass(frozen=True)
class Picture:
    """One picture of the page."""

    name: str
    title: str
    text: str
    png: bytes


def page(scene: Scene, pictures: Sequence[Picture]) -> str:
    """The whole page of a profile and its predictors."""
    text = html.escape(scene.profile.source or "text not recorded")
    trained = f"<p>Predictors: {html.escape(scene.trained_on)}.</p>" if scene.trained_on else ""
    figures = "\n".join(figure(picture) for picture in pictures)
    return document(
        f"Activations of {scene.model}",
        f"""<p>Counted over {scene.profile.tokens:,} tokens: {text}.</p>
{trained}
{figures}
<h2>Layer by layer</h2>
<div class="wide">{_table(scene)}</div>
<p class="small">Hot for 80 %: the smallest share of the layer's neurons that holds 80 % of its
activations. Dead: neurons that never fired on this text.</p>""",
    )


def document(title: str, body: str) -> str:
    """A page with everything in it."""
    title = html.escape(title)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def figure(picture: Picture) -> str:
    """A picture with its title and text, as HTML."""
    data = base64.b64encode(picture.png).decode("ascii")
    title, text = html.escape(picture.title), html.escape(picture.text)
    return (
        f'<h2 id="{picture.name}">{title}</h2>\n<figure>\n'
        f'<img alt="{title}. {text}" src="data:image/png;base64,{data}">\n'
        f"<figcaption>{text}</figcaption>\n</figure>"
    )


def _table(scene: Scene) -> str:
    profile, predictors = scene.profile, scene.predictors
    hot_L, dead_L = profile.share_for(0.8), (profile.counts_LN == 0).sum(axis=1)
    heads = ["layer", "sparsity", "hot for 80 %", "dead"]
    heads += ["predictor width", "bytes", "density"] if predictors else []
    rows = []
    for layer, sparsity in enumerate(profile.sparsity_L):
        cells = [str(layer), f"{sparsity:.1%}", f"{hot_L[layer]:.1%}", f"{dead_L[layer]:,}"]
        if predictors:
            facts = predictors[layer]
            density = "" if facts.density is None else f"{facts.density:.1%}"
            cells += [str(facts.width), format_bytes(facts.nbytes), density]
        rows.append(cells)
    total = ["all", f"{profile.sparsity_L.mean():.1%}", f"{profile.share_for_model(0.8):.1%}"]
    total.append(f"{int(dead_L.sum()):,}")
    if predictors:
        densities = [facts.density for facts in predictors if facts.density is not None]
        whole = len(densities) == len(predictors)
        total += ["", format_bytes(sum(facts.nbytes for facts in predictors))]
        total.append(f"{sum(densities) / len(densities):.1%}" if whole else "")
    return html_table(heads, [*rows, total], total=True)


def html_table(heads: Sequence[str], rows: Sequence[Sequence[str]], total: bool = False) -> str:
    """Plain texts as a table; total: the last row sums the others up."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in heads)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
        for cells in rows
    )
    kind = ' class="total"' if total else ""
    return f"<table{kind}>\n<tr>{head}</tr>\n{body}\n</table>"
