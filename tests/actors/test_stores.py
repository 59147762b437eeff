"""Weight stores under real actors: one copy a machine, the same tokens, nothing left behind."""

import os
import signal
from pathlib import Path

import pytest
from support.stores import Holder, weight_memory

from hotcold.actors import Engine
from hotcold.runtime.model.checkpoints.bundle import Bundle, resolve_model
from hotcold.runtime.weights import memfd

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return resolve_model()


def found(bundle: Bundle) -> bool:
    fd = memfd.find_finished(f"hotcold-weights-{bundle.checksum[:40]}", bundle.weights_bytes)
    if fd is not None:
        os.close(fd)
    return fd is not None


def ids(engine: Engine) -> list[int]:
    return [token.id for token in engine.generate(PROMPT, max_tokens=12, ignore_eos=True)]


def memory(engine: Engine) -> int:
    return sum(weight_memory(actor.pid) for actor in engine.stats().actors.values())


@pytest.fixture(scope="module")
def expected(one_ray: str) -> list[int]:
    with Engine.launch(store="file") as engine:
        return ids(engine)


def test_one_memfd_for_all_over_a_replan(bundle: Bundle, expected: list[int]) -> None:
    with Engine.launch(store="memfd") as engine:
        assert ids(engine) == expected
        with Holder(bundle.path, "memfd") as other:  # another program with the same model
            assert not other.ready().filled
            assert memory(engine) + weight_memory(other.pid) <= 1.05 * bundle.weights_bytes
        inode = inodes(engine)
        engine.replan(policy="random")
        assert ids(engine) == expected
        assert inodes(engine) == inode and len(inode) == 1
        assert memory(engine) <= 1.05 * bundle.weights_bytes
    assert not found(bundle)


def inodes(engine: Engine) -> set[str]:
    """Inodes of the memfds that an engine's actors have mapped."""
    return {
        line.split()[4]
        for actor in engine.stats().actors.values()
        for line in Path(f"/proc/{actor.pid}/maps").read_text().splitlines()
        if "memfd:hotcold-weights" in line
    }


def test_the_memfd_goes_with_killed_actors(bundle: Bundle, expected: list[int]) -> None:
    with Engine.launch(store="memfd") as engine:
        assert ids(engine) == expected
        before = inodes(engine)
        for actor in engine.stats().actors.values():
            os.kill(actor.pid, signal.SIGKILL)
        assert ids(engine) == expected  # by new actors, which had to fill it anew
        assert found(bundle) and inodes(engine).isdisjoint(before)
    assert not found(bundle)


def test_private_records_give_the_same_tokens(bundle: Bundle, expected: list[int]) -> None:
    with Engine.launch(store="private") as engine:
        assert ids(engine) == expected
        engine.replan(policy="all-cpu")
        assert ids(engine) == expected
        assert memory(engine) <= 2.05 * bundle.weights_bytes
