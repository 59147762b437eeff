"""ZeroMQ at both ends: a publisher beside a loop, a subscriber that survives what it is sent.

A publisher works only while someone listens, and never waits for a listener: what a slow one has
not taken is dropped. Sockets go with their process, however it ends; nothing is left in a folder.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from hotcold.native.errors import ConfigError
from hotcold.runtime.telemetry.message import MAX_BYTES, TOPIC, MessageError, Report, decode, encode

EVERY_S = 0.1
LOOPBACK = "tcp://127.0.0.1:*"
NICE = 10  # loops go first
_QUEUED = 16  # messages for each listener
_TOPICS = 64  # that listeners may ask for
_BUSY_S = 5.0  # until the threads of a killed process have let go of its port


def zeromq() -> Any:
    """The module zmq.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import zmq
    except ImportError:
        raise ConfigError("telemetry needs pyzmq; pip install 'hotcold[watch]'") from None
    return zmq


class Publisher:
    """Sends what `collect` returns every EVERY_S, in a thread of its own, while someone listens.

    Attributes:
        address: where, with the port that it got.

    Raises:
        ConfigError: an address that cannot be used; pyzmq or msgpack are missing.
    """

    def __init__(self, collect: Callable[[], Iterable[Report]], address: str = LOOPBACK) -> None:
        zmq = zeromq()
        self._collect, self._stop = collect, threading.Event()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        for option, value in ((zmq.LINGER, 0), (zmq.SNDHWM, _QUEUED), (zmq.MAXMSGSIZE, 1024)):
            self._socket.setsockopt(option, value)
        try:
            self._bind(address)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self.address: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._thread = threading.Thread(target=self._run, name="hotcold-telemetry", daemon=True)
        self._thread.start()

    def _bind(self, address: str) -> None:
        zmq, deadline = zeromq(), time.monotonic() + _BUSY_S
        while True:
            try:
                self._socket.bind(address)
                return
            except zmq.ZMQError as error:
                if error.errno != zmq.EADDRINUSE or time.monotonic() > deadline:
                    raise ConfigError(
                        f"telemetry cannot be published at {address}: {error.strerror}; give a "
                        "free one, such as tcp://127.0.0.1:5599"
                    ) from None
                time.sleep(0.05)

    def _run(self) -> None:
        zmq, topics = zeromq(), set[bytes]()
        with suppress(OSError):  # of this thread alone
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        due = 0.0
        try:
            while not self._stop.is_set():
                left = due - time.monotonic() if topics else EVERY_S
                if left > 0 and self._socket.poll(max(1, int(1000 * left))):
                    _follow(topics, self._socket.recv())
                elif topics and left <= 0:
                    due = time.monotonic() + EVERY_S
                    self._send(zmq)
        except zmq.ZMQError:
            pass  # closed
        finally:
            self._socket.close()

    def _send(self, zmq: Any) -> None:
        for report in self._collect():
            frames = [TOPIC + report.actor.encode(), encode(report)]
            with suppress(zmq.Again):
                self._socket.send_multipart(frames, zmq.NOBLOCK)

    def close(self) -> None:
        """End the thread and free the port; idempotent."""
        self._stop.set()
        self._thread.join()
        self._context.term()


def _follow(topics: set[bytes], message: bytes) -> None:
    if message[:1] == b"\0":
        topics.discard(message[1:])
    elif message[:1] == b"\1" and (len(topics) < _TOPICS or TOPIC.startswith(message[1:])):
        topics.add(message[1:])


class Subscriber:
    """Follows publishers; not thread-safe. Use as a context manager.

    Attributes:
        refused: messages that were none.

    Raises:
        ConfigError: an address that is none; pyzmq or msgpack are missing.
    """

    def __init__(self, addresses: Iterable[str] = ()) -> None:
        zmq = zeromq()
        self.refused = 0
        self._connected: set[str] = set()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, 256)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
        self._socket.setsockopt(zmq.SUBSCRIBE, TOPIC)
        try:
            self.follow(addresses)
        except BaseException:
            self.close()
            raise

    def follow(self, addresses: Iterable[str]) -> None:
        """Follow these and no others, each by a new connection.

        ZeroMQ makes none itself after a message that is too long.
        """
        zmq, wanted = zeromq(), set(addresses)
        for address in self._connected:
            with suppress(zmq.ZMQError):  # it ended by itself
                self._socket.disconnect(address)
        self._connected.clear()
        for address in wanted:
            try:
                if not address.startswith("tcp://"):
                    raise zmq.ZMQError(zmq.EINVAL)
                self._socket.connect(address)
            except zmq.ZMQError:
                raise ConfigError(
                    f"{address!r:.80} is no address; give one such as tcp://127.0.0.1:5599"
                ) from None
            self._connected.add(address)

    def receive(self, timeout_s: float) -> Report | None:
        """The next message; None where none came in time. What is no message is counted."""
        deadline = time.monotonic() + timeout_s
        while True:
            left_ms = int(1000 * (deadline - time.monotonic()))
            if not self._socket.poll(max(0, left_ms)):
                return None
            try:
                _, data = self._socket.recv_multipart()
                return decode(data)
            except (MessageError, ValueError):  # ValueError: another number of frames
                self.refused += 1
                if left_ms <= 0:
                    return None

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._context.destroy(linger=0)

    def __enter__(self) -> "Subscriber":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
