"""The page's files: nothing foreign, nothing inline, everything labelled, colours one can read."""

import re
from html.parser import HTMLParser
from importlib.resources import files
from types import SimpleNamespace

import pytest
from support.asgi import get

applications = pytest.importorskip("starlette.applications", reason="needs hotcold[serve]")
FOLDER = files("hotcold.actors.serve.page")
TEXTS = {
    one.name: one.read_text()
    for one in FOLDER.iterdir()
    if one.name.endswith(("html", "css", "js"))
}
LABELLED = ("input", "textarea", "select")


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(TEXTS["index.html"])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


ELEMENTS = Elements().found
IDS = [own["id"] for _, own in ELEMENTS if "id" in own]


@pytest.fixture
def app() -> applications.Starlette:
    from hotcold.actors.serve.page import add_page

    made = applications.Starlette()
    add_page(made, SimpleNamespace(name="nobody"))
    return made


@pytest.mark.parametrize("name", TEXTS)
def test_no_foreign_address(name: str) -> None:
    found = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", TEXTS[name]))
    assert not found
    assert "@import" not in TEXTS[name] and "eval(" not in TEXTS[name]
    assert "innerHTML" not in TEXTS[name], "what a model says is text"


def test_nothing_inline() -> None:
    for tag, own in ELEMENTS:
        assert "style" not in own and tag != "style"
        assert not any(name.startswith("on") for name in own)
        assert tag != "script" or own.get("src", "").startswith("/page/")  # type: ignore[union-attr]


def test_everything_has_a_name() -> None:
    labels = [own.get("for") for tag, own in ELEMENTS if tag == "label"]
    for tag, own in ELEMENTS:
        if tag in LABELLED:
            assert own["id"] in labels, own
        for name in ("aria-labelledby", "aria-describedby"):
            assert set((own.get(name) or "").split()) <= set(IDS)
    assert len(IDS) == len(set(IDS))
    assert ("html", {"lang": "en"}) in ELEMENTS


@pytest.mark.parametrize("name", [name for name in TEXTS if name.endswith("js")])
def test_scripts_use_elements_that_there_are(name: str) -> None:
    used = re.findall(r'\b(?:at|set|value|number)\("([\w-]+)"', TEXTS[name])
    assert set(used) <= set(IDS)
    assert set(re.findall(r'from "/page/([\w.]+)"', TEXTS[name])) <= set(TEXTS)


def light(colour: str) -> float:
    """Relative luminance (WCAG 2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    r, g, b = (x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1, 2], ids=["light", "dark by system", "dark by choice"])
def test_colours_can_be_told_apart(theme: int) -> None:
    blocks = re.findall(r":root[^{]*\{([^}]*--back[^}]*)\}", TEXTS["page.css"])
    ink = dict(re.findall(r"--([\w-]+): (#\w{6})", blocks[theme]))
    for text in ("text", "soft", "hot", "cold", "bad"):
        assert contrast(ink[text], ink["card"]) >= 4.5, text
    for text in ("text", "soft", "bad"):
        assert contrast(ink[text], ink["back"]) >= 4.5, text
    assert contrast(ink["text"], ink["mine"]) >= 4.5
    for part in ("hot", "cold", "work"):  # of drawings
        assert contrast(ink[part], ink["mine"]) >= 3, part
    assert contrast(ink["hot"], ink["hot-dim"]) >= 3 and contrast(ink["cold"], ink["cold-dim"]) >= 3
    assert contrast(ink["focus"], ink["card"]) >= 3


def test_both_dark_themes_are_one() -> None:
    blocks = re.findall(r":root[^{]*\{([^}]*--back[^}]*)\}", TEXTS["page.css"])
    assert blocks[1].split() == blocks[2].split()


@pytest.mark.parametrize("target", ["/", "/page/page.css", "/page/live.js", "/page/icon.svg"])
def test_files_come_with_their_policy(app: applications.Starlette, target: str) -> None:
    found = get(app, target)
    assert found.status == 200 and found.body
    policy = found.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert found.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in found.headers


@pytest.mark.parametrize(
    "target", ["/page/", "/page/routes.py", "/page/__init__.py", "/page/index.html", "/page/%2e%2e"]
)
def test_nothing_else_is_sent(app: applications.Starlette, target: str) -> None:
    assert get(app, target).status == 404
