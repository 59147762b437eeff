"""`hotcold bench prompt` without a GPU: its refusal, and its words on made-up figures."""

import pytest
from support.command import Run, only_line

from hotcold.actors.cli.bench.bench_prompt import rows_of, sentence

RESULT = {
    "sparse": {"64": 160.0, "512": 161.25},
    "dense": {"64": 170.04, "512": 1360.0},
    "switch_tokens": 65,
    "sparse_block_ms": 200.0,
    "dense_pass_ms": 376.5,
    "block": 32,
    "rows": 512,
    "streamed_gb": 15.0,
    "streamed_gb_per_s": 39.8,
}


def test_without_a_gpu_it_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTCOLD_CUDA", "off")
    ended = run("bench", "prompt")
    assert ended.code == 2
    assert "needs a GPU" in only_line(ended.err)


def test_its_words() -> None:
    assert rows_of(RESULT) == [("64", "160.0", "170.0"), ("512", "161.2", "1360.0")]
    assert sentence(RESULT) == (
        "dense from 65 tokens on: 200.0 ms a sparse block of 32, 376.5 ms a dense pass of up to "
        "512, 15.00 GB streamed at 39.8 GB/s"
    )
    assert sentence({**RESULT, "switch_tokens": None}).startswith("prompts stay sparse: 200.0 ms")
