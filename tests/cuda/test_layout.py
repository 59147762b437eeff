"""What a GPU executor lays out is what the runtime counts: real shapes, without a GPU."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hotcold.native.abi.names import DTYPES
from hotcold.native.gpu import cuda_plugin
from hotcold.runtime.engine.gpu_memory import pass_bytes, table_bytes
from hotcold.runtime.engine.prompt import piece_rows, prompt_bytes, resident_bytes
from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.offline.plant.shapes import find_shape

ROOT = Path(__file__).resolve().parents[2]
CONTEXT, BATCH, AHEAD = 1024, 32, 1
SHAPES = ["tiny", "tiny-opt", "llama2-13b", "opt-350m", "opt-6.7b", "opt-30b", "falcon-40b"]
Layout = Callable[..., int]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    compiler = cuda_plugin.find_compiler()
    if compiler is None:
        pytest.skip("no nvcc on this machine")
    program = tmp_path_factory.mktemp("layout") / "layout"
    parts = ("model", "prompt_memory", "predictor", "mailbox")
    units = ["tests/cuda/layout.cu", *(f"native/cuda/{part}.cu" for part in parts)]
    command = [compiler, "-std=c++17", "-cudart", "static", "-o", str(program), *units]
    built = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr

    def run(spec: ModelSpec, rows: int, hidden: int, sign: bool, int8: bool) -> int:
        arguments = (
            *(spec.n_layers, spec.d_model, spec.n_neurons, spec.n_heads, spec.n_kv_heads),
            *(spec.head_dim, spec.vocab_size, CONTEXT, DTYPES[spec.dtype]),
            *(spec.norm == "layer", spec.biases, spec.ffn == "reglu", spec.embed_dim or 0),
            *(spec.final_norm, BATCH, rows, piece_rows(spec), hidden, sign, int8, AHEAD, 0),
        )
        words = [str(int(argument)) for argument in arguments]
        done = subprocess.run([program, *words], capture_output=True, text=True, check=True)
        return int(done.stdout)

    return run


def counted(spec: ModelSpec, rows: int, hidden: int, masks: int, int8: bool) -> int:
    """What choose_gpu sets aside beside the context: modules are on the host here."""
    shared, tables = pass_bytes(spec, BATCH), table_bytes(spec, CONTEXT, BATCH)
    if not rows:
        return shared + tables
    need = prompt_bytes(spec, rows, hidden, masks, int8)
    return max(shared, need) + resident_bytes(spec) + tables


def biases_of(spec: ModelSpec, hidden: int, sign: bool, int8: bool) -> int:
    """What of attention and predictors stays on the device wherever they are; they count it."""
    attention = 4 * (spec.q_dim + 2 * spec.kv_dim + 2 * spec.d_model) * spec.biases
    scales = 4 * (hidden + spec.n_neurons) * int8 if hidden else 0
    signs = 4 * (spec.n_neurons + spec.d_model) if sign else 0
    return spec.n_layers * (attention + scales + signs + 8 * 256)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("hidden", "sign", "int8"), [(0, False, False), (960, False, True), (0, True, True)]
)
@pytest.mark.parametrize("rows", [0, 64, 512])
def test_a_dense_pass_takes_what_is_set_aside(
    layout: Layout, shape: str, hidden: int, sign: bool, int8: bool, rows: int
) -> None:
    spec = find_shape(shape).spec(None, "float16")
    masks = AHEAD + 1 if hidden or sign else 0
    taken = layout(spec, rows, hidden, sign, int8) - biases_of(spec, hidden, sign, int8)
    assert taken <= counted(spec, rows, hidden, masks, int8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("hidden", "sign"), [(0, False), (960, False), (0, True)])
def test_each_token_of_a_pass_is_counted(
    layout: Layout, shape: str, hidden: int, sign: bool
) -> None:
    """Both formulas grow alike; no number overflows on the way."""
    spec = find_shape(shape).spec(2, "float16")
    masks = AHEAD + 1 if hidden or sign else 0
    taken, said = (
        [measure(spec, rows) for rows in (1024, 4096)]
        for measure in (
            lambda spec, rows: layout(spec, rows, hidden, sign, False),
            lambda spec, rows: prompt_bytes(spec, rows, hidden, masks, False),
        )
    )
    assert abs((taken[1] - taken[0]) - (said[1] - said[0])) <= 3072 * (4 * 16 + 1) + 16 * 256
    assert taken[1] > taken[0]
