"""What a server is asked for: a table of options, and the key that its clients must show."""

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from hotcold.native.errors import ConfigError
from hotcold.native.options.table import check_all, documented, option
from hotcold.runtime.units import parse_bytes

KEY_VARIABLE = "HOTCOLD_API_KEY"
LEAST_KEY = 16


@dataclass(frozen=True)
class ServeConfig:
    """How a server is reached, and what a request may ask for.

    Raises:
        ConfigError: a value that is not allowed, or an open server without a key.
    """

    host: str = option(
        "127.0.0.1",
        "Address to listen at. Another than loopback needs a key, or --no-api-key.",
        metavar="ADDRESS",
    )
    port: int = option(8000, "Port to listen at; 0: a free one.", low=0, high=65535)
    api_key: str | os.PathLike[str] | None = option(
        None,
        "File that holds the key which clients must show; never the key itself, which everybody "
        "on the machine could read among the processes.",
        metavar="FILE",
        shown=f"what {KEY_VARIABLE} holds; without it no key is asked for",
    )
    no_api_key: bool = option(False, "Listen beyond loopback though no key is asked for.")
    cors_origin: tuple[str, ...] = option(
        (), "Origin whose pages may call the API from a browser.", metavar="URL", many=True
    )
    model_name: str | None = option(
        None,
        "What clients call the model.",
        metavar="NAME",
        shown="the folder's name; hotcold for the embedded model",
    )
    chat_template: str | os.PathLike[str] | None = option(
        None,
        "File with a Jinja template that makes a prompt of a chat.",
        metavar="FILE",
        shown="the model's; the embedded model continues the messages' texts",
    )
    replicas: int = option(1, "Engines, each with its own actors.", low=1, high=64)
    queue: int = option(
        64,
        "Generations that wait while all others run; those beyond are refused.",
        low=0,
        high=4096,
    )
    max_tokens_limit: int = option(
        4096, "New tokens that a request may ask for.", low=1, high=1 << 24
    )
    max_prompt: int | None = option(
        None, "Tokens that a prompt may have.", low=1, high=1 << 24, shown="the context"
    )
    max_body: str | int = option("1MiB", "Bytes that a request may have.", metavar="SIZE")
    request_timeout: float = option(
        600.0, "Seconds after which a request is ended, its wait included.", low=0.0, above=True
    )
    drain_timeout: float = option(
        30.0, "Seconds that requests have to end once the server is told to.", low=0.0
    )

    def __post_init__(self) -> None:
        check_all(self)
        if not 1 <= parse_bytes(self.max_body, "max_body") <= 1 << 30:
            raise ConfigError(f"max_body {self.max_body} is not from 1 byte to 1 GiB")
        for origin in self.cors_origin:
            if not origin.startswith(("http://", "https://")):
                raise ConfigError(
                    f"cors_origin {origin!r:.80} is no origin; give https://HOST, with :PORT where "
                    "it has one"
                )

    @property
    def body_bytes(self) -> int:
        """`max_body` in bytes."""
        return parse_bytes(self.max_body, "max_body")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False


documented(ServeConfig)(ServeConfig)


def take_key(settings: ServeConfig) -> str | None:
    """The key, and out of the environment with it: child processes, and Ray's logs, show that.

    Raises:
        ConfigError: a file that cannot be read, a key that is too short, or a server that others
            reach without one. No message holds what might be the key.
    """
    key = os.environ.pop(KEY_VARIABLE, "").strip() or None
    source = KEY_VARIABLE
    if settings.api_key is not None:
        source = "the file of --api-key"
        try:
            key = Path(settings.api_key).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise ConfigError(
                f"{source} cannot be read ({why}); give the path of a file that holds the key"
            ) from None
    if key is None:
        if not settings.is_loopback and not settings.no_api_key:
            raise ConfigError(
                f"host {settings.host} can be reached from other machines; give --api-key FILE, or "
                "--no-api-key to let everybody in"
            )
        return None
    if len(key) < LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"{source} holds no key of at least {LEAST_KEY} printable characters on one line; make "
            "one with: openssl rand -hex 32"
        )
    return key
