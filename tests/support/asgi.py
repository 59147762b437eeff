"""Calling an ASGI app without a server: one GET, and what comes of it."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

App = Callable[..., Any]


class Response:
    """Status, headers by lower-case name, and the body so far."""

    def __init__(self) -> None:
        self.status, self.headers, self.body = 0, dict[str, str](), b""

    @property
    def events(self) -> list[Any]:
        """The whole server-sent events of the body."""
        parts = self.body.decode().split("\n\n")[:-1]
        return [json.loads(part.removeprefix("data: ")) for part in parts if part[:1] != ":"]


def get(
    app: App,
    target: str,
    until: Callable[[Response], bool] = lambda _: False,
    timeout_s: float = 30.0,
) -> Response:
    """The response; the client leaves as soon as `until` holds, or the time is over."""
    found = Response()
    path, _, query = target.partition("?")
    scope = {"type": "http", "method": "GET", "path": path, "query_string": query.encode()}
    scope |= {"headers": [], "http_version": "1.1", "scheme": "http", "root_path": ""}
    scope |= {"server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1), "raw_path": path.encode()}

    async def call() -> None:
        left = asyncio.Event()
        given: list[dict[str, Any]] = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> dict[str, Any]:
            if given:
                return given.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                found.status = message["status"]
                headers = message["headers"]
                found.headers = {name.decode().lower(): value.decode() for name, value in headers}
            found.body += message.get("body", b"")
            if until(found):
                left.set()

        task = asyncio.ensure_future(app(scope, receive, send))
        await asyncio.wait([task], timeout=timeout_s)
        left.set()
        await asyncio.wait_for(task, 10)

    asyncio.run(call())
    return found
