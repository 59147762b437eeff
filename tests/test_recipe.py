"""The recipe of examples/: it learns, gets sparse, keeps neurons alive, goes on, and exports."""

import importlib.util
import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from support.checkout import ROOT

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from relu_recipe.recipe import Recipe  # noqa: E402
from relu_recipe.sparsity import SparsityControl  # noqa: E402
from relu_recipe.training import Trainer  # noqa: E402

from hotcold.runtime.engine.deployment import deploy, solve  # noqa: E402
from hotcold.runtime.engine.executors.session import LocalSession  # noqa: E402
from hotcold.runtime.engine.prepare import prepare_model  # noqa: E402
from hotcold.runtime.options.config import EngineConfig  # noqa: E402
from hotcold.runtime.profiles.profile import ActivationProfile  # noqa: E402

TINY = "--layers 2 --d-model 32 --ffn 96 --heads 2 --vocab 300 --context 32 --batch 8 --threads 1"
STEPS = 90
Run = Callable[..., int]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "examples" / "06_train_relu_model.py"
    spec = importlib.util.spec_from_file_location("train_relu_model", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences of a small grammar: something can be learned in a few dozen updates."""
    draw = random.Random(5)
    who, does = ["the cat", "a dog", "my sister", "the old king"], ["saw", "ate", "sold", "lost"]
    what = ["a red apple", "the moon", "some bread", "his crown", "two birds"]
    lines = [f"{draw.choice(who)} {draw.choice(does)} {draw.choice(what)}." for _ in range(3000)]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def run(script: ModuleType, text: Path) -> Run:
    def call(out: Path, *more: object, steps: int = STEPS) -> int:
        args = f"--text {text} --out {out} --steps {steps} --rate 6e-3 {TINY}".split()
        return int(script.main([*args, *map(str, more)]))

    return call


@pytest.fixture(scope="module")
def trained(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("recipe") / "model"
    assert run(out, "--dtype", "float32") == 0
    return out


def report(out: Path) -> dict[str, Any]:
    found = json.loads((out / "training.json").read_text())
    assert isinstance(found, dict)
    return found


def test_it_learns_and_reaches_the_sparsity(trained: Path, run: Run, tmp_path: Path) -> None:
    found = report(trained)
    assert found["perplexity"] < found["before"]["perplexity"] / 10
    assert found["before"]["density"] > 0.4
    assert 0.07 <= found["density"] <= 0.14
    assert found["dead"] < 0.25
    assert run(tmp_path / "free", "--sparsity", 0) == 0
    assert report(tmp_path / "free")["density"] > 0.25  # it is the charge that does it
    assert not (trained / ".training").exists()


def test_the_folder_gives_the_same_logits_everywhere(trained: Path, text: Path) -> None:
    prepared = prepare_model(EngineConfig(model=trained, predictor="exact"))
    with LocalSession(deploy(prepared, solve(prepared))) as local:
        ids = local.text.tokenizer.encode(text.read_text()[:70])
        ours, _ = local.logits(ids)
    assert ids[0] == 1
    assert (
        ids
        == transformers.AutoTokenizer.from_pretrained(trained)(text.read_text()[:70])["input_ids"]
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float32)
    assert type(model).__name__ == "LlamaForCausalLM" and model.config.hidden_act == "relu"
    with torch.inference_mode():
        theirs = model(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-3, rtol=0)


def test_the_profile_belongs_to_the_model_and_is_used(trained: Path) -> None:
    profile = ActivationProfile.load(trained / "activations.npz")
    prepared = prepare_model(EngineConfig(model=trained, predictor="exact"))
    profile.check_fits(prepared.bundle.spec)
    assert prepared.bundle.profile_path is not None
    found = report(trained)
    assert 1 - profile.sparsity_L.mean() == pytest.approx(found["density"])
    assert found["dead_L"] == [float((row == 0).mean()) for row in profile.counts_LN]


# ---- interruptions -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve updates without an interruption."""
    out = tmp_path_factory.mktemp("whole") / "model"
    assert run(out, steps=12) == 0
    return out


class Killed(BaseException):
    """Stands for SIGKILL: nothing is written any more, only checkpoints of before are there."""


@pytest.mark.parametrize(("at", "goes_on_after"), [(1, 0), (8, 5), (12, 10)])
def test_a_killed_training_goes_on_to_the_same_weights(
    at: int,
    goes_on_after: int,
    run: Run,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut, update, steps = tmp_path / "cut", Trainer.update, list[int]()

    def until(self: Trainer) -> None:
        update(self)
        if self.step == at:
            raise Killed

    monkeypatch.setattr(Trainer, "update", until)
    with pytest.raises(Killed):
        run(cut, "--save-every", 5, steps=12)
    assert not (cut / "config.json").exists()

    def watched(self: Trainer) -> None:
        steps.append(self.step)
        update(self)

    monkeypatch.setattr(Trainer, "update", watched)
    assert run(cut, "--save-every", 5, steps=12) == 0
    assert steps[0] == goes_on_after and steps[-1] == 11
    for name in ("model.safetensors", "activations.npz", "training.json", "tokenizer.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


def test_ctrl_c_ends_after_the_update_with_a_checkpoint(
    run: Run,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cut, update = tmp_path / "cut", Trainer.update

    def interrupted(self: Trainer) -> None:
        if self.step == 2:
            signal.raise_signal(signal.SIGINT)
        update(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", interrupted)
        assert run(cut, steps=12) == 130
    assert "stopped after 3 updates" in capsys.readouterr().err
    assert run(cut, "--rate", 5e-3, steps=12) == 2  # something else than what was begun
    assert "another --rate" in capsys.readouterr().err
    assert run(cut, steps=12) == 0
    assert "going on after update 3" in capsys.readouterr().err
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_damaged_checkpoint_and_a_second_training_are_refused(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from relu_recipe.state import only_one

    out = tmp_path / "out"

    def cut_off(self: Trainer, _say: object) -> None:
        self.save()
        raise Killed

    monkeypatch.setattr(Trainer, "run", cut_off)
    with pytest.raises(Killed):
        run(out, steps=3)
    state = out / ".training" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    monkeypatch.undo()
    assert run(out, steps=3) == 2
    assert "--overwrite" in capsys.readouterr().err
    with only_one(out / ".training"):
        assert run(out, steps=3) == 2
    assert "another training runs" in capsys.readouterr().err
    assert run(out, "--overwrite", steps=3) == 0
    assert run(out, "--overwrite", "--layers", 1, steps=2) == 0  # over a finished model
    assert (report(out)["steps"], len(report(out)["density_L"])) == (2, 1)


# ---- from SwiGLU -------------------------------------------------------------------------------


def test_a_swiglu_model_becomes_a_sparse_relu_model(run: Run, tmp_path: Path, text: Path) -> None:
    dense, relu = tmp_path / "dense", tmp_path / "relu"
    assert run(dense, "--act", "silu", "--sparsity", 0, "--dtype", "bfloat16", steps=60) == 0
    assert json.loads((dense / "config.json").read_text())["hidden_act"] == "silu"
    assert run(relu, "--from", dense, "--distill", 0.5, steps=60) == 0
    found = report(relu)
    assert found["before"]["source_perplexity"] == pytest.approx(report(dense)["perplexity"])
    assert found["before"]["perplexity"] > found["before"]["source_perplexity"]
    assert found["perplexity"] < found["before"]["perplexity"]
    assert found["density"] < 0.2
    config = json.loads((relu / "config.json").read_text())
    assert (config["hidden_act"], config["dtype"]) == ("relu", "bfloat16")
    assert (relu / "tokenizer.json").read_bytes() == (dense / "tokenizer.json").read_bytes()
    prepare_model(EngineConfig(model=relu, predictor="exact"))


# ---- the charge --------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0.7, 0.9, 0.97])
@pytest.mark.parametrize("strength", [0.1, 10.0])
def test_the_coefficient_is_steered_to_the_sparsity(sparsity: float, strength: float) -> None:
    """Against layers whose density answers slowly to the charge, weakly or strongly."""
    steps = 400
    control = SparsityControl((1, 1000), sparsity, 1.0, 0.0, steps)
    density = 0.5
    for step in range(steps):
        wanted = 0.5 / (1 + strength * control.coefficient)
        density += 0.1 * (wanted - density)
        fired_LN = torch.zeros(1, 1000)
        fired_LN[:, : round(1000 * density)] = 1.0
        control.observe(fired_LN, step)
    assert density == pytest.approx(1 - sparsity, rel=0.1)


def gradients(control: SparsityControl, z_TN: Any) -> Any:
    z_TN = z_TN.clone().requires_grad_()
    charge, rescue, _ = control.charge([z_TN])
    (charge + rescue).backward()
    return z_TN.grad


def test_hot_neurons_are_charged_less_and_scale_does_not_matter() -> None:
    z_TN = torch.randn(4096, 4, generator=torch.Generator().manual_seed(0))
    rates = torch.tensor([[0.8, 0.4, 0.1, 0.02]])
    for contrast in (0.0, 1.0):
        control = SparsityControl((1, 4), 0.9, contrast, 0.002, 100)
        control.rate_LN = rates
        charged_N = gradients(control, z_TN).max(0).values
        if contrast:
            assert (charged_N.diff() > 0).all()
        else:
            assert charged_N.max() == pytest.approx(float(charged_N.min()))
    once, _, _ = control.charge([z_TN])
    assert float(control.charge([8 * z_TN])[0]) == pytest.approx(float(once), rel=1e-5)


@pytest.mark.parametrize(("guard", "revived"), [(0.002, True), (0.0, False)])
def test_the_guard_revives_dead_neurons(guard: float, revived: bool) -> None:
    torch.manual_seed(0)
    x_TD = torch.randn(512, 16) + 1.0
    gate = torch.nn.Parameter(torch.randn(6, 16) / 4)
    with torch.no_grad():
        gate[0] = -1.0  # never fires: every x leans the other way
    control = SparsityControl((1, 6), 0.5, 1.0, guard, 200)
    optimizer = torch.optim.AdamW([gate], lr=0.01, weight_decay=0.0)
    assert float((x_TD @ gate[0] > 0).float().mean()) == 0.0
    for step in range(200):
        charge, rescue, fired_LN = control.charge([x_TD @ gate.T])
        optimizer.zero_grad()
        (control.coefficient * charge + rescue).backward()
        optimizer.step()
        control.observe(fired_LN, step)
    rate = float((x_TD @ gate[0] > 0).float().mean())
    assert (rate > 0) == revived
    assert rate < 0.2  # helped, not switched on for good


# ---- bad input ---------------------------------------------------------------------------------


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


BAD = {
    "--sparsity 1.5": "--sparsity 1.5",
    "--sparsity nan": "--sparsity nan",
    "--steps -1": "--steps -1",
    "--steps x": "--steps",
    "--minutes 0": "--minutes",
    "--d-model 30 --heads 4": "--d-model 30",
    "--distill 0.5": "--from",
    "--act gelu": "gelu",
    "--act silu": "--sparsity 0",
    "--dtype int8": "int8",
    "--device tpu": "tpu",
    "--text {empty}": "fewer than",
    "--text {binary}": "not UTF-8",
    "--text {missing}": "missing",
    "--text {folder}": "directory",
    "--validation {empty}": "--validation",
    "--context 60000": "--context",
    "--from {folder}": "config.json",
    "--from {opt}": "model_type",
    "--from {bare}": "safetensors",
    "--from {damaged}": "cannot be read",
    "--out {file}": "is a file",
    "--out {folder}": "other files",
    "--wrong": "--wrong",
}


@pytest.mark.parametrize("options", list(BAD))
def test_bad_input_is_one_line_and_leaves_nothing(
    options: str, script: ModuleType, text: Path, tmp_path: Path, trained: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    config = json.loads((trained / "config.json").read_text())
    tokenizer = (trained / "tokenizer.json").read_bytes()
    folders: dict[str, Any] = {"opt": {"model_type": "opt"}, "bare": config, "damaged": config}
    for name, said in folders.items():
        write(tmp_path / name / "config.json", json.dumps(said).encode())
        write(tmp_path / name / "tokenizer.json", tokenizer)
    write(tmp_path / "damaged" / "model.safetensors", b"\x00" * 64)
    names = {
        "empty": write(tmp_path / "empty.txt", b""),
        "binary": write(tmp_path / "binary.txt", b"\xff\xfe" * 5000),
        "file": write(tmp_path / "file", b"x"),
        "folder": write(tmp_path / "folder" / "x", b"x").parent,
        "missing": tmp_path / "missing",
        **{name: tmp_path / name for name in folders},
    }
    out = tmp_path / "out"
    args = options.format(**names).split()
    given = [] if "--text" in args else ["--text", str(text)]
    given += [] if "--out" in args else ["--out", str(out)]
    before = sorted(tmp_path.rglob("*"))
    assert script.main([*TINY.split(), "--steps", "2", *given, *args]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("hotcold: error: ") for line in lines) == 1
    assert BAD[options].split()[-1] in lines[-1] and "Traceback" not in str(lines)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_finished_model_is_not_overwritten_by_chance(trained: Path, run: Run) -> None:
    before = (trained / "model.safetensors").read_bytes()
    assert run(trained) == 2
    assert (trained / "model.safetensors").read_bytes() == before


def test_a_trial_needs_no_text(script: ModuleType) -> None:
    texts = script.own_texts()
    assert sum(path.stat().st_size for path in texts) > 300_000
    Recipe(texts=texts, out=Path("x"))
