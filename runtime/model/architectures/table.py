"""The table of architectures, and which one a checkpoint has. A new one is added here."""

from hotcold.runtime.model.architectures import (
    arcee,
    falcon,
    llama,
    mistral,
    nemotron,
    opt,
    persimmon,
    qwen,
    sparse_llama,
)
from hotcold.runtime.model.architectures.base import Architecture
from hotcold.runtime.model.architectures.hf_config import Config

ARCHITECTURES: tuple[Architecture, ...] = (
    llama.ARCHITECTURE,
    opt.ARCHITECTURE,
    mistral.BAMBOO,
    arcee.ARCHITECTURE,
    nemotron.ARCHITECTURE,
    falcon.ARCHITECTURE,
    sparse_llama.SPARSE_LLAMA,
    sparse_llama.MINICPM,
    mistral.MISTRAL,
    qwen.QWEN2,
    qwen.QWEN3,
    persimmon.ARCHITECTURE,
)


def find(config: Config) -> Architecture:
    """The architecture of a checkpoint: by `architectures`, else by `model_type`.

    Raises:
        CheckpointError: none of ours.
    """
    names, kind = config.data.get("architectures"), config.data.get("model_type")
    for one in ARCHITECTURES:
        if names == [one.hf_class] or (names is None and kind == one.name):
            return one
    said = f"model type {kind!r}" if names is None else names
    raise config.refuse(
        f"architecture {said!r:.120} is not supported; supported: "
        f"{', '.join(one.hf_class for one in ARCHITECTURES)}"
    )
