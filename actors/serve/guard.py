"""What stands before the API: who may call it, and how large and of what kind a request may be.

Plain ASGI, so that nothing comes between a handler and the client's disconnection.
"""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from hotcold.actors.serve.errors import ApiError
from hotcold.actors.serve.settings import ServeConfig

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/", "/health", "/ready")  # without a key
OPEN_BELOW = ("/page/",)
BODY_S = 30.0  # a body must have come by then
SAFE = {b"x-content-type-options": b"nosniff", b"cache-control": b"no-store"}
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")


class Guard:
    """Middleware; `key` None: everybody who reaches the server may call it."""

    def __init__(self, app: App, settings: ServeConfig, key: str | None) -> None:
        self._app, self._settings = app, settings
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_safe(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                named = {name.lower() for name, _ in message["headers"]}
                more = [(name, value) for name, value in SAFE.items() if name not in named]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        headers = {name: value for name, value in scope["headers"]}
        try:
            self._check_host(headers)
            self._check_key(scope["path"], headers)
            if scope["method"] == "POST":
                receive = await self._with_body(headers, receive)
        except ApiError as error:
            await error.response()(scope, receive, send_safe)
            return
        await self._app(scope, receive, send_safe)

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        """Else a page of anybody, its name pointed at this machine, could call a local server."""
        if self._key is not None or not self._settings.is_loopback:
            return
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if host.rpartition(":")[0] not in LOCAL_HOSTS and host not in LOCAL_HOSTS:
            raise ApiError(
                403, "this server answers to localhost alone; start it with a key for other names"
            )

    def _check_key(self, path: str, headers: dict[bytes, bytes]) -> None:
        if self._key is None or path in OPEN or path.startswith(OPEN_BELOW):
            return
        scheme, _, shown = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(shown.strip(), self._key):
            raise ApiError(
                401,
                "this server wants its key: Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _with_body(self, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """Read a body of the right kind and size; what follows it comes from the client."""
        most = self._settings.body_bytes
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > most:
            raise _too_large(most)
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if kind != b"application/json":
            raise ApiError(415, "send the request as application/json")
        try:
            body = await asyncio.wait_for(_read(receive, most), BODY_S)
        except asyncio.TimeoutError:
            raise ApiError(408, f"the body did not come within {BODY_S:g} s") from None
        first = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> MutableMapping[str, Any]:
            return first.pop() if first else await receive()

        return again


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the request has more than {most} bytes, this server's limit")


async def _read(receive: Receive, most: int) -> bytes:
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "the body is not whole")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > most:
            raise _too_large(most)
    return bytes(body)
