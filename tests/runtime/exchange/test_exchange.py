import json
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import peers
from support.peers import LAYOUT, line, peer, plain, until_asleep

from hotcold.native.abi.generated import ABI_VERSION, Status
from hotcold.native.bindings.segment import Watcher
from hotcold.native.errors import ActorLostError, ConfigError, KernelError, LaunchError
from hotcold.runtime.exchange.segment import PoisonCode, Segment
from hotcold.runtime.weights.memfd import create_sealed

LIMIT_S = 20.0  # a wait that takes so long has failed; nothing is timed


@pytest.fixture
def segment() -> Iterator[Segment]:
    with Segment.create(LAYOUT, epoch=7) as made:
        made.native.pointer.spin_ns = 20_000
        yield made


def open_files() -> set[str]:
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return {os.readlink(link) for link in links if os.path.lexists(link)}


def test_three_processes_hand_on_ten_thousand_numbers(segment: Segment) -> None:
    ring = [dict(side=side, sides=3, count=10_000) for side in (1, 2, 0)]
    with (
        peer("relay", handle=plain(segment), **ring[0]) as first,
        peer("relay", handle=plain(segment), **ring[1]) as second,
        peer("relay", handle=plain(segment), **ring[2]) as third,
    ):
        assert [line(process) for process in (first, second, third)] == ["done"] * 3
    assert [segment.native.value(flag) for flag in range(3)] == [10_000] * 3
    assert [segment.native.sleepers(flag) for flag in range(3)] == [0] * 3


@pytest.mark.parametrize("kind", ["x", "active", "y"])
def test_killed_peer_ends_parked_waits_in_all_processes(segment: Segment, kind: str) -> None:
    flag = LAYOUT.flag(kind, 1)
    with peer("park", handle=plain(segment), flag=0) as victim:
        assert line(victim) == "ready"
        arguments = dict(handle=plain(segment), flag=flag, victim=victim.pid)
        with peer("watch_and_park", **arguments) as other:
            assert line(other) == "ready"
            until_asleep(segment, flag)
            victim.kill()
            with pytest.raises(ActorLostError, match="the cpu actor died") as lost:
                segment.wait(flag, 1, timeout_s=LIMIT_S)  # no watcher here: the other one wakes us
            assert lost.value.actor == "cpu"
            assert "ActorLostError: the cpu actor died" in line(other)
    assert segment.poisoned == (PoisonCode.DIED, "cpu")


def test_poison_wakes_sleepers_and_the_first_stays(segment: Segment) -> None:
    with peer("park", handle=plain(segment), flag=5) as sleeper:
        assert line(sleeper) == "ready"
        until_asleep(segment, 5)
        segment.poison(PoisonCode.STUCK, "predictor")
        segment.poison(PoisonCode.CLOSED)
        assert line(sleeper) == "ActorLostError: the predictor actor made no progress"
    assert segment.poisoned == (PoisonCode.STUCK, "predictor")
    assert segment.native.sleepers(5) == 0


def test_orderly_end_blames_nobody(segment: Segment) -> None:
    segment.poison(PoisonCode.CLOSED)
    with pytest.raises(KernelError, match="closed by driver"):
        segment.wait(0, 1)


def test_of_many_poisons_one_wins_for_all(segment: Segment) -> None:
    seen, gate = [], threading.Barrier(6)

    def poison(index: int) -> None:
        gate.wait()
        segment.poison(PoisonCode.FAILED, ("gpu", "cpu", "predictor")[index % 3])
        seen.append(segment.poisoned)

    threads = [threading.Thread(target=poison, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(seen)) == 1 and seen[0] == segment.poisoned


@pytest.mark.parametrize("spin_ns", [0, 10**9])
def test_wait_times_out_and_counts_its_time(spin_ns: int) -> None:
    with Segment.create(LAYOUT, epoch=1) as segment:
        segment.native.pointer.spin_ns = spin_ns
        status, waited_ns = segment.native.wait(2, 1, 1, 3_000_000)
        assert status is Status.ERR_TIMEOUT and waited_ns >= 3_000_000
        assert segment.wait(2, 1, timeout_s=0) is False
        segment.signal(2, 1)
        assert segment.wait(2, 1, timeout_s=0) is True
        assert segment.native.sleepers(2) == 0


def test_numbers_wrap(segment: Segment) -> None:
    segment.signal(1, 2**32)
    assert segment.native.value(1) == 0 and segment.wait(1, 2**32, timeout_s=0)


def test_wait_of_another_epoch_is_refused(segment: Segment) -> None:
    segment.signal(0, 1)
    assert segment.native.wait(0, 1, 8, -1)[0] is Status.ERR_EPOCH


@pytest.mark.parametrize("flag", [-1, LAYOUT.n_flags, 2**31 - 1])
def test_unknown_flags_are_refused(segment: Segment, flag: int) -> None:
    for call in (segment.signal, segment.wait):
        with pytest.raises(ValueError, match="not one of the segment's 10"):
            call(flag, 1)


def test_attach_sees_payload_counters_and_pass(segment: Segment) -> None:
    with Segment.attach(segment.handle) as other:
        segment.floats(LAYOUT.layers[1].y[1], 2, 16)[1, 3] = 2.5
        assert other.floats(LAYOUT.layers[1].y[1], 2, 16)[1, 3] == 2.5
        header = segment.native.pointer
        header.pass_batch, header.pass_seq = 2, 9
        assert (other.native.pass_batch, other.native.pass_seq) == (2, 9)
        segment.native.actor[1].gate_rows = 2**40
        assert other.actor_state("cpu").gate_rows == 2**40
        assert other.actor_state("gpu") == replace(other.actor_state("cpu"), gate_rows=0)


def test_attach_refuses_the_wrong_epoch_and_size(segment: Segment) -> None:
    with pytest.raises(LaunchError, match=f"epoch 7, expected ABI {ABI_VERSION}, epoch 8"):
        Segment.attach(replace(segment.handle, epoch=8))
    with pytest.raises(LaunchError, match="bytes, expected 4096"):
        Segment.attach(replace(segment.handle, bytes=4096))


def test_attach_refuses_what_is_no_segment(segment: Segment, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="is gone"):
        Segment.attach(replace(segment.handle, fd=1000))
    with pytest.raises(LaunchError, match="no descriptor -1"):
        Segment.attach(replace(segment.handle, fd=-1))
    with open(tmp_path / "file", "wb+") as file:
        file.write(bytes(LAYOUT.bytes))
        file.flush()
        with pytest.raises(LaunchError, match=r"memfd|not sealed"):
            Segment.attach(replace(segment.handle, fd=file.fileno()))
    unsealed = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(unsealed, LAYOUT.bytes)
    zeros, tiny = create_sealed("test", LAYOUT.bytes), create_sealed("test", 100)
    try:
        with pytest.raises(LaunchError, match="not sealed"):
            Segment.attach(replace(segment.handle, fd=unsealed))
        with pytest.raises(LaunchError, match="ABI 0"):
            Segment.attach_fd(zeros, 7)
        with pytest.raises(LaunchError, match="100 bytes"):
            Segment.attach_fd(tiny, 7)
    finally:
        for fd in (unsealed, zeros, tiny):
            os.close(fd)


@pytest.mark.parametrize("name", ["abi", "bytes", "n_flags", "flags_offset", "span_capacity"])
def test_attach_refuses_a_damaged_header(segment: Segment, name: str) -> None:
    setattr(segment.native.pointer, name, 2**30)
    with pytest.raises(LaunchError, match="refused"):
        Segment.attach(segment.handle)


def test_the_size_is_sealed(segment: Segment) -> None:
    for size in (0, LAYOUT.bytes + mmap.PAGESIZE):
        with pytest.raises(PermissionError):
            os.ftruncate(segment.handle.fd, size)


def test_a_segment_outlives_its_maker_but_takes_nobody_new() -> None:
    with peer("own") as owner:
        handle = peers.SegmentHandle(**json.loads(line(owner)))
        with Segment.attach(handle) as segment:
            owner.kill()
            owner.wait()
            assert segment.native.value(0) == 41
            with pytest.raises(LaunchError, match="is gone"):
                Segment.attach(handle)


def test_close_leaves_nothing_and_is_idempotent() -> None:
    files, shm = open_files(), set(Path("/dev/shm").glob("*hotcold*"))
    segment = Segment.create(LAYOUT, epoch=1)
    other = Segment.attach(segment.handle)
    private = Segment.private(LAYOUT, epoch=1)
    watcher = other.watch({os.getpid(): "gpu"})
    kept = segment.floats(LAYOUT.layers[0].x, 1, 16)
    for thing in (watcher, other, private, segment, segment, watcher):
        thing.close()
    kept[:] = 1.0  # a view keeps the mapping: no crash, and it goes with the view
    del kept
    assert open_files() == files and set(Path("/dev/shm").glob("*hotcold*")) == shm
    assert "hotcold-exchange" not in Path("/proc/self/maps").read_text()
    for use in (lambda: segment.signal(0, 1), lambda: segment.handle, lambda: segment.poisoned):
        with pytest.raises(KernelError):
            use()


def test_close_during_a_wait_is_safe() -> None:
    segment = Segment.create(LAYOUT, epoch=1)
    segment.native.pointer.spin_ns = 0
    native_segment, ended = segment.native, []
    thread = threading.Thread(target=lambda: ended.append(native_segment.wait(4, 1, 1, -1)[0]))
    thread.start()
    until_asleep(segment, 4)
    segment.close()
    native_segment.poison(PoisonCode.CLOSED, 255)
    thread.join(LIMIT_S)
    assert ended == [Status.ERR_POISONED]


def test_private_segment_works_alone_and_cannot_be_handed_out() -> None:
    with Segment.private(LAYOUT, epoch=2) as segment:
        segment.signal(0, 5)
        assert segment.wait(0, 5, timeout_s=0)
        with pytest.raises(KernelError, match="only the segment's creator"):
            _ = segment.handle


def test_views_stay_inside(segment: Segment) -> None:
    for offset, size in ((-1, 4), (0, LAYOUT.bytes + 1), (LAYOUT.bytes, 1), (0, -1)):
        with pytest.raises(ConfigError):
            segment.view(offset, size)
    assert segment.view(LAYOUT.bytes, 0).size == 0


def test_watcher_poisons_at_once_for_a_process_that_is_gone(segment: Segment) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with segment.watch({gone.pid: "predictor"}):
        assert segment.poisoned == (PoisonCode.DIED, "predictor")


def test_watcher_lets_the_living_live(segment: Segment) -> None:
    with peer("idle") as alive, segment.watch({alive.pid: "gpu", os.getpid(): "cpu"}):
        line(alive)
        time.sleep(0.05)
        assert segment.poisoned is None
    assert segment.poisoned is None


@pytest.mark.parametrize("pids", [{0: 0}, {-1: 0}, {2**31: 0}, dict.fromkeys(range(1, 100), 0)])
def test_watcher_refuses_what_is_no_process(segment: Segment, pids: dict[int, int]) -> None:
    with pytest.raises(ConfigError, match="cannot watch"):
        Watcher(segment.native, pids)
    assert segment.poisoned is None


def test_watcher_is_left_alone_by_a_forked_child(segment: Segment) -> None:
    with segment.watch({os.getpid(): "gpu"}) as watcher:
        child = os.fork()
        if child == 0:
            watcher.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert segment.poisoned is None


def test_ctrl_c_ends_a_wait(segment: Segment) -> None:
    code = (
        # a shell's background jobs, this test run perhaps, start with SIGINT ignored
        "import json, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "sys.path[:] = json.loads(sys.argv[1]);"
        "from support.peers import *;"
        "s = Segment.attach(SegmentHandle(**json.loads(sys.argv[2])));"
        "print('ready', flush=True);\n"
        "try: s.wait(3, 1)\n"
        "except KeyboardInterrupt: print('interrupted', flush=True)"
    )
    command = [sys.executable, "-c", code, json.dumps(sys.path), json.dumps(plain(segment))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            until_asleep(segment, 3)
            process.send_signal(2)
            assert process.stdout.readline() == "interrupted\n"
        finally:
            process.kill()


def test_float_views_have_the_shape_of_a_slot(segment: Segment) -> None:
    view = segment.floats(LAYOUT.layers[0].x, 2, 16)
    assert view.shape == (2, 16) and view.dtype == np.float32 and not view.any()
