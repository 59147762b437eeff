"""PowerInfer's own files, out and in: a model with predictors, counts, and which neurons a GPU has.

    model.powerinfer.gguf                    weights, fc1 and fc2 of every layer (weights/gguf.py)
    activation/activation_{i}.pt             how often each neuron of a layer fired
    model.powerinfer.gguf.generated.gpuidx   gpu_idx [N], 1: on the GPU; gpu_bucket, their ids

The index is GGUF version 3 with PowerInfer's first bytes and its old id of int32. Source:
the export_split of PowerInfer's solver.
"""

import os
import secrets
import shutil
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hotcold.native.errors import CheckpointError, ConfigError
from hotcold.runtime.files.atomic import write_atomically
from hotcold.runtime.model.checkpoints.bundle import Bundle
from hotcold.runtime.model.gguf.header import POWERINFER_MAGIC, Tensor, read_header
from hotcold.runtime.plan.plan import Plan
from hotcold.runtime.predictors.predictor_file import load_predictors
from hotcold.runtime.profiles.profile import ActivationProfile
from hotcold.runtime.weights.gguf import write_gguf

PLAIN_FILE = "model.gguf"
FILE, COUNTS, INDEX = "model.powerinfer.gguf", "activation", ".generated.gpuidx"
ARCHITECTURE = "generic.gpu_index"
_ALIGNMENT, _VERSION = 32, 3
_U32, _U64, _STRING, _OLD_I32 = 4, 10, 8, 18


def export_gguf(
    bundle: Bundle, out: Path, powerinfer: bool, plan: Plan | None = None
) -> list[Path]:
    """Write a model as GGUF into a new folder, complete or not at all; returns its files.

    Raises:
        ConfigError: the folder is not empty or cannot be written, or the model has no such file.
    """
    out = out.expanduser().absolute()
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} is there and no empty folder; remove it or give another name")
    folder = out.with_name(f".{out.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        folder.mkdir(parents=True)
        if powerinfer:
            export_powerinfer(bundle, folder, plan)
        else:
            write_gguf(bundle, folder / PLAIN_FILE)
        os.replace(folder, out)
    except OSError as error:
        raise ConfigError(
            f"cannot write {out} ({error.strerror or error}); give a folder that can be written"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return sorted(path for path in out.rglob("*") if path.is_file())


def export_powerinfer(bundle: Bundle, folder: Path, plan: Plan | None = None) -> None:
    """Write a model's files for PowerInfer into an existing folder, with a plan its index, too.

    Raises:
        ConfigError: no Llama in float16, no predictors, or predictors that its form cannot hold;
            or the plan is another model's.
    """
    if bundle.predictors_path is None:
        raise ConfigError(
            f"{bundle.name} has no predictors, which PowerInfer's file holds; train some with "
            "`hotcold train-predictors`"
        )
    layers = load_predictors(bundle.predictors_path, bundle.spec).layers
    first = layers[0]
    fits = all(one.bias_N is None and one.input == "residual" for one in layers)
    if not fits or any(one.threshold != first.threshold for one in layers):
        raise ConfigError(
            f"the predictors of {bundle.name} have biases, thresholds by layer, or read the normed "
            "input; PowerInfer's have one threshold, no biases, and read the residual stream"
        )
    if plan is not None and plan.model != bundle.checksum:
        raise ConfigError(f"the plan is of another model ({plan.model[:12]}); solve this one's")
    half = [(one.fc1, one.fc2) for one in layers if one.fc1 is not None and one.fc2 is not None]
    matrices = [tuple(m.astype(np.float16) for m in pair) for pair in half]
    write_gguf(bundle, folder / FILE, [(a, b) for a, b in matrices], first.threshold)
    if bundle.profile_path is not None:
        _write_counts(ActivationProfile.load(bundle.profile_path), folder / COUNTS)
    if plan is not None:
        write_gpu_index(plan, folder / f"{FILE}{INDEX}")


def _write_counts(profile: ActivationProfile, folder: Path) -> None:
    import torch  # imported here: it costs a second, too much for actors that restart

    folder.mkdir(exist_ok=True)
    for index, counts_N in enumerate(profile.counts_LN):
        torch.save(torch.from_numpy(counts_N.copy()), folder / f"activation_{index}.pt")


def write_gpu_index(plan: Plan, path: Path) -> None:
    """Write which neurons a plan's first device has, atomically."""
    tensors: list[tuple[str, NDArray[np.int32]]] = []
    for layer, device_N in enumerate(plan.device_LN):
        own_N = device_N == 0
        tensors.append((f"blk.{layer}.gpu_idx", own_N.astype(np.int32)))
        tensors.append((f"blk.{layer}.gpu_bucket", np.flatnonzero(own_N).astype(np.int32)))
    keys = [
        _string("general.architecture") + struct.pack("<I", _STRING) + _string(ARCHITECTURE),
        _string(f"{ARCHITECTURE}.block_count") + struct.pack("<II", _U32, len(plan.device_LN)),
        _string("split.vram_capacity")
        + struct.pack("<IQ", _U64, plan.bytes_by_device[plan.devices[0]]),
    ]
    head = (
        POWERINFER_MAGIC + struct.pack("<IQQ", _VERSION, len(tensors), len(keys)) + b"".join(keys)
    )
    data = b""
    for name, values in tensors:
        head += _string(name) + struct.pack("<IQIQ", 1, len(values), _OLD_I32, len(data))
        raw = values.astype("<i4").tobytes()
        data += raw + bytes(-len(raw) % _ALIGNMENT)
    write_atomically(path, head + bytes(-len(head) % _ALIGNMENT) + data)


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def read_gpu_index(path: Path) -> NDArray[np.bool_]:
    """Which neurons [L, N] an index puts on the GPU.

    Raises:
        CheckpointError: no index, or one that contradicts itself.
    """
    header = read_header(path)
    said = header.keys.get("general.architecture")
    layers = header.keys.get(f"{ARCHITECTURE}.block_count")
    if said != ARCHITECTURE or type(layers) is not int or not 0 < layers <= len(header.tensors):
        raise CheckpointError(
            f"{path} is no index of a GPU's neurons: its architecture is {said!r:.60} with "
            f"{layers!r:.20} layers; give PowerInfer's {INDEX} file"
        )
    rows = [_ints(path, header.tensors.get(f"blk.{layer}.gpu_idx")) for layer in range(layers)]
    for layer, row_N in enumerate(rows):
        bucket = header.tensors.get(f"blk.{layer}.gpu_bucket")
        wrong = len(row_N) != len(rows[0]) or not np.isin(row_N, (0, 1)).all()
        if wrong or (
            bucket is not None and list(_ints(path, bucket)) != list(np.flatnonzero(row_N))
        ):
            raise CheckpointError(
                f"{path}: gpu_idx and gpu_bucket of layer {layer} contradict each other; make the "
                "index again"
            )
    on_gpu_LN: NDArray[np.bool_] = np.stack(rows) == 1
    return on_gpu_LN


def _ints(path: Path, tensor: Tensor | None) -> NDArray[np.int32]:
    if tensor is None or tensor.kind != "I32" or len(tensor.shape) != 1:
        raise CheckpointError(f"{path} lacks a layer's int32 gpu_idx; make the index again")
    return np.fromfile(path, "<i4", tensor.shape[0], offset=tensor.begin)
