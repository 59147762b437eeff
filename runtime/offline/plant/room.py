"""Whether a model can be planted here: a free place, disk, memory; asked before any is drawn.

Called by `making`. Sizes are those of the shapes; nothing is allocated or written.
"""

import shutil
from pathlib import Path

from hotcold.native.errors import BudgetError, ConfigError
from hotcold.runtime.model.checkpoints.convert import SPARE_BYTES
from hotcold.runtime.model.checkpoints.digest import BLOCK_BYTES, THREADS
from hotcold.runtime.model.checkpoints.layout import layout
from hotcold.runtime.offline.plant.drawing import Drawing
from hotcold.runtime.offline.plant.planting import CHUNK_BYTES
from hotcold.runtime.units import format_bytes
from hotcold.runtime.weights import host_memory as memory

FLOAT = 4  # bytes of the numbers that are calculated with


def check_out(out: Path) -> None:
    """Refuse an output folder that is not empty, or a file.

    Raises:
        ConfigError: it is a file, or a folder that is not empty.
    """
    if out.is_dir():
        if any(out.iterdir()):
            raise ConfigError(f"{out} exists and is not empty; remove it or give another folder")
    elif out.exists() or out.is_symlink():
        raise ConfigError(f"{out} exists and is no folder; give another name")


def check_disk(drawing: Drawing, out: Path) -> None:
    """Refuse a disk that cannot hold the model.

    Raises:
        BudgetError: need, what is free, and the way out.
        OSError: the disk cannot be asked.
    """
    spec = drawing.spec
    predictors = 2 * drawing.hidden * (spec.d_model + spec.n_neurons) * spec.n_layers
    needed = layout(spec)[1] + predictors + SPARE_BYTES
    there = next(folder for folder in out.parents if folder.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise BudgetError(
            f"the model takes {format_bytes(needed)}, the disk of {out.parent} has "
            f"{format_bytes(free)} free; make room, plant fewer layers or choose another disk"
        )


def working_bytes(drawing: Drawing) -> int:
    """Memory that planting takes at its peak: a layer, not a model; calculated from the shapes.

    The three peaks are drawing the embedding, a layer's attention, and its neurons with everything
    that is calculated for all of them at once.
    """
    spec, m = drawing.spec, drawing.tokens
    d, n, element = spec.d_model, spec.n_neurons, spec.element_bytes
    vocabulary = spec.vocab_size * spec.embed_width
    ends = 2 * vocabulary * element
    if spec.positions == "learned":
        ends += spec.max_context * d * element
    qkv, o = (spec.q_dim + 2 * spec.kv_dim) * d, spec.q_dim * d
    rows = m * (6 * d + spec.q_dim + 2 * spec.kv_dim) * FLOAT  # streams, queries, keys and values
    attention = qkv * (FLOAT + element) + rows
    directions = n * drawing.hidden * ((3 if drawing.exact else 6) * FLOAT + 2)
    scores = m * n * FLOAT * (3 if drawing.exact else 4)
    matrices = spec.neuron_rows * n * d * element
    neurons = (qkv + o) * element + rows + max(directions, matrices + directions // 2) + scores
    chunks = 2 * min(CHUNK_BYTES, n * d * FLOAT) + 2 * THREADS * BLOCK_BYTES
    return max(vocabulary * (FLOAT + element), attention, neurons + chunks) + ends


def check_memory(drawing: Drawing) -> None:
    """Refuse a machine without the memory that planting takes.

    Raises:
        BudgetError: need, what is available, what bounds it, and the way out.
    """
    memory.require(
        working_bytes(drawing),
        f"planting layers of {drawing.spec.n_neurons} neurons and width {drawing.spec.d_model}",
        "free memory or choose a smaller shape (fewer layers take no less: one is made at a time)",
        private=True,
    )
