"""Which class runs an actor's part of a deployment; nobody else asks for an actor by its name."""

from hotcold.runtime.engine.deployment import Deployment
from hotcold.runtime.engine.executors.base import Executor, Shared
from hotcold.runtime.engine.executors.cuda import CudaGpuExecutor, FusedPredictor, RemotePredictor
from hotcold.runtime.engine.executors.host import CpuExecutor, HostGpuExecutor, HostPredictor
from hotcold.runtime.engine.executors.leading import LeadingExecutor
from hotcold.runtime.engine.executors.predictors import PredictorExecutor
from hotcold.runtime.exchange.segment import Segment


def leading_class(deployment: Deployment) -> type[LeadingExecutor]:
    """The GPU executor's class."""
    return HostGpuExecutor if deployment.gpu is None else CudaGpuExecutor


def predictor_class(deployment: Deployment) -> type[PredictorExecutor]:
    """The predictor's class."""
    if deployment.gpu is None:
        return HostPredictor
    return RemotePredictor if deployment.gpu.remote_predictor else FusedPredictor


def executor_classes(deployment: Deployment) -> dict[str, type[Executor]]:
    """The class of every executor of a deployment, by actor."""
    made = (leading_class(deployment), CpuExecutor, predictor_class(deployment))
    return {chosen.actor: chosen for chosen in made}


def make_executor(
    actor: str, deployment: Deployment, segment: Segment, shared: Shared | None = None
) -> Executor:
    """One actor's executor; HotcoldError where what it computes with cannot be had."""
    return executor_classes(deployment)[actor](deployment, segment, shared or Shared())


def roles(deployment: Deployment) -> dict[str, str]:
    """What each actor does under a deployment, in words."""
    return {actor: made.role(deployment) for actor, made in executor_classes(deployment).items()}
