"""Damaged and hostile GGUF and tokenizer.model files: one line of error, never a crash or a hang.

HOTCOLD_FUZZ_SECONDS runs the random part that long; the seed is printed where it fails.
"""

import os
import random
import re
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import gguf_files
from support.models import TinyLlama, write_llama
from support.sentencepiece_files import model_bytes

from hotcold.native.errors import HotcoldError
from hotcold.runtime.model.checkpoints.bundle import resolve_model
from hotcold.runtime.model.checkpoints.tokenizer_files import read_tokenizer
from hotcold.runtime.text.tokenizer import Tokenizer

SECONDS = float(os.environ.get("HOTCOLD_FUZZ_SECONDS", "2"))
LIMIT_BYTES = 3 << 30  # of address space above what stands: no claim of a file may be believed


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("good")
    source = write_llama(folder / "hf", TinyLlama(d=32, layers=1, neurons=32, vocab=300))
    extra = {"hotcold.hidden_act": "relu", "tokenizer.chat_template": "{{ messages }}"}
    return gguf_files.write(folder / "m.gguf", source, extra=extra).read_bytes()


@pytest.fixture(autouse=True)
def little_memory() -> object:
    """No giant allocation succeeds unseen."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def outcome(path: Path, cache: Path) -> str:
    """What using a file says; "" where it is fine."""
    began = time.monotonic()
    try:
        bundle = resolve_model(path, cache=cache)
        if Tokenizer.in_folder(bundle.path):
            Tokenizer.load(bundle.path).encode("Hello 1")
        said = ""
    except HotcoldError as error:
        said = str(error)
        assert said and "\n" not in said and len(said) < 1500, said
    assert time.monotonic() - began < 60
    return said


BIG = 1 << 60


def u64(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + struct.pack("<Q", value) + data[at + 8 :]


def after(data: bytes, text: bytes, skip: int = 0) -> int:
    return data.index(text) + len(text) + skip


CASES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda d: b"", "empty"),
    "magic": (lambda d: b"GGML" + d[4:], "GGUF"),
    "version": (lambda d: d[:4] + struct.pack("<I", 9) + d[8:], "version 9"),
    "big-endian": (lambda d: d[:4] + struct.pack(">I", 3) + d[8:], "big-endian"),
    "tensors": (lambda d: u64(d, 8, BIG), f"claims {BIG} tensors"),
    "keys": (lambda d: u64(d, 16, BIG), f"claims {BIG} keys"),
    "key length": (lambda d: u64(d, 24, BIG), f"claims {BIG} bytes"),
    "array": (lambda d: u64(d, after(d, b"ggml.tokens", 8), BIG), f"claims {BIG} elements"),
    "string": (lambda d: u64(d, after(d, b"chat_template", 4), BIG), f"claims {BIG} bytes"),
    "nested": (
        lambda d: (
            d[: after(d, b"ggml.tokens", 4)]
            + struct.pack("<I", 9)
            + d[after(d, b"ggml.tokens", 8) :]
        ),
        "array of type 9",
    ),
    "shape": (lambda d: u64(d, after(d, b"token_embd.weight", 4), BIG), "ends at byte"),
    "rows": (lambda d: u64(d, after(d, b"token_embd.weight", 12), BIG), "ends at byte"),
    "negative": (lambda d: u64(d, after(d, b"token_embd.weight", 4), (1 << 64) - 1), "ends at"),
    "offset": (lambda d: u64(d, after(d, b"blk.0.ffn_up.weight", 24), BIG), "ends at byte"),
    "dims": (
        lambda d: (
            d[: after(d, b"token_embd.weight")]
            + struct.pack("<I", 1 << 31)
            + d[after(d, b"token_embd.weight", 4) :]
        ),
        "dimensions",
    ),
    "twice": (
        lambda d: d.replace(b"blk.0.ffn_up.weight", b"blk.0.attn_q.weight"),
        "twice|end|GGUF",
    ),
    "layers": (lambda d: u32(d, b"llama.block_count", 1 << 31), "num_hidden_layers"),
    "heads": (lambda d: u32(d, b"attention.head_count", 0), "num_attention_heads"),
}


def u32(data: bytes, key: bytes, value: int) -> bytes:
    at = after(data, key, 4)
    return data[:at] + struct.pack("<I", value) + data[at + 4 :]


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_right_is_named(tmp_path: Path, good: bytes, name: str) -> None:
    spoil, words = CASES[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(spoil(good))
    said = outcome(path, tmp_path / "c")
    assert re.search(words, said) and str(path) in said, said


def test_random_damage(tmp_path: Path, good: bytes) -> None:
    """Cut, flipped, filled and shuffled: refused, or still a model."""
    seed = int(os.environ.get("HOTCOLD_FUZZ_SEED", time.time_ns() if SECONDS > 2 else 7))
    rng, end = random.Random(seed), time.monotonic() + SECONDS  # noqa: S311 - no secret
    header = good.rindex(b".weight", 0, len(good) - 4096) + 64
    runs = 0
    while time.monotonic() < end or runs < 20:
        data = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 5, 20))):
            at = rng.randrange(header if rng.random() < 0.95 else len(data))
            kind = rng.randrange(5)
            if kind == 0:
                data[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                value = rng.choice((0, 1, 2**31, 2**32 - 1, BIG, 2**63, 2**64 - 1))
                data[at : at + 8] = struct.pack("<Q", value)
            elif kind == 2:
                size = rng.randrange(1, 64)
                data[at : at + size] = rng.randbytes(size)
            elif kind == 3:
                del data[at : at + rng.randrange(1, 32)]
            else:
                other = rng.randrange(header)
                data[at:at] = good[other : other + rng.randrange(1, 64)]
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        path = tmp_path / "m.gguf"
        path.write_bytes(data)
        try:
            outcome(path, tmp_path / "c")
        except BaseException:
            (Path(os.environ.get("TMPDIR", "/tmp")) / f"fuzz-{seed}-{runs}.gguf").write_bytes(data)
            print(f"seed {seed}, run {runs}")
            raise
        runs += 1
    print(f"{runs} files, seed {seed}")


def test_random_tokenizer_models(tmp_path: Path) -> None:
    good = model_bytes()
    rng, end, runs = random.Random(7), time.monotonic() + SECONDS / 2, 0  # noqa: S311 - no secret
    while time.monotonic() < end or runs < 20:
        data = bytearray(good)
        for _ in range(rng.choice((1, 3, 10))):
            at = rng.randrange(len(data))
            data[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(4))
        (tmp_path / "tokenizer.model").write_bytes(data)
        try:
            read_tokenizer(tmp_path).encode("Hello")
        except HotcoldError as error:
            assert "\n" not in str(error)
        except Exception as error:  # the library's, for text it has no token for
            assert "token" in str(error).lower() or "unk" in str(error).lower(), error
        runs += 1
