"""A server in a thread of this process, and raw requests to it."""

import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Answered:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error of a body in OpenAI's form."""
        assert self.status >= 400 and self.headers["content-type"] == "application/json"
        assert set(self.json) == {"error"}
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str) and error["message"]
        return error


@contextmanager
def serving(app: Any) -> Iterator[int]:
    """Serve an app under uvicorn; its port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def begin(
    port: int, method: str, path: str, body: Any = None, headers: Mapping[str, str] = JSON
) -> http.client.HTTPConnection:
    """Send a request; the answer is left to be read. A body of pieces goes out in chunks."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    if isinstance(body, (dict, list)):
        body = json.dumps(body)
    connection.request(method, path, body, dict(headers))
    return connection


def ask(
    port: int, method: str, path: str, body: Any = None, headers: Mapping[str, str] = JSON
) -> Answered:
    """A request and its answer."""
    with closing(begin(port, method, path, body, headers)) as connection:
        answer = connection.getresponse()
        names = {name.lower(): value for name, value in answer.getheaders()}
        return Answered(answer.status, names, answer.read())
