"""What pictures show, by hand; and the pictures and their page, where matplotlib is installed."""

import base64
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from hotcold.actors.cli.offline.pictures import draw_all
from hotcold.native.errors import ConfigError
from hotcold.runtime.offline.pictures import draw
from hotcold.runtime.offline.pictures.curves import (
    Curve,
    PredictorFacts,
    Scene,
    activation_share,
    model_curve,
    predictor_facts,
)
from hotcold.runtime.offline.pictures.page import page
from hotcold.runtime.predictors.predictor import PredictorLayer
from hotcold.runtime.predictors.predictor_file import OperatingPoint, PredictorFile
from hotcold.runtime.profiles.profile import ActivationProfile

PNG = b"\x89PNG\r\n\x1a\n"
COUNTS = np.array([[10, 60, 0, 30], [0, 0, 0, 0], [20, 20, 20, 20]], np.int64)
TOKENS = np.array([[50, 0, 50, 0, 0], [100, 0, 0, 0, 0], [80, 0, 0, 0, 20]], np.int64)
PROFILE = ActivationProfile(COUNTS, 100, "abc", "a <book> & more", None, TOKENS)
CURVE = Curve(np.array([0.1, 0.2, 0.4]), np.array([0.8, 0.9, 0.99]))
SCENE = Scene(
    "tiny & small",
    PROFILE,
    tuple(PredictorFacts(8 * (i + 1), 4000 * (i + 1), CURVE, 0.95, 0.3) for i in range(3)),
    "run/<predictors>",
)


def test_cumulative_shares_by_hand() -> None:
    curve = activation_share(COUNTS[0])
    assert curve is not None
    np.testing.assert_allclose(curve.x_P, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(curve.y_P, [0, 0.6, 0.9, 1, 1])
    assert activation_share(COUNTS[1]) is None
    whole = activation_share(COUNTS)
    assert whole is not None and whole.y_P[1] == 60 / 180
    many = activation_share(np.random.default_rng(0).integers(0, 9, 100_000))
    assert many is not None and len(many.x_P) == 400
    assert (many.x_P[0], many.y_P[0], many.x_P[-1], many.y_P[-1]) == (0, 0, 1, 1)
    assert (np.diff(many.y_P) >= 0).all()


def layer(width: int) -> PredictorLayer:
    parts = (np.ones((width, 6), np.float16), np.ones((4, width), np.float16))
    return PredictorLayer(*parts, None, relu=True, threshold=0.0)


def test_facts_of_predictors() -> None:
    points = tuple(OperatingPoint(r, 0.0, d) for r, d in ((0.9, 0.2), (0.95, 0.4)))
    bare = PredictorFile((layer(2), layer(3)), (0.25, None))
    facts = predictor_facts(bare)
    assert [(f.width, f.nbytes, f.density, f.recall) for f in facts] == [
        (2, 2 * 10 * 2, 0.25, None),
        (3, 3 * 10 * 2, None, None),
    ]
    assert model_curve(facts) is None
    known = replace(bare, calibration_L=(points, points[:2]))
    facts = predictor_facts(known, [(0.96, 0.3), (0.97, 0.31)])
    assert (facts[1].recall, facts[1].density) == (0.97, 0.31)
    curve = model_curve(facts)
    assert curve is not None and curve.y_P.tolist() == [0.9, 0.95]
    np.testing.assert_allclose(curve.x_P, [0.2, 0.4])
    other = (OperatingPoint(0.8, 0.0, 0.1), points[1])
    assert model_curve(predictor_facts(replace(bare, calibration_L=(points, other)))) is None


class Page(HTMLParser):
    """Collects what a page consists of, and that its tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.seen: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else() -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    pictures = draw_all(SCENE)
    assert [p.name for p in pictures] == [
        "activation_share",
        "sparsity",
        "predictor_size",
        "recall_density",
    ]
    text = page(SCENE, pictures)
    found = Page(text)
    assert found.open == [] and found.seen.count("img") == 4
    assert not {"script", "link", "iframe"} & set(found.seen) and "://" not in text
    assert "@import" not in text and "url(" not in text
    images = [base64.b64decode(link.removeprefix("data:image/png;base64,")) for link in found.links]
    assert images == [picture.png for picture in pictures]
    assert all(image.startswith(PNG) for image in images)
    assert "a &lt;book&gt; &amp; more" in text and "<book>" not in text
    assert "run/&lt;predictors&gt;" in text and "tiny &amp; small" in text
    rows = re.findall(r"<tr>(.*?)</tr>", text)
    assert len(rows) == 5  # heads, three layers, all
    assert re.findall(r"<td>(.*?)</td>", rows[2])[:4] == ["1", "100.0%", "0.0%", "4"]


def test_pictures_say_what_they_are_of() -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    drawings = {
        draw.draw_activation_share: ("neurons, hottest first (% of all)", "tiny & small; a <book>"),
        draw.draw_sparsity: ("layer", "100 tokens"),
        draw.draw_predictor_size: ("sparsity of the layer", "tiny & small"),
        draw.draw_recall_density: ("neurons proposed (% of the layer)", "run/<predictors>"),
    }
    for drawing, (label, said) in drawings.items():
        figure = drawing(SCENE)
        axes = figure.axes[0]
        assert axes.get_xlabel().startswith(label) and axes.get_ylabel()
        assert any(said in text.get_text() for text in axes.texts)
        assert axes.get_title(loc="left")
        assert draw.png(drawing, SCENE) == draw.png(drawing, SCENE), "not the same bytes again"


def test_only_what_there_is_is_drawn() -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    silent = Scene("m", ActivationProfile(np.zeros((2, 4), np.int64), 5))
    pictures = draw_all(silent)
    assert [p.name for p in pictures] == ["activation_share", "sparsity"]
    assert "text not recorded" in page(silent, pictures)
    uncalibrated = replace(SCENE, predictors=tuple(
        replace(facts, curve=None) for facts in SCENE.predictors
    ))  # fmt: skip
    assert [p.name for p in draw_all(uncalibrated)][2:] == ["predictor_size"]
    layers = 80  # too many to number, one of them silent
    counts = np.tile(np.arange(9, dtype=np.int64), (layers, 1))
    counts[3] = 0
    facts = tuple(PredictorFacts(8, 3 << 20, CURVE) for _ in range(layers))
    assert len(draw_all(Scene("deep", ActivationProfile(counts, 10), facts, "x"))) == 4


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'hotcold\[pictures\]'"):
        draw.check_matplotlib()
