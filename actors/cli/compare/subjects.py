"""The models that `hotcold compare` compares on: MODEL, or the embedded one and a planted one.

The planted model has the skew that the paper reports for OPT-30B: 26 % of a layer's neurons hold
80 % of its activations. The embedded one, trained and small, is flatter. The planted model is drawn
once and kept in the user's cache.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hotcold.actors.cli.common import output
from hotcold.actors.cli.compare.cases import Case
from hotcold.runtime.options.config import EngineConfig

if TYPE_CHECKING:
    from hotcold.runtime.engine.prepare import Prepared

PAPER_SKEW = {"shape": "small", "density": 0.1, "share80": 0.26}


@dataclass(frozen=True)
class Subject:
    """One model to compare on.

    Args:
        model: its folder; None: the embedded model.
        implied: nobody named it; a case that cannot be solved for it is left out.
    """

    name: str
    model: str | None
    cases: tuple[Case, ...]
    implied: bool = False


def make_subjects(
    options: EngineConfig, cases: Sequence[Case], planted: bool | None
) -> list[Subject]:
    """The models in the order of the table; `planted` None: where no model was named."""
    model = None if options.model is None else str(options.model)
    subjects = [Subject(Path(model).name if model else "embedded", model, tuple(cases))]
    if planted:
        subjects.append(_planted(options, cases))
    elif planted is None and options.model is None:
        lenient = [replace(case, named=False) for case in cases]
        subjects.append(replace(_planted(options, lenient), implied=True))
    return subjects


def _planted(options: EngineConfig, cases: Sequence[Case]) -> Subject:
    """The planted model; its budgets hold the same share of its neurons as the first model's."""
    from hotcold.runtime.engine.prepare import prepare_model

    folder = planted_model()
    if all(case.vram is None for case in cases):
        return Subject("planted", str(folder), tuple(cases))
    own = prepare_model(options)
    other = prepare_model(replace(options, model=folder))
    return Subject(
        "planted",
        str(folder),
        tuple(
            case if case.vram is None else replace(case, vram=_as_large(case.vram, own, other))
            for case in cases
        ),
    )


def _as_large(vram: str | int, own: "Prepared", other: "Prepared") -> int:
    """A budget of another model that leaves the same share of its neurons room on the GPU."""
    from hotcold.runtime.units import parse_bytes

    reserve = 0 if own.gpu is None else own.gpu.reserve_bytes
    left = parse_bytes(vram) - reserve - _modules(own)
    share = min(1.0, max(0.0, left / _neurons(own)))
    reserve = 0 if other.gpu is None else other.gpu.reserve_bytes
    least = 1 << 20  # fewer bytes are taken for a slip; the planted model needs more anyway
    return max(least, reserve + _modules(other) + int(share * _neurons(other)))


def _modules(prepared: "Prepared") -> int:
    return sum(module.bytes for module in prepared.problem.modules)


def _neurons(prepared: "Prepared") -> int:
    return int(prepared.problem.neuron_bytes_L.sum()) * prepared.problem.shape[1]


def planted_model() -> Path:
    """The folder of the planted model, drawn where it is not in the cache yet."""
    from hotcold.native.errors import HotcoldError
    from hotcold.runtime.model.checkpoints.bundle import open_bundle
    from hotcold.runtime.model.checkpoints.cache import cache_folder
    from hotcold.runtime.model.checkpoints.convert import VERSION
    from hotcold.runtime.offline.plant.making import plant
    from hotcold.runtime.offline.plant.options import PlantOptions

    options = PlantOptions(**PAPER_SKEW)  # type: ignore[arg-type]
    key = hashlib.sha256(f"{VERSION} {options.describe()}".encode()).hexdigest()[:16]
    folder = cache_folder() / "planted" / f"{options.shape}-{key}"
    try:
        open_bundle(folder)
        return folder
    except HotcoldError:
        pass  # not there, or damaged
    output.note("hotcold: drawing the planted model; later runs find it in the cache")
    drawn = folder.with_name(f"{folder.name}.{os.getpid()}")
    plant(options, drawn, device="cpu")
    try:
        os.replace(drawn, folder)
    except OSError:  # another process was faster, or what lies there is damaged
        stale = folder.with_name(f"{drawn.name}.old")
        os.replace(folder, stale)
        os.replace(drawn, folder)
        shutil.rmtree(stale, ignore_errors=True)
    return folder
