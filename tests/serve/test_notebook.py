"""The notebook: of the form that Jupyter reads, and its cells run in their order."""

import ast
import asyncio
import inspect
import json
from typing import Any

import pytest
from support.checkout import ROOT

NOTEBOOK = ROOT / "examples" / "08_serving.ipynb"


def cells() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text())["cells"]
    return found


def test_it_has_the_form_that_jupyter_reads() -> None:
    made = json.loads(NOTEBOOK.read_text())
    assert (made["nbformat"], made["nbformat_minor"]) == (4, 5)
    assert made["metadata"]["kernelspec"]["name"] == "python3"
    assert len({cell["id"] for cell in made["cells"]}) == len(made["cells"])
    for cell in made["cells"]:
        assert cell["cell_type"] in ("code", "markdown") and isinstance(cell["metadata"], dict)
        assert all(isinstance(line, str) for line in cell["source"])
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.ray
def test_its_cells_run(
    one_ray: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    shown: list[Any] = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    names: dict[str, Any] = {}

    async def run() -> None:
        for cell in cells():
            if cell["cell_type"] == "code":
                flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
                code = compile("".join(cell["source"]), str(NOTEBOOK), "exec", flags)
                made = eval(code, names)
                if inspect.isawaitable(made):
                    await made

    asyncio.run(run())
    assert len(shown) == 2 and len(names["rates"]) == 4 and min(names["rates"]) > 0
    assert "GPU neuron load" in capsys.readouterr().out
    plt.close("all")
