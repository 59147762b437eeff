"""Kernel files of the user's own: what is refused, what is used, and that nothing falls back."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.checkout import ROOT

from hotcold.native.bindings import kernels
from hotcold.native.errors import BackendError, ConfigError
from hotcold.runtime.engine import variant
from hotcold.runtime.engine.prepare import prepare_kernels

EXAMPLE = ROOT / "examples" / "05_own_kernel.c"
GOOD = """
#include "variant.h"
static void dot(const void *const *rows, const void *const *ahead, int64_t n, const float *x,
                int64_t d, int64_t scales, float *out) {
    (void)ahead, (void)scales;
    for (int64_t i = 0; i < n; i++) {
        out[i] = 0;
        for (int64_t j = 0; j < d; j++)
            out[i] += ((const float *)rows[i])[j] * x[j];
    }
}
HC_VARIANT(.dot = {[HC_F32] = dot})
"""


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    variant.use_kernels(None)
    kernels.force_cpu_variant(None)


def file(folder: Path, text: str, name: str = "mine.c") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_the_example_passes_and_is_used() -> None:
    tested = variant.prepare_variant(EXAMPLE)
    variant.use_kernels(tested)
    assert kernels.active_cpu_variant() == tested.name == f"05_own_kernel.c@{tested.digest[:8]}"
    w = np.full((3, 40), 0.5, np.float16)
    np.testing.assert_array_equal(kernels.gemv(w, np.ones((2, 40), np.float32)), 20)
    variant.use_kernels(None)
    assert kernels.active_cpu_variant() == kernels.cpu_variants()[0]


def test_a_file_is_tested_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file(tmp_path, GOOD)
    first = variant.prepare_variant(path)
    with monkeypatch.context() as patch:
        patch.setattr(variant, "check_in_child", lambda *_: pytest.fail("tested again"))
        assert variant.prepare_variant(path) == first
    path.write_text(GOOD.replace("out[i] = 0;", "out[i] = 0 * d;"))
    with pytest.raises(ConfigError, match="changed since it was tested"):
        variant.use_kernels(first)
    assert variant.prepare_variant(path).digest != first.digest


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (("* x[j]", "* x[j] * 1.001f"), ConfigError, r"dot, float32, d 1, .* float64 gives"),
        (("j < d", "j <= d"), ConfigError, "ended with SIGBUS in dot, float32, d 1"),
        (
            ("[j] * x[j]", "[n > 1 ? j : d - 1 - j] * x[n > 1 ? j : d - 1 - j]"),
            ConfigError,
            "must have one order",
        ),
        (("out[i] = 0;", "out[i] = x[1 << 30];"), ConfigError, "ended with SIG"),
        (("int64_t j = 0", "in64_t j = 0"), ConfigError, r"does not compile: .*in64_t"),
        (("(void)ahead", "gone(ahead)"), (BackendError, ConfigError), "gone"),
        (("HC_VARIANT(", "extern int none; //"), BackendError, "exports no table"),
    ],
)
def test_what_is_wrong_is_refused(
    tmp_path: Path,
    change: tuple[str, str],
    error: type[Exception] | tuple[type[Exception], ...],
    match: str,
) -> None:
    assert change[0] in GOOD
    with pytest.raises(error, match=match):
        variant.prepare_variant(file(tmp_path, GOOD.replace(*change)))


def test_another_abi_is_refused(tmp_path: Path) -> None:
    text = "\n#undef HC_ABI_VERSION\n#define HC_ABI_VERSION 999\nHC_VARIANT("
    with pytest.raises(BackendError, match="has ABI 999, this library has"):
        variant.prepare_variant(file(tmp_path, GOOD.replace("\nHC_VARIANT(", text)))


def test_a_hang_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variant, "CHECK_S", 4)
    hang = GOOD.replace("out[i] = 0;", 'out[i] = 0; while (1) __asm__ volatile("");')
    with pytest.raises(ConfigError, match="not done after 4 s"):
        variant.prepare_variant(file(tmp_path, hang))


def test_no_file_and_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="there is no kernel file"):
        variant.prepare_variant(tmp_path / "none.c")
    monkeypatch.setenv("CC", "no-such-compiler -O1")
    with pytest.raises(BackendError, match="'no-such-compiler' cannot be run; install gcc"):
        variant.prepare_variant(file(tmp_path, GOOD))


def test_an_engine_asks_by_option_or_by_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOTCOLD_CPU", raising=False)
    assert prepare_kernels(None) is None
    assert prepare_kernels("ref") == "ref"
    with pytest.raises(BackendError, match=r"'avx1024' are not supported here; available: .*ref"):
        prepare_kernels("avx1024")
    monkeypatch.setenv("HOTCOLD_CPU", "ref")
    assert prepare_kernels(None) is None  # the C code reads it
    monkeypatch.setenv("HOTCOLD_CPU", str(file(tmp_path, GOOD)))
    assert isinstance(prepare_kernels(None), variant.Variant)
    assert prepare_kernels("ref") == "ref"


def test_nothing_falls_back_where_the_file_was_not_loaded() -> None:
    code = (
        "import numpy as np; from hotcold.native.bindings import kernels; "
        "one = np.ones((1, 2), np.float32)"
        "; kernels.gemv(one, one)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HOTCOLD_CPU": "somewhere/mine.c"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "HOTCOLD_CPU names the file 'somewhere/mine.c'" in done.stderr
    assert "and was not" in done.stderr


def test_dot_is_made_of_dot_batch_and_the_other_way_round(tmp_path: Path) -> None:
    batch = """
#include "variant.h"
static void batch(const void *const *rows, int64_t n, const float *const *xs, int32_t n_x,
                  int64_t d, int64_t scales, float *out) {
    (void)scales;
    for (int64_t i = 0; i < n * n_x; i++) {
        out[i] = 0;
        for (int64_t j = 0; j < d; j++)
            out[i] += ((const float *)rows[i / n_x])[j] * xs[i % n_x][j];
    }
}
HC_VARIANT(.dot_batch = {[HC_F32] = batch})
"""
    rng = np.random.default_rng(0)
    w, x = rng.random((5, 33), np.float32), rng.random((4, 33), np.float32)
    results = []
    for name, text in (("dot.c", GOOD), ("batch.c", batch)):
        variant.use_kernels(variant.prepare_variant(file(tmp_path, text, name)))
        results.append(kernels.gemv(w, x))
        results.append(np.concatenate([kernels.gemv(w, x[b : b + 1]) for b in range(4)]))
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def test_a_session_computes_with_the_file(tmp_path: Path) -> None:
    from hotcold.runtime.engine.deployment import deploy, solve
    from hotcold.runtime.engine.executors.factory import roles
    from hotcold.runtime.engine.executors.session import LocalSession
    from hotcold.runtime.engine.prepare import prepare_model
    from hotcold.runtime.options.config import EngineConfig, Sampling

    text = GOOD + "\n/* a session of its own */\n"
    ids = []
    for chosen in (str(file(tmp_path, text)), "ref"):
        prepared = prepare_model(EngineConfig(kernels=chosen, dtype="float32", context=64))
        deployment = deploy(prepared, solve(prepared))
        with LocalSession(deployment) as session:
            name = kernels.active_cpu_variant()
            assert name == "ref" if chosen == "ref" else name.startswith("mine.c@")
            assert f"kernels {name}" in roles(deployment)["cpu"]
            tokens = session.generate("Once upon a time", Sampling(max_tokens=12))
            ids.append([token.id for token in tokens])
    assert ids[0] == ids[1]
    assert len(ids[0]) == 12
