"""The page in headless Chromium over a real engine: opt-in, HOTCOLD_TEST_BROWSER=chromium.

Set HOTCOLD_TEST_PICTURES to a folder to keep pictures of what was shown.
"""

import asyncio
import json
import os
import shutil
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.browser import VARIABLE, Browser

from hotcold.actors import Engine

uvicorn = pytest.importorskip("uvicorn", reason="needs hotcold[serve]")
applications = pytest.importorskip("starlette.applications", reason="needs hotcold[serve]")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.ray,
    pytest.mark.usefixtures("one_ray"),
    pytest.mark.skipif(
        shutil.which(os.environ.get(VARIABLE) or "") is None,
        reason=f"{VARIABLE} names no browser; set it to chromium",
    ),
]
PICTURES = os.environ.get("HOTCOLD_TEST_PICTURES")


@pytest.fixture(scope="module")
def engine(one_ray: str) -> Iterator[Engine]:
    with Engine.launch(vram="28MiB", name="page") as made:
        yield made


def app_of(engine: Engine) -> applications.Starlette:
    """The page over a plain /v1: texts are continued, chats are not."""
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    from hotcold.actors.serve.page import add_page

    async def models(_: Request) -> Response:
        return JSONResponse({"data": [{"id": "embedded"}]})

    async def chat(_: Request) -> Response:
        error = {"message": "there is no chat template", "code": "no_chat_template"}
        return JSONResponse({"error": error}, 400)

    async def completions(request: Request) -> Response:
        asked = await request.json()
        if asked["max_tokens"] == 13:
            return JSONResponse({"error": {"message": "13 brings <b>bad</b> luck"}}, 400)
        fields = {name: asked[name] for name in ("max_tokens", "temperature", "seed")}

        async def made() -> AsyncIterator[str]:
            tokens, count = engine.generate(asked["prompt"], ignore_eos=True, **fields), 0
            try:
                while (token := await asyncio.to_thread(next, tokens, None)) is not None:
                    count += 1
                    yield event(choices=[{"text": token.text}])
            finally:
                await asyncio.to_thread(tokens.close)  # type: ignore[attr-defined]
            yield event(choices=[], usage={"completion_tokens": count})
            yield "data: [DONE]\n\n"

        return StreamingResponse(made(), media_type="text/event-stream")

    routes = [Route("/v1/models", models)]
    routes += [Route("/v1/chat/completions", chat, methods=["POST"])]
    routes += [Route("/v1/completions", completions, methods=["POST"])]
    app = applications.Starlette(routes=routes)
    add_page(app, engine)
    return app


def event(**data: Any) -> str:
    return f"data: {json.dumps(data)}\n\n"


@pytest.fixture(scope="module")
def address(engine: Engine) -> Iterator[str]:
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app_of(engine), log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join()
    listening.close()


@pytest.fixture
def browser(address: str, tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path) as made:
        made.size(1280, 860)
        made.open(address)
        made.wait("document.getElementById('status').dataset.state === 'on'")
        yield made
        faults = [one for one in made.faults() if "/v1/" not in one]  # refusals are no faults
        assert faults == []
        assert all(one.startswith((address, "about:")) for one in made.addresses())


def keep(browser: Browser, name: str) -> None:
    if PICTURES:
        Path(PICTURES, f"{name}.png").write_bytes(browser.picture())


def choose(browser: Browser, **fields: Any) -> None:
    for name, value in fields.items():
        browser.js(f"document.getElementById('{name}').value = {json.dumps(value)}")


def test_a_chat_by_keyboard_alone(browser: Browser) -> None:
    choose(browser, max_tokens=300, temperature=0.7, seed=4)
    focused = []
    for _ in range(8):
        browser.key("Tab")
        focused.append(browser.js("document.activeElement.id || document.activeElement.className"))
        if focused[-1] == "prompt":
            break
    assert focused[:2] == ["skip", "open-settings"] and focused[-1] == "prompt"
    browser.write("Once upon a time, a small fox")
    browser.key("Enter", "\r")
    browser.wait("document.querySelector('.busy .said')?.textContent.length > 300")
    assert browser.js("document.getElementById('send').hidden")
    keep(browser, "page")
    browser.size(1280, 860, dark=True)
    keep(browser, "page-dark")
    browser.wait("document.querySelector('.meta')")
    assert "300 tokens" in browser.js("document.querySelector('.meta').textContent")
    browser.wait("Number(document.getElementById('finished').textContent) > 0")
    assert browser.js("document.activeElement.id") == "prompt"


def test_the_panel_shows_what_the_engine_does(browser: Browser) -> None:
    choose(browser, max_tokens=200, temperature=0.7, seed=1)
    browser.js("document.getElementById('prompt').focus()")
    browser.write("The sea was")
    browser.key("Enter", "\r")
    browser.wait("Number(document.getElementById('tokens').textContent) > 0")
    browser.wait("document.querySelectorAll('#actors tr').length === 3")
    browser.wait("/[0-9]/.test(document.getElementById('hot-ids').textContent)")
    browser.wait("document.querySelectorAll('#layers tr').length === 8")
    width = "parseFloat(document.querySelector('#load .hot').style.width)"
    browser.wait(f"0 < {width} && {width} < 100")
    browser.js("document.getElementById('layer').focus()")
    for _ in range(3):
        browser.key("ArrowRight")
    browser.wait("document.getElementById('layer-number').textContent === '3'")
    browser.wait("/[0-9]/.test(document.getElementById('cold-ids').textContent)")
    browser.js("document.getElementById('stop').click()")
    browser.wait("document.querySelector('.meta')?.textContent.includes('stopped')")
    browser.wait("document.getElementById('running').textContent === '0'")


def test_on_a_telephone(browser: Browser) -> None:
    browser.size(360, 740, dark=True, calm=True)
    assert browser.js("document.documentElement.scrollWidth") == 360
    assert browser.js("getComputedStyle(document.querySelector('.live')).display") == "none"
    keep(browser, "phone-chat")
    browser.js("document.getElementById('tab-live').click()")
    browser.wait("document.getElementById('map').width > 100")
    assert browser.js("document.documentElement.scrollWidth") == 360
    keep(browser, "phone-engine")


def test_an_error_is_shown_as_the_server_words_it(browser: Browser) -> None:
    choose(browser, max_tokens=13)
    browser.js("document.getElementById('prompt').focus()")
    browser.write("x")
    browser.key("Enter", "\r")
    browser.wait("document.querySelector('.meta.error')")
    assert "13 brings <b>bad</b> luck" in browser.js("document.querySelector('.meta').textContent")
    browser.js("document.getElementById('open-settings').click()")
    assert browser.js("document.getElementById('settings').open")
    browser.key("Escape")
    browser.wait("!document.getElementById('settings').open")
