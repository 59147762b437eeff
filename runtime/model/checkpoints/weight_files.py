"""Which files of a folder hold its weights: one, shards by their index, or shards by their names.

Called by the safetensors reader. What people have instead of safetensors is named, with the way to
get them; two sets of weights in one folder are refused, because nothing says which is the model.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from hotcold.native.errors import CheckpointError
from hotcold.runtime.files.impostors import impostor
from hotcold.runtime.files.json_files import read_json_object, regular_file

logger = logging.getLogger(__name__)
Info = TypeVar("Info")

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
_QUANTISED = ("quantize_config.json", "quant_config.json")  # of GPTQ and AWQ
_UNFINISHED = (".incomplete", ".part", ".aria2", ".crdownload", ".tmp")
_SAVE = (
    "python -c \"from transformers import AutoModelForCausalLM as M; M.from_pretrained('{folder}'"
    "{how}).save_pretrained('NEW')\""
)
# What transformers also saves: pattern, what it is, and from_pretrained's argument to read it.
_OTHERS: tuple[tuple[str, str, str], ...] = (
    ("pytorch_model*.bin", "a pickle, which is never loaded", ", dtype='auto'"),
    ("tf_model*.h5", "HDF5 of TensorFlow, which is not read", ", from_tf=True"),
    ("flax_model*.msgpack", "msgpack of Flax, which is not read", ", from_flax=True"),
)
_TOOLS: tuple[tuple[str, str], ...] = (
    ("zero_to_fp32.py", "DeepSpeed's; run `python zero_to_fp32.py . NEW --safe_serialization`"),
    ("pytorch_model_fsdp*", "FSDP's; run `accelerate merge-weights` on it"),
    ("*.distcp", "PyTorch's distributed checkpoint; run `accelerate merge-weights` on it"),
    ("consolidated*.pth", "Meta's own, a pickle, which is never loaded; download the repository "
     "whose name ends in -hf, or convert it with transformers' convert_llama_weights_to_hf.py and "
     "its save_pretrained"),
    ("consolidated*.safetensors", "Mistral's own; download the model-*.safetensors beside them"),
    ("*.gguf", "GGUF, of more than one model; give the file itself"),
    ("*.onnx", "ONNX, which is not supported; give the files it was exported from"),
    ("*.ckpt", "a pickle, which is never loaded; export it with save_pretrained"),
    ("*.pt", "a pickle, which is never loaded; export it with save_pretrained"),
    ("*.bin", "a pickle, which is never loaded; export it with save_pretrained"),
)  # fmt: skip


def listing(names: list[str], limit: int = 4) -> str:
    """The first few names, and how many there are beyond them."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(f"{name:.100}" for name in names[:limit]) + more


@dataclass(frozen=True)
class WeightFiles:
    """The safetensors files of a checkpoint.

    `shards` are in a fixed order; `places` is file by tensor name, as the index has it.
    """

    shards: list[Path]
    index: Path | None = None
    places: Mapping[str, Path] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """All of them, the index first."""
        return [*([] if self.index is None else [self.index]), *self.shards]

    def tensors(self, headers: Mapping[Path, Mapping[str, Info]]) -> dict[str, Info]:
        """What the headers say of every tensor, each taken from its place.

        Raises:
            CheckpointError: a tensor is not where the index has it, or lies in two shards.
        """
        found: dict[str, Path] = dict(self.places)
        for name, path in self.places.items():
            if name not in headers[path]:
                raise CheckpointError(
                    f"{self.index} places tensor {name!r:.100} in {path.name}, which does not "
                    "hold it; download the shards again"
                )
        for path, header in headers.items():
            twice = [name for name in header if found.setdefault(name, path) != path]
            if twice and self.index is None:
                raise CheckpointError(
                    f"{path.parent} holds tensor {twice[0]!r:.100} twice, in "
                    f"{found[twice[0]].name} and {path.name}, and no {INDEX} says which counts; "
                    "download the folder again"
                )
            if twice:
                logger.warning(
                    "%s holds tensors that %s places in other files, which are used: %s",
                    *(path, INDEX, listing(twice)),
                )
        if self.index is not None:
            found = dict(self.places)
        return {name: headers[path][name] for name, path in found.items()}


def weight_files(folder: Path) -> WeightFiles:
    """The safetensors files of a folder.

    Raises:
        CheckpointError: there are none, some are missing, or two sets of them.
    """
    single, index = folder / SINGLE, folder / INDEX
    has_single = single.is_symlink() or single.exists()
    if index.is_symlink() or index.exists():
        places = _places(index)
        shards = sorted(set(places.values()))
        missing = [path for path in shards if not regular_file(path)]
        if has_single and single not in shards:
            if len(missing) < len(shards):
                raise CheckpointError(
                    f"{folder} holds two sets of weights, {SINGLE} and the {len(shards)} shards of "
                    f"{INDEX}, and nothing says which is the model; move one of them away"
                )
            logger.warning("%s names shards that are not there; %s is used", index, single)
            return WeightFiles([single])
        if missing:
            raise _missing(folder, missing, len(shards), f"by {INDEX}")
        return WeightFiles(shards, index, places)
    return WeightFiles([single]) if has_single else WeightFiles(_numbered(folder))


def _places(index: Path) -> dict[str, Path]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no 'weight_map' object; restore the file")
    files: dict[str, Path] = {}
    for name, file in weight_map.items():
        # A bare name only: neither "../x" nor an absolute path may lead out of the folder.
        if not isinstance(file, str) or file in ("", ".", "..") or set(file) & set("/\\\0"):
            raise CheckpointError(
                f"{index} places tensor {name!r:.100} in {file!r:.200}; a shard must be a file "
                f"name inside {index.parent}"
            )
        files[name] = index.parent / file
    return files


def _missing(folder: Path, missing: list[Path], count: int, said_by: str) -> CheckpointError:
    what = next((f"; {path.name} {text}" for path in missing if (text := impostor(path))), "")
    parts = [path.name for path in _content(folder) if path.name.endswith(_UNFINISHED)]
    if not what and parts:
        what = f"; {parts[0]} is a download that did not finish"
    return CheckpointError(
        f"{folder} lacks {len(missing)} of {count} shards ({said_by}): "
        f"{listing([path.name for path in missing])}{what}; download what is missing"
    )


def _numbered(folder: Path) -> list[Path]:
    """Shards that have no index: all of one set, known by their names, or a CheckpointError."""
    found = {path: match for path in _content(folder) if (match := _SHARD.fullmatch(path.name))}
    totals = sorted({int(match[2]) for match in found.values()})
    if not totals:
        raise CheckpointError(next(_no_weights(folder)))
    if len(totals) > 1:
        raise CheckpointError(
            f"{folder} holds shards of two sets, of {totals[0]} and of {totals[1]} files, and no "
            f"{INDEX}; move one set away"
        )
    count = totals[0]
    names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    missing = [folder / name for name in names if not regular_file(folder / name)]
    if missing:
        raise _missing(folder, missing, count, "by the names of the others")
    return [folder / name for name in names]


def _content(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def no_adapter(folder: Path) -> str:
    """Why a folder that holds a LoRA adapter is no model."""
    base = "its base model"
    if regular_file(folder / ADAPTER):
        said = read_json_object(folder / ADAPTER).get("base_model_name_or_path")
        base = f"its base model {said!r:.100}" if isinstance(said, str) else base
    return (
        f"{folder} holds a LoRA adapter ({ADAPTER}) and no model of its own; merge it into {base} "
        "once, with peft: PeftModel.from_pretrained(base, adapter).merge_and_unload()"
        ".save_pretrained(...), and give that folder"
    )


def _no_weights(folder: Path) -> Iterator[str]:
    """What lies there in place of safetensors, and how to get them; the best reason first."""
    names = [path.name for path in _content(folder)]
    if ADAPTER in names or ADAPTER_WEIGHTS in names:
        yield no_adapter(folder)
    for pattern, what, how in _OTHERS:
        if found := sorted(folder.glob(pattern)):
            text = impostor(found[0])
            if "pointer" in text or "link to" in text:
                yield f"{found[0]} {text}"
            yield (
                f"{folder} holds its weights ({listing([p.name for p in found], 2)}) as {what}; "
                f"convert them once: {_SAVE.format(folder=folder, how=how)}, copy the tokenizer's "
                "files to NEW and give that folder"
            )
    others = [name for name in names if name.endswith(".safetensors")]
    marked = [
        n for n in (*_QUANTISED, *others) if n in names and re.search(r"gptq|awq|quant|\dbit", n)
    ]
    if marked:
        yield (
            f"{folder} is quantised ({marked[0]}), which is not supported; use the checkpoint in "
            "float16 or bfloat16 that it was made from"
        )
    for pattern, what in _TOOLS:
        if found := sorted(folder.glob(pattern)):
            yield f"the weights in {folder} ({found[0].name}) are {what}"
    if len(others) == 1:
        yield (
            f"{folder} holds neither {SINGLE} nor {INDEX}, but {others[0]}; rename it to "
            f"{SINGLE} if it is the whole model"
        )
    parts = [name for name in names if name.endswith(_UNFINISHED)]
    rest = f"; {parts[0]} is a download that did not finish" if parts else ""
    if others:
        rest = f"; what {listing(others)} are is not known"
    yield f"{folder} holds neither {SINGLE} nor {INDEX}{rest}; download the weights"
