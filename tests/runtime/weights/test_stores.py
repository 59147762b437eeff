"""Weight stores: the same bytes, one copy a machine, gone with the last user, refused in time."""

import ctypes
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.models import TinyLlama, random_tensors, write_llama
from support.stores import Holder, huge_share, weight_memory

from hotcold.native.errors import BudgetError, CheckpointError, ConfigError
from hotcold.runtime.model.checkpoints.bundle import Bundle, resolve_model
from hotcold.runtime.options.config import STORES
from hotcold.runtime.weights import host_memory as memory
from hotcold.runtime.weights import memfd, stores
from hotcold.runtime.weights.pages import HUGE_BYTES, Pages
from hotcold.runtime.weights.weights import MEMFD_FROM_BYTES, WeightStore, choose_store

THP = "/sys/kernel/mm/transparent_hugepage/enabled"
TINY = TinyLlama(d=45, layers=2, neurons=33, heads=5, kv_heads=1, head_dim=6, vocab=7)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("tiny")
    return resolve_model(write_llama(folder / "m", TINY), cache=folder / "cache")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of 200 MB."""
    folder = tmp_path_factory.mktemp("large")
    model = TinyLlama(d=1024, layers=4, neurons=8000, dtype="float16", tokenizer=None)
    rng = np.random.default_rng(0)
    one = rng.standard_normal((8000, 1024), np.float32)
    parts = {"gate": one, "up": one, "down": one.T}
    tensors = {
        f"model.layers.{i}.mlp.{part}_proj.weight": value
        for i in range(model.layers)
        for part, value in parts.items()
    }
    small = random_tensors(replace(model, neurons=1))
    return resolve_model(
        write_llama(folder / "m", model, {**small, **tensors}), cache=folder / "cache"
    )


def own_half(bundle: Bundle) -> list[np.ndarray]:
    return [np.arange(0, bundle.spec.n_neurons, 2, dtype=np.int32)] * bundle.spec.n_layers


def at(address: int, size: int) -> bytes:
    return ctypes.string_at(address, size)


@pytest.mark.parametrize("kind", STORES)
def test_every_kind_holds_the_bytes_of_the_file(tiny: Bundle, kind: str) -> None:
    with (
        WeightStore.open(tiny) as file,
        WeightStore.open(tiny, kind, own_half(tiny)) as store,
    ):
        record = tiny.record.bytes
        for name in tiny.tensors:
            np.testing.assert_array_equal(store.array(name), file.array(name))
            assert not store.array(name).flags.writeable
            if not name.endswith("neurons"):
                size = tiny.tensors[name].size
                assert at(store.address(name), size) == file.array(name).tobytes()
                continue
            for i in own_half(tiny)[0]:
                got = at(store.address(name) + int(i) * record, record)
                assert got == file.array(name)[i].tobytes()
        np.testing.assert_array_equal(store.neuron_rows(1, "down"), file.neuron_rows(1, "down"))
    store.close()
    with pytest.raises(ConfigError, match="closed"):
        store.address("embed")


def test_arrays_outlive_a_memfd_store(tiny: Bundle) -> None:
    store = WeightStore.open(tiny, "memfd")
    raw = store.array("embed")
    before = raw.tobytes()
    store.close()
    assert raw.tobytes() == before
    assert memfd.find_finished(f"hotcold-weights-{tiny.checksum[:40]}", tiny.weights_bytes) is None


def test_the_kind_is_the_users_then_the_environments_then_by_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HOTCOLD_STORE", raising=False)
    assert choose_store(None, MEMFD_FROM_BYTES - 1) == "file"
    assert choose_store(None, MEMFD_FROM_BYTES) == "memfd"
    monkeypatch.setenv("HOTCOLD_STORE", "private")
    assert choose_store(None, 1) == "private"
    assert choose_store("file", 1) == "file"
    monkeypatch.setenv("HOTCOLD_STORE", "ram")
    with pytest.raises(ConfigError, match="'ram' is unknown; choose one of file, memfd, private"):
        choose_store(None, 1)


def test_processes_share_one_memfd_and_any_of_them_keeps_it(large: Bundle) -> None:
    """Two start at once: one fills. Killing the one that filled takes nothing from the others."""
    budget = 1.05 * large.weights_bytes
    with Holder(large.path, "memfd") as one, Holder(large.path, "memfd") as two:
        assert one.ready().digest == two.ready().digest
        assert sorted([one.filled, two.filled]) == [False, True]
        with Holder(large.path, "memfd") as three:
            assert not three.ready().filled
            assert sum(weight_memory(h.pid) for h in (one, two, three)) <= budget
            filler, other = (one, two) if one.filled else (two, one)
            filler.kill()
            assert other.again() == three.again() == three.digest
            with Holder(large.path, "memfd") as late:
                assert not late.ready().filled
                assert late.digest == three.digest
                assert sum(weight_memory(h.pid) for h in (other, three, late)) <= budget
    name = f"hotcold-weights-{large.checksum[:40]}"
    assert memfd.find_finished(name, large.weights_bytes) is None


def test_a_killed_filler_leaves_nothing_and_the_next_one_fills(large: Bundle) -> None:
    script = f"""
import sys, time
from pathlib import Path
from hotcold.runtime.weights import stores
def slow(pages, file, path, extents):
    print("filling", flush=True)
    time.sleep(60)
stores.fill = slow
stores.SharedCopy(Path({str(large.weights_path)!r}), {large.weights_bytes}, {large.checksum!r})
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "filling\n"
    with Holder(large.path, "memfd") as waiting:
        process.kill()
        process.communicate()
        assert waiting.ready().filled


@pytest.mark.parametrize("kind", ["file", "private"])
def test_what_the_other_kinds_cost(large: Bundle, kind: str) -> None:
    """file: one copy. private: the owner's half beside it, in whole 2 MiB blocks."""
    with (
        Holder(large.path, kind) as gpu,
        Holder(large.path, kind, own=True) as cpu,
        Holder(large.path, kind) as predictor,
    ):
        assert len({holder.ready().digest for holder in (gpu, cpu, predictor)}) == 1
        total = sum(weight_memory(holder.pid) for holder in (gpu, cpu, predictor))
    half = sum(e.size for n, e in large.tensors.items() if n.endswith("neurons")) / 2
    more = half + 2 * HUGE_BYTES * large.spec.n_layers if kind == "private" else 0
    assert total <= 1.05 * large.weights_bytes + more
    if kind == "private" and "[never]" not in Path(THP).read_text():
        assert total >= large.weights_bytes + 0.9 * half


def test_the_memfd_is_in_huge_pages_in_every_process(large: Bundle) -> None:
    release = tuple(int(part) for part in platform.release().split(".")[:2])
    if not Path(THP).exists() or release < (6, 1):
        pytest.skip("this kernel does not collapse pages on demand")
    with Holder(large.path, "memfd") as one, Holder(large.path, "memfd") as two:
        for holder in (one.ready(), two.ready()):
            assert huge_share(holder.pid) > 0.9


def test_only_a_finished_memfd_of_the_right_size_is_believed() -> None:
    fd = memfd.create_sealed("hotcold-weights-test", 8192)
    try:
        assert memfd.find_finished("hotcold-weights-test", 8192) is None
        memfd.finish(fd)
        assert memfd.find_finished("hotcold-weights-test", 4096) is None
        found = memfd.find_finished("hotcold-weights-test", 8192)
        assert found is not None
        with pytest.raises(OSError):
            os.write(found, b"x")
        os.close(found)
        with pytest.raises(OSError):
            os.write(fd, b"x")
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("starts", "record", "expected"),
    [
        ([[]], 10, []),
        ([[0]], 10, [(0, HUGE_BYTES)]),
        ([[HUGE_BYTES - 5]], 10, [(0, 2 * HUGE_BYTES)]),
        ([[0], [5 * HUGE_BYTES]], 10, [(0, HUGE_BYTES), (5 * HUGE_BYTES, 5 * HUGE_BYTES + 77)]),
        ([[HUGE_BYTES]], 3 * HUGE_BYTES, [(HUGE_BYTES, 4 * HUGE_BYTES)]),
    ],
)
def test_private_blocks(
    starts: list[list[int]], record: int, expected: list[tuple[int, int]]
) -> None:
    arrays = [np.array(one, np.int64) for one in starts]
    assert stores.private_blocks(5 * HUGE_BYTES + 77, arrays, record) == expected


@pytest.mark.parametrize("kind", ["memfd", "private"])
def test_too_little_memory_is_refused_before_anything_is_filled(
    tiny: Bundle, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        memory, "available", lambda root=None, private=False: memory.Available(1 << 20, "the box")
    )
    monkeypatch.setattr(stores, "fill", lambda *args: pytest.fail("filled"))
    with pytest.raises(
        BudgetError, match=r"needs .* the box has 1\.0 MiB available; .*--store file"
    ):
        WeightStore.open(tiny, kind, own_half(tiny))


@pytest.mark.parametrize("kind", ["memfd", "private"])
def test_a_limit_on_the_address_space_is_a_sentence(tiny: Bundle, kind: str) -> None:
    script = f"""
import resource, sys
import numpy as np
from pathlib import Path
from hotcold.runtime.model.checkpoints.bundle import open_bundle
from hotcold.runtime.weights.weights import WeightStore
from hotcold.native.errors import BudgetError
from hotcold.runtime.weights import host_memory
bundle = open_bundle(Path({str(tiny.path)!r}))
used = host_memory._sizes(Path("/proc/self/status"))["VmSize"]
resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20), -1))
try:
    WeightStore.open(bundle, {kind!r}, [np.arange(5, dtype=np.int32)] * 2)
except BudgetError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "RLIMIT_AS has" in done.stdout and "--store file" in done.stdout


def test_what_the_system_refuses_late_is_a_sentence_too(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **more: object) -> Pages:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(stores, "Pages", refuse)
    for kind in ("memfd", "private"):
        with pytest.raises(BudgetError, match="Cannot allocate memory.*--store file"):
            WeightStore.open(tiny, kind, own_half(tiny))


def test_a_mapping_that_is_refused_is_a_sentence(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **more: object) -> object:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(stores.mmap, "mmap", refuse)
    with pytest.raises(BudgetError, match=r"weights.bin \(Cannot allocate memory\).*ulimit -v"):
        WeightStore.open(tiny, "file")


@pytest.mark.parametrize("kind", STORES)
def test_a_file_of_another_size_is_refused(tmp_path: Path, kind: str) -> None:
    bundle = resolve_model(write_llama(tmp_path / "m", TINY), cache=tmp_path / "cache")
    with bundle.weights_path.open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(CheckpointError, match=r"5000 bytes.*open the model again"):
        WeightStore.open(bundle, kind, own_half(bundle))
    bundle.weights_path.unlink()
    with pytest.raises(CheckpointError, match=r"weights\.bin.*open the model again"):
        WeightStore.open(bundle, kind, own_half(bundle))


def test_pages_begin_at_huge_pages_and_end_with_their_user() -> None:
    def mapped() -> int:
        return sum("(deleted)" in line for line in Path("/proc/self/maps").read_text().splitlines())

    before = mapped()
    fd = os.memfd_create("pages")
    os.ftruncate(fd, 3 * HUGE_BYTES + 5)
    pages = Pages(3 * HUGE_BYTES + 5, fd, writable=True)
    array = pages.array()
    assert pages.address % HUGE_BYTES == 0 and array.nbytes == 3 * HUGE_BYTES + 5
    array[-1] = 7
    assert os.pread(fd, 1, 3 * HUGE_BYTES + 4) == b"\7"
    del pages
    assert array[-1] == 7 and mapped() == before + 1
    del array
    assert mapped() == before
    os.close(fd)
