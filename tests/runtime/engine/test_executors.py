"""Which class runs an actor's part, and what a class says about its role; on no GPU."""

from dataclasses import replace

import pytest

from hotcold.runtime.engine.deployment import Deployment, deploy, solve
from hotcold.runtime.engine.executors.factory import executor_classes, leading_class
from hotcold.runtime.engine.gpu import GpuChoice
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.topology import CLASSIC

FUSED = GpuChoice("float16", None, 1000 << 20, 600 << 20, 500 << 20)
REMOTE = replace(FUSED, predictor_process="mps")


@pytest.fixture(scope="module")
def deployment() -> Deployment:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOTCOLD_CUDA", "off")
        prepared = prepare_model(EngineConfig(predictor="learned"))
        return deploy(prepared, solve(prepared))


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        (None, ["HostGpuExecutor", "WorkerExecutor", "HostPredictor"]),
        (FUSED, ["CudaGpuExecutor", "WorkerExecutor", "FusedPredictor"]),
        (REMOTE, ["CudaGpuExecutor", "WorkerExecutor", "RemotePredictor"]),
    ],
)
def test_the_class_of_every_actor(
    deployment: Deployment, gpu: GpuChoice | None, expected: list[str]
) -> None:
    classes = executor_classes(replace(deployment, gpu=gpu))
    assert list(classes) == list(CLASSIC.actors)
    assert [made.__name__ for made in classes.values()] == expected


@pytest.mark.parametrize(
    ("gpu", "facts"),
    [
        (None, {"walks_steps": list(CLASSIC.actors), "stands_by": [], "opens_mailbox": []}),
        (FUSED, {"walks_steps": ["cpu"], "stands_by": ["predictor"], "opens_mailbox": []}),
        (REMOTE, {"walks_steps": ["cpu"], "stands_by": [], "opens_mailbox": ["predictor"]}),
    ],
)
def test_what_classes_say(
    deployment: Deployment, gpu: GpuChoice | None, facts: dict[str, list[str]]
) -> None:
    classes = executor_classes(replace(deployment, gpu=gpu))
    for fact, actors in facts.items():
        assert [actor for actor, made in classes.items() if getattr(made, fact)] == actors, fact


def test_one_actor_is_the_last_to_take_device_memory(deployment: Deployment) -> None:
    for gpu, last in ((None, []), (FUSED, ["gpu"]), (REMOTE, ["predictor"])):
        chosen = replace(deployment, gpu=gpu)
        classes = executor_classes(chosen)
        assert [a for a, made in classes.items() if made.takes_memory_last(chosen)] == last


def test_keys_and_values_outlive_the_process_without_a_gpu_alone(deployment: Deployment) -> None:
    assert leading_class(deployment).keeps_kv
    assert not leading_class(replace(deployment, gpu=FUSED)).keeps_kv
