"""bench kernels on a small buffer: every case is there, counts what it touches, and adds up."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.checkout import ROOT

from hotcold.actors.cli.main import main
from hotcold.native.abi.formats import FORMATS
from hotcold.native.bindings import kernels
from hotcold.native.bindings.timing import timed_read
from hotcold.native.errors import BudgetError, ConfigError
from hotcold.runtime.bench.gpu_kernels import gpu_cases, made_records
from hotcold.runtime.bench.kernels import ColdBuffer, Settings, doubts, measure
from hotcold.runtime.model.checkpoints.quantised import STORED

SMALL = {"widths": (128,), "buffer_bytes": 8 << 20, "samples": 3}


@pytest.mark.parametrize("dtype", list(FORMATS))
@pytest.mark.parametrize("d", [64, 200])
def test_a_gpu_case_fires_where_it_says(dtype: str, d: int) -> None:
    """And an int8 case counts scales, not what pads them."""
    fires_N, of = np.arange(40) % 3 == 0, FORMATS[dtype]
    records = made_records(40, d, dtype, fires_N)
    parts = np.split(records, 3, axis=1)
    gate, up, down = (STORED[dtype].unpack(part, d) for part in parts)
    x_D = np.full(d, 0.01)
    np.testing.assert_array_equal(gate @ x_D > 0, fires_N)
    assert (up > 0).all() and (down > 0).all() and np.abs(gate).max() < 2e4
    settings = Settings(
        cases=("sparse_ffn", "gate_first"), widths=(d,), densities=(50,), dtype=dtype
    )
    n, row = 4 * d, d + 2 * -(-d // 64) if dtype == "int8" else d * of.weight_bytes
    listed, first = (case.bytes for _, _, case in gpu_cases(settings))
    assert (listed, first) == (n // 2 * 3 * row, n * row + n // 2 * 2 * row)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_case_and_the_bytes_it_touches(dtype: str) -> None:
    result = measure(
        Settings(densities=(10, 100), dtype=dtype, threads=(1, 2), **SMALL)  # type: ignore[arg-type]
    )
    row = 128 * (4 if dtype == "float32" else 2)
    n = min(512, (8 << 20) // (3 * row))
    full = result["sparse_ffn"]["d128"]["density100"]
    assert full["threads1"]["bytes"] == full["threads2"]["bytes"] == n * 3 * row
    tenth = result["sparse_ffn"]["d128"]["density10"]["threads1"]
    assert 0.09 < tenth["bytes"] / (n * 3 * row) < 0.11
    first = result["gate_first"]["d128"]["density10"]["threads1"]["bytes"]
    assert n * row * 1.05 < first < n * row * 1.4  # 1 + 2 * 0.1, by chance
    assert result["gate_first"]["d128"]["density100"]["threads1"]["bytes"] == n * 3 * row
    assert result["gemv"]["d128"]["threads1"]["bytes"] == 128 * row
    assert result["attention"]["d128"]["threads1"]["bytes"] == 2 * 1024 * 128 * 4
    for figures in (tenth, full["threads2"]):
        share = figures["gb_per_s"] / figures["read_gb_per_s"]
        assert figures["bandwidth_fraction"] == pytest.approx(share)
        assert figures["time_s"] * figures["gb_per_s"] * 1e9 == pytest.approx(figures["bytes"])
    assert result["sparse_ffn"]["d128"]["density10"]["bandwidth_fraction"] == min(
        result["sparse_ffn"]["d128"]["density10"][f"threads{t}"]["bandwidth_fraction"]
        for t in (1, 2)
    )


def test_reading_reads_all_of_each_row_once() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 1 << 63, (37, 32), np.uint64)
    at = (-rows.ctypes.data % 64) // 8
    ids = rng.permutation(35)[:13].astype(np.int32)
    cases = [(s, w, o) for s in (1, 4, 8) for w in (64, 192, 256) for o in (0, 2)]
    for side, width, off in cases:  # off 64 bytes: the narrow loads
        flat = rows.ravel()[at + off :]
        read = timed_read(256, width, side, None)
        _, size = read(int(flat.ctypes.data), ids)
        assert size == 13 * width
        parts = [flat[i * 32 : i * 32 + width // 8] for i in ids]
        parts += [parts[-1]] * (-13 % side)  # the last row fills the last group up
        assert read.args.fold == np.bitwise_xor.reduce(np.concatenate(parts))
    with pytest.raises(ConfigError, match="whole lines of 64"):
        timed_read(256, 100, 1, None)(int(flat.ctypes.data), ids)


@pytest.mark.parametrize(
    ("share", "steadiness", "told"),
    [(0.9, 0.9, ""), (1.2, 0.9, "warm cache"), (1.2, 0.3, "was busy"), (0.9, 0.3, "was busy")],
)
def test_doubts_are_told(share: float, steadiness: float, told: str) -> None:
    good = {"bandwidth_fraction": 0.9, "steadiness": 0.9}
    case = {"threads1": good, "threads2": {"bandwidth_fraction": share, "steadiness": steadiness}}
    said = " ".join(doubts({"dtype": "float16", "gemv": {"d4096": case}}))
    assert told in said
    assert bool(told) == bool(said)


def test_a_buffer_that_does_not_fit_is_refused() -> None:
    with pytest.raises(BudgetError, match="lower --buffer"):
        ColdBuffer(1 << 60, "float16")
    with pytest.raises(ConfigError, match="too small for d 4096"):
        measure(Settings(widths=(4096,), buffer_bytes=1 << 20))


def test_the_command_times_a_variant_beside_the_built_in(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = kernels.active_cpu_variant()
    options = "--d 128 --density 10 --buffer 8MiB --samples 3 --threads 1 --json".split()
    example = str(ROOT / "examples" / "05_own_kernel.c")
    assert main(["bench", "kernels", *options, "--variant", example]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    case = result["sparse_ffn"]["d128"]["density10"]
    assert case["threads1"]["variant"]["gb_per_s"] > 0
    assert sum(line.split()[-7] == "variant" for line in lines[1:-1]) == 4
    assert kernels.active_cpu_variant() == before


def test_the_command_refuses_a_wrong_variant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.c"
    text = (ROOT / "examples" / "05_own_kernel.c").read_text()
    wrong.write_text(text.replace("widen(w + 8)", "widen(w + 7)"))
    assert main(["bench", "kernels", "--variant", str(wrong)]) == 2
    said = capsys.readouterr()
    assert "wrong.c is refused: dot, float16, d 16" in said.err
    assert "GB/s" not in said.out
