"""Publisher and subscriber: nobody is waited for, no message ends either, all is freed."""

import socket
import threading
import time

import pytest
import zmq
from support.telemetry import published, report

from hotcold.native.errors import ConfigError
from hotcold.runtime.telemetry import sockets
from hotcold.runtime.telemetry.message import MAX_BYTES, Report, encode
from hotcold.runtime.telemetry.sockets import Publisher, Subscriber


def threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name == "hotcold-telemetry"]


def test_nothing_is_collected_while_nobody_listens() -> None:
    asked: list[float] = []

    def collect() -> list[Report]:
        asked.append(time.monotonic())
        return [report()]

    publisher = Publisher(collect)
    time.sleep(0.3)
    assert asked == [] and threads()
    with Subscriber([publisher.address]) as subscriber:
        found = subscriber.receive(5.0)
        assert found is not None and found.engine == "lab"
    time.sleep(0.4)  # the publisher hears that it left
    count = len(asked)
    time.sleep(0.3)
    assert len(asked) == count
    publisher.close()
    publisher.close()
    assert threads() == []
    again = Publisher(lambda: [], publisher.address)  # the port is free
    again.close()


def test_a_listener_that_does_not_listen_holds_nobody_up() -> None:
    asked: list[float] = []

    def collect() -> list[Report]:
        asked.append(time.monotonic())
        return [report(number=n) for n in range(200)]

    publisher = Publisher(collect)
    with zmq.Context() as context, context.socket(zmq.SUB) as deaf:
        deaf.setsockopt(zmq.LINGER, 0)
        deaf.setsockopt(zmq.SUBSCRIBE, b"")
        deaf.connect(publisher.address)
        deadline = time.monotonic() + 5
        while len(asked) < 8 and time.monotonic() < deadline:
            time.sleep(0.05)
    publisher.close()
    assert len(asked) >= 8


def test_hostile_messages_do_not_end_the_subscriber() -> None:
    with zmq.Context() as context, context.socket(zmq.PUB) as hostile:
        hostile.setsockopt(zmq.LINGER, 0)
        port = hostile.bind_to_random_port("tcp://127.0.0.1")
        with Subscriber([f"tcp://127.0.0.1:{port}"]) as subscriber:
            deadline = time.monotonic() + 10
            found = None
            while found is None and time.monotonic() < deadline:
                hostile.send_multipart([b"hotcold.gpu"])
                hostile.send_multipart([b"hotcold.gpu", b"a", b"b"])
                hostile.send_multipart([b"hotcold.gpu", b"\x93" * 4000])
                hostile.send_multipart([b"other", encode(report("cpu"))])
                hostile.send_multipart([b"hotcold.gpu", encode(report())])
                found = subscriber.receive(0.2)
            assert found is not None and found.actor == "gpu"
            assert subscriber.refused >= 3
            hostile.send_multipart([b"hotcold.gpu", bytes(2 * MAX_BYTES)])  # ends the connection
            deadline = time.monotonic() + 10
            found = None
            while found is None and time.monotonic() < deadline:
                hostile.send_multipart([b"hotcold.gpu", encode(report())])
                found = subscriber.receive(0.2)
                if found is None:  # as Follower does
                    subscriber.follow([f"tcp://127.0.0.1:{port}"])
            assert found is not None


def test_hostile_listeners_do_not_end_the_publisher() -> None:
    with published() as address, zmq.Context() as context:
        host, port = address.removeprefix("tcp://").split(":")
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
        with context.socket(zmq.XSUB) as greedy:
            greedy.setsockopt(zmq.LINGER, 0)
            greedy.connect(address)
            for number in range(500):
                greedy.send(b"\x01" + str(number).encode())
            greedy.send(b"\x01" + bytes(100_000))
            greedy.send(b"\x07hello")
            with Subscriber([address]) as subscriber:
                assert subscriber.receive(20.0) is not None


@pytest.mark.parametrize("address", ["", "nowhere", "http://127.0.0.1:1", "tcp://", "ipc://x"])
def test_an_address_that_is_none_is_named(address: str) -> None:
    with pytest.raises(ConfigError, match="is no address"):
        Subscriber([address])


def test_a_taken_port_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_BUSY_S", 0.2)
    with published() as address, pytest.raises(ConfigError, match="in use"):
        Publisher(lambda: [], address)
