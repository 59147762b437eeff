"""The answer to a request for text: made while it is sent, ended when the client leaves."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import Response

from hotcold.actors.serve.answers import DONE, Answer
from hotcold.actors.serve.errors import ApiError, answer, as_json
from hotcold.actors.serve.generations import Item, while_connected
from hotcold.actors.serve.guard import Receive, Scope, Send


class Reply(Response):
    """The answer to a request for text, made while it is sent; it ends when the client leaves."""

    def __init__(
        self,
        items: AsyncGenerator[tuple[int, Item], None],
        made: Answer,
        streams: bool,
        with_usage: bool,
    ) -> None:
        super().__init__()
        self._items, self._answer = items, made
        self._streams, self._with_usage = streams, with_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await while_connected(receive, self._send(scope, receive, send))

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        stream = _Stream(send)
        try:
            async with aclosing(self._items):
                if self._streams:
                    await self._pieces(stream)
                    return
                async for index, item in self._items:
                    self._answer.take(index, item)
            await answer(self._answer.all())(scope, receive, send)
        except ApiError as error:
            if not stream.begun:
                await error.response()(scope, receive, send)
                return
            await stream.send(f"data: {as_json(error.body)}\n\n")
            await stream.end()

    async def _pieces(self, stream: "_Stream") -> None:
        """A stream begins with the first token, so that what fails before it has a status."""
        made, usage = self._answer, {"usage": None} if self._with_usage else {}
        async for index, item in self._items:
            if not stream.begun:
                await stream.send(made.begin(self._with_usage))
            piece = made.take(index, item)
            if piece is not None:
                await stream.send(made.event([piece], **usage))
        if self._with_usage:
            await stream.send(made.event([], usage=made.usage))
        await stream.send(DONE)
        await stream.end()


class _Stream:
    """Server-sent events."""

    HEADERS = (
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"x-accel-buffering", b"no"),
    )

    def __init__(self, send: Send) -> None:
        self._send, self.begun = send, False

    async def send(self, text: str) -> None:
        if not self.begun:
            self.begun = True
            await self._send(
                {"type": "http.response.start", "status": 200, "headers": list(self.HEADERS)}
            )
        if text:
            await self._body(text.encode(), True)

    async def end(self) -> None:
        await self._body(b"", False)

    async def _body(self, body: bytes, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
