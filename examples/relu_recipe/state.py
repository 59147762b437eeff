"""The checkpoint of a training: weights, optimiser and control in one safetensors file.

One file, replaced as a whole, is the old or the new state whatever happens in between. Floats in
its header are written in full (`repr`) and tensors in float32, so a resumed training computes the
same numbers as an uninterrupted one. No pickle.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from hotcold.native.errors import CheckpointError, ConfigError
from hotcold.runtime.files.atomic import write_atomically

FILE_NAME = "state.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds.

    Args:
        step: updates done.
        numbers: the control's scalars.
        tensors: by name.
    """

    step: int
    numbers: dict[str, float]
    tensors: dict[str, torch.Tensor]


def save_state(
    folder: Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    rate_LN: torch.Tensor,
    numbers: dict[str, float],
) -> None:
    """Replace the checkpoint.

    Raises:
        ConfigError: the folder cannot be written.
    """
    tensors = {"rate": rate_LN.contiguous()}
    for name, value in model.named_parameters():
        tensors[f"weight.{name}"] = value.detach().contiguous()
        for moment in _MOMENTS:
            if value in optimizer.state:
                tensors[f"{moment}.{name}"] = optimizer.state[value][moment].contiguous()
    header = {"step": json.dumps(step), "numbers": json.dumps(numbers)}
    try:
        write_atomically(folder / FILE_NAME, save(tensors, metadata=header))
    except OSError as error:
        raise ConfigError(f"cannot write {folder / FILE_NAME}: {error.strerror}") from error


def read_state(folder: Path) -> Saved | None:
    """The checkpoint; None where there is none yet.

    Raises:
        CheckpointError: it is damaged.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        return Saved(int(json.loads(header["step"])), json.loads(header["numbers"]), tensors)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); give --overwrite to start again"
        ) from error


def load_state(saved: Saved, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's weights and moments where they belong.

    Raises:
        CheckpointError: it is of another model.
    """
    with torch.no_grad():
        for name, value in model.named_parameters():
            found = saved.tensors.get(f"weight.{name}")
            if found is None or found.shape != value.shape:
                raise CheckpointError(
                    f"the checkpoint does not fit the model at {name}; give --overwrite to start "
                    "again"
                )
            value.copy_(found)
            moments: dict[str, Any] = {
                moment: saved.tensors[f"{moment}.{name}"].to(value.device).clone()
                for moment in _MOMENTS
                if f"{moment}.{name}" in saved.tensors
            }
            if moments:
                optimizer.state[value] = {"step": torch.tensor(float(saved.step)), **moments}


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Keep a second training out of the same folder for as long as this one runs.

    Raises:
        ConfigError: another one holds it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"another training runs in {folder}; give another --out") from None
        yield
    finally:
        os.close(handle)
