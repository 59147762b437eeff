"""The routes: / and /page/NAME are files, /live is a stream of server-sent events.

Whoever mounts them decides who may read /live (the page sends the key that a person gave it).
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from hotcold.actors.serve.page.live import Hub
from hotcold.native.errors import HotcoldError

FOLDER = Path(__file__).parent
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
EVERY_S, QUIET_S, LONGEST_S = 0.2, 10.0, 600.0  # the page begins another stream after an end
MAX_STREAMS = 16


@cache
def files() -> dict[str, bytes]:
    """The page's files by name."""
    return {at.name: at.read_bytes() for at in FOLDER.iterdir() if at.suffix in KINDS}


def add_page(app: Starlette, engine: Any) -> None:
    """Mount the page on an app that serves `engine` under /v1.

    `engine` is an `Engine`, or what stands for several: `name` is then what their names begin with.
    This process is in their Ray cluster.
    """
    hub = Hub(getattr(engine, "name", None))

    async def page(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        found = files().get(name)
        if found is None or ("name" in request.path_params and name == "index.html"):
            return JSONResponse({"error": {"message": "no such page"}}, 404, HEADERS)
        return Response(found, headers=HEADERS, media_type=KINDS[Path(name).suffix])

    async def live(request: Request) -> Response:
        if hub.clients >= MAX_STREAMS:
            error = {"error": {"message": f"{MAX_STREAMS} pages are open, which is the limit"}}
            return JSONResponse(error, 503, {**HEADERS, "Retry-After": "10"})
        shown = request.query_params.get("layer", "0")
        layer = int(shown) if shown.isascii() and shown.isdigit() and len(shown) < 6 else 0
        headers = {**HEADERS, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(
            _events(hub, layer, app), headers=headers, media_type="text/event-stream"
        )

    app.router.routes.extend([Route("/", page), Route("/page/{name}", page), Route("/live", live)])


async def _events(hub: Hub, layer: int, app: Starlette) -> AsyncIterator[str]:
    """What is new, at most every EVERY_S; a comment where nothing is for long."""
    begun = last_s = time.monotonic()
    seen = -1
    with hub.client():
        while time.monotonic() - begun < LONGEST_S and not _is_ending(app):
            number = hub.number
            if number != seen:
                seen, last_s = number, time.monotonic()
                try:
                    data = await asyncio.to_thread(hub.seen, layer)
                except HotcoldError as error:
                    data = {"error": str(error)}
                yield f"data: {json.dumps(data, separators=(',', ':'), allow_nan=False)}\n\n"
            elif time.monotonic() - last_s > QUIET_S:
                last_s = time.monotonic()
                yield ": quiet\n\n"
            await asyncio.sleep(EVERY_S)


def _is_ending(app: Starlette) -> bool:
    """Whether the server takes no more requests: its end waits for open streams."""
    return bool(getattr(getattr(app.state, "service", None), "draining", False))
