"""The tokens that were recorded before the folders were rearranged, once more."""

import json
from pathlib import Path

import pytest
from support import golden
from support.checkout import ROOT

RECORDED = json.loads((ROOT / "tests" / "golden" / "cpu.json").read_text())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | None]:
    return golden.write_models(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("case", list(golden.cases("cpu")), ids=lambda case: case.name)
def test_tokens_are_those_recorded(models: dict[str, Path | None], case: golden.Case) -> None:
    assert golden.run(case, models[case.model], "cpu")["ids"] == RECORDED[case.name]


def test_every_recorded_case_is_run() -> None:
    assert {case.name for case in golden.cases("cpu")} == set(RECORDED)
