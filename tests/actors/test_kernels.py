"""Kernels of one's own in the actors: all three load the file, and none starts without it."""

from pathlib import Path

import pytest
from support.checkout import ROOT

from hotcold.actors import Engine
from hotcold.native.errors import ConfigError

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("one_ray")]
EXAMPLE = ROOT / "examples" / "05_own_kernel.c"


def ids(engine: Engine) -> list[int]:
    return [token.id for token in engine.generate([1, 5, 7], max_tokens=8, ignore_eos=True)]


def test_the_actors_compute_with_the_file(tiny_model: Path) -> None:
    found = []
    for kernels in (str(EXAMPLE), "ref"):
        with Engine.launch(tiny_model, kernels=kernels, dtype="float16") as engine:
            found.append(ids(engine))
            roles = [work.role for work in engine.stats().actors.values()]
        assert sum(f"kernels {Path(kernels).name}" in role for role in roles) >= 2
    assert found[0] == found[1]
    assert len(found[0]) == 8


def test_a_file_that_changes_before_the_actors_load_it_is_refused(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotcold.actors.engine import engine as module

    mine = tmp_path / "mine.c"
    mine.write_text(EXAMPLE.read_text())
    solve = module.solve

    def change_first(*args: object) -> object:
        mine.write_text(EXAMPLE.read_text().replace("#define SIDE 4", "#define SIDE 2"))
        return solve(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "solve", change_first)
    with pytest.raises(ConfigError, match="changed since it was tested"):
        Engine.launch(tiny_model, kernels=str(mine))
