"""How fast a server of the OpenAI API answers so many clients at once. Knows no engine."""

import http.client
import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from hotcold.native.errors import ConfigError

PROMPT = "Once upon a time there was a king who"
WAIT_S = 600.0


@dataclass(frozen=True)
class Server:
    """A server by the URL that ends in /v1, and the key it wants, if any."""

    url: str
    key: str | None = None

    def ask(self, method: str, path: str, body: Any = None) -> http.client.HTTPResponse:
        """The answer to a request, its body still to be read.

        Raises:
            ConfigError: nobody answers, or something else than 200.
        """
        at = urlsplit(self.url)
        kind = http.client.HTTPSConnection if at.scheme == "https" else http.client.HTTPConnection
        connection = kind(at.hostname or "", at.port, timeout=WAIT_S)
        headers = {"Content-Type": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None if body is None else json.dumps(body)
        try:
            connection.request(method, at.path.rstrip("/") + path, data, headers)
            answer = connection.getresponse()
        except OSError as error:
            raise ConfigError(f"no server answers at {self.url} ({error}); start one") from None
        if answer.status != 200:
            said = answer.read(300).decode("utf-8", "replace")
            raise ConfigError(f"{self.url} answers {answer.status}: {said}")
        return answer

    def model(self) -> str:
        """The name of its first model."""
        with closing(self.ask("GET", "/models")) as answer:
            return str(json.load(answer)["data"][0]["id"])


@dataclass(frozen=True)
class Stream:
    """One answer: its tokens, and seconds from the request to the first piece and to the end."""

    tokens: int
    first_s: float
    all_s: float


def stream(server: Server, model: str, tokens: int, seed: int) -> Stream:
    """Ask for so many tokens, streamed. A server that does not tell usage is believed to make all.

    A text that ends by itself is shorter.
    """
    body = {
        **{"model": model, "prompt": PROMPT, "max_tokens": tokens, "seed": seed, "stream": True},
        **{"temperature": 1.0, "stream_options": {"include_usage": True}},
    }
    began = time.monotonic()
    first_s, pieces, usage = 0.0, 0, None
    with closing(server.ask("POST", "/completions", body)) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            piece = json.loads(line[6:])
            usage = piece.get("usage") or usage
            if piece.get("choices") and piece["choices"][0]["text"]:
                pieces += 1
                first_s = first_s or time.monotonic() - began
    made = usage["completion_tokens"] if usage else pieces
    return Stream(made, first_s, time.monotonic() - began)


def measure(
    servers: Sequence[Server],
    clients: Sequence[int],
    tokens: int,
    rounds: int,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """For each number of clients, each server: tokens/s of all together, seconds to the first.

    Medians over the rounds, in which the servers take turns.
    """
    models = {server: server.model() for server in servers}
    found: dict[tuple[int, Server], list[tuple[float, float]]] = {}
    for number in range(rounds + 1):
        for count in clients:
            for server in servers:
                say(f"round {number} of {rounds}, {count} at once, {server.url}")
                began = time.monotonic()
                with ThreadPoolExecutor(count) as pool:
                    jobs = [
                        pool.submit(stream, server, models[server], tokens, seed)
                        for seed in range(count)
                    ]
                    made = [job.result() for job in jobs]
                all_s = time.monotonic() - began
                first_s = statistics.median(one.first_s for one in made)
                if number:  # the first warms up
                    rate = sum(one.tokens for one in made) / all_s
                    found.setdefault((count, server), []).append((rate, first_s))
    return [
        {
            "clients": count,
            "url": server.url,
            "tokens_per_s": statistics.median(rate for rate, _ in found[count, server]),
            "first_s": statistics.median(first for _, first in found[count, server]),
        }
        for count in clients
        for server in servers
    ]
