"""Capture: the feed-forward inputs of every layer over a text, on disk, for training.

One file per layer, `x.{layer}.f16` [tokens, D], filled a batch of windows at a time; `capture.json`
has the progress. An interrupted capture resumes after its last finished batch. What fires is not
stored, because one product with the gate rows gives it.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hotcold.runtime.files.atomic import write_atomically
from hotcold.runtime.files.reserve import reserve
from hotcold.runtime.hardware.lone_pool import lone_pool
from hotcold.runtime.offline.training.dense import DenseModel, token_batches

HEADER = "capture.json"
Report = Callable[[int, float], None]


def capture_inputs(
    model: DenseModel,
    windows: Sequence[Sequence[int]],
    folder: Path,
    fingerprint: str,
    workers: int,
    progress: Report | None = None,
) -> list[NDArray[np.float16]]:
    """Inputs [T, D] of every layer, as read-only maps of files in a folder.

    Args:
        model: the model.
        windows: token ids; T is their total length.
        folder: where the files go or already are; made if missing.
        fingerprint: identity of model and windows: files of another one are overwritten.
        workers: batches run at a time.
        progress: called with tokens done and their share.

    Raises:
        BudgetError: the disk is too full for the files.
    """
    spec, total = model.spec, sum(len(window) for window in windows)
    batches = token_batches(windows, 2048)
    starts = np.cumsum([0, *[ids.numel() for ids, _ in batches]])
    header: dict[str, Any] = {"fingerprint": fingerprint, "tokens": total, "done": 0}
    found = _read_header(folder / HEADER)
    shape = (total, spec.d_model)
    paths = [folder / f"x.{layer}.f16" for layer in range(spec.n_layers)]
    if {**found, "done": 0} == header and all(path.is_file() for path in paths):
        header["done"] = int(found["done"])
    folder.mkdir(parents=True, exist_ok=True)
    if header["done"] == 0:
        for path in paths:
            path.unlink(missing_ok=True)
    reserve(
        *(paths, np.dtype(np.float16).itemsize * total * spec.d_model),
        f"the inputs of {spec.n_layers} layers for {total} tokens",
        "make room there, train on fewer tokens (--max-tokens) or write to another disk (--out)",
    )
    maps = [np.memmap(path, np.float16, "r+", shape=shape) for path in paths]

    def run(index: int) -> None:
        begin = int(starts[index])

        def keep(layer: int, x_RD: torch.Tensor, _residual: torch.Tensor) -> None:
            maps[layer][begin : begin + len(x_RD)] = x_RD.to(torch.float16).numpy()

        with torch.inference_mode():
            model.hidden(batches[index][0], visit=keep)

    with lone_pool(workers) as pool:
        step = max(1, 4 * workers)
        for at in range(int(header["done"]), len(batches), step):
            list(pool.map(run, range(at, min(at + step, len(batches)))))
            for inputs in maps:
                inputs.flush()
            header["done"] = min(at + step, len(batches))
            write_atomically(folder / HEADER, json.dumps(header).encode())
            if progress is not None:
                progress(int(starts[header["done"]]), float(starts[header["done"]] / total))
    return [np.memmap(path, np.float16, "r", shape=shape) for path in paths]


def _read_header(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}
