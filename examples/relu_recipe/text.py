"""Text to token windows on disk, and the order in which a training sees them.

Called once at the start; a later start finds the files and reads nothing again. Windows are those
of `hotcold profile` and `hotcold evaluate`: each begins with the tokenizer's own `<s>`, so that
figures agree. No model in here.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray

from hotcold.native.errors import ConfigError
from hotcold.runtime.files.atomic import write_atomically
from hotcold.runtime.text.tokenizer import Tokenizer
from hotcold.runtime.text.windows import file_bytes, token_windows
from relu_recipe.recipe import Recipe

HELD_BACK = 20  # one window in so many is for the report, where there is no --validation
VOCABULARY_BYTES = 1 << 26  # of text that a new tokenizer is made from
SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_PIECE = 1 << 16


@dataclass(frozen=True)
class TokenWindows:
    """Windows of token ids.

    Args:
        train_WT: what is trained on, W windows of T tokens.
        report_WT: what perplexity and activations are measured on.
    """

    train_WT: NDArray[np.int32]
    report_WT: NDArray[np.int32]

    def batch(self, step: int, size: int, seed: int) -> torch.Tensor:
        """The windows of one update, [size, T]: every window once an epoch, shuffled by epoch."""
        rows: list[int] = []
        count = len(self.train_WT)
        at, end = step * size, (step + 1) * size
        while at < end:
            epoch, place = divmod(at, count)
            order_W = np.random.default_rng((seed, epoch)).permutation(count)
            rows += order_W[place : place + end - at].tolist()
            at += min(count - place, end - at)
        return torch.from_numpy(self.train_WT[rows].astype(np.int64))


def prepare_text(recipe: Recipe) -> TokenWindows:
    """Tokenizer and windows in the work folder, made where they are not there yet.

    Raises:
        ConfigError: a file that cannot be read or is not UTF-8, or too little text.
        CheckpointError: the source has no usable tokenizer.
    """
    folder = recipe.work
    if not (folder / "tokenizer.json").is_file():
        if recipe.source is not None:
            _copy_tokenizer(recipe.source, folder)
        else:
            _train_tokenizer(recipe, folder)
    tokenizer = Tokenizer.load(folder)
    if not (folder / "train.npy").is_file():
        train, held = _split(recipe, tokenizer)
        _save(folder / "report.npy", held)
        _save(folder / "train.npy", train)
    report_WT = np.load(folder / "report.npy", mmap_mode="r")
    keep = max(1, recipe.report_tokens // report_WT.shape[1])
    spread = np.unique(np.linspace(0, len(report_WT) - 1, min(keep, len(report_WT))).astype(int))
    return TokenWindows(np.load(folder / "train.npy", mmap_mode="r"), np.array(report_WT[spread]))


def _split(recipe: Recipe, tokenizer: Tokenizer) -> tuple[list[Any], list[Any]]:
    """Full windows to train on and to report on; no window is in both."""
    train = _full(recipe.texts, tokenizer, recipe.context)
    if recipe.validation:
        held = _full(recipe.validation, tokenizer, recipe.context)
    else:
        held = train[HELD_BACK - 1 :: HELD_BACK]
        train = [w for i, w in enumerate(train) if i % HELD_BACK != HELD_BACK - 1]
    if not train or not held:
        which = "--validation" if recipe.validation and not held else "--text"
        least = 1 if recipe.validation else HELD_BACK
        raise ConfigError(
            f"{which} makes fewer than {least} windows of {recipe.context} tokens; give more text "
            "or a smaller --context"
        )
    return train, held


def _full(paths: Sequence[Path], tokenizer: Tokenizer, context: int) -> list[NDArray[np.int32]]:
    windows = token_windows(list(paths), tokenizer, context)
    return [np.array(ids, np.int32) for ids, _ in windows if len(ids) == context]


def _save(path: Path, windows: Sequence[NDArray[np.int32]]) -> None:
    temporary = path.with_name(f".{path.name}")
    with open(temporary, "wb") as file:
        np.save(file, np.stack(windows), allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _pieces(paths: Sequence[Path]) -> Iterator[str]:
    """Text of the files, at most VOCABULARY_BYTES of it, evenly from their beginnings."""
    for path in paths:
        left = min(file_bytes(path), VOCABULARY_BYTES // len(paths))
        try:
            with open(path, encoding="utf-8", newline="") as file:
                while left > 0 and (piece := file.read(min(_PIECE, left))):
                    left -= len(piece)
                    yield piece
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"text file {path} is not UTF-8 ({error.reason}); convert it first"
            ) from None
        except OSError as error:
            raise ConfigError(f"text file {path} cannot be read: {error.strerror}") from error


def _train_tokenizer(recipe: Recipe, folder: Path) -> None:
    """A byte-level BPE of the texts, `<s>` put first, as the embedded model has it."""
    pieces = list(_pieces(recipe.texts))  # read before the library does: its errors say no file
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=recipe.vocab,
        min_frequency=2,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(pieces, trainer)
    begin = SPECIAL["bos_token"]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    said = {"tokenizer_class": "PreTrainedTokenizerFast", **SPECIAL, "add_prefix_space": False}
    said |= {"clean_up_tokenization_spaces": False, "model_max_length": recipe.context}
    _write_json(folder / "tokenizer_config.json", said)
    _write_json(folder / "special_tokens_map.json", SPECIAL)
    write_atomically(folder / "tokenizer.json", tokenizer.to_str().encode())


def _copy_tokenizer(source: Path, folder: Path) -> None:
    Tokenizer.load(source)  # says what is wrong with it
    if not (source / COMPANIONS[0]).is_file():
        raise ConfigError(f"--from {source} has no tokenizer.json; convert its tokenizer first")
    for name in reversed(COMPANIONS):  # tokenizer.json last: it says that all are there
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / f".{name}")
            os.replace(folder / f".{name}", folder / name)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(data, indent=1) + "\n").encode())
