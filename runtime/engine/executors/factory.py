"""Which class runs an actor's part of a deployment; nobody else asks for an actor by its name."""

from hotcold.native.abi.generated import Role
from hotcold.runtime.engine.deployment import Deployment
from hotcold.runtime.engine.executors.base import Executor, Shared
from hotcold.runtime.engine.executors.cuda import CudaGpuExecutor, FusedPredictor, RemotePredictor
from hotcold.runtime.engine.executors.host import HostGpuExecutor, HostPredictor, WorkerExecutor
from hotcold.runtime.engine.executors.leading import LeadingExecutor
from hotcold.runtime.engine.executors.predictors import PredictorExecutor
from hotcold.runtime.exchange.segment import Segment


def leading_class(deployment: Deployment) -> type[LeadingExecutor]:
    """The first GPU executor's class."""
    return HostGpuExecutor if deployment.gpu is None else CudaGpuExecutor


def predictor_class(deployment: Deployment) -> type[PredictorExecutor]:
    """The predictor's class."""
    if deployment.gpu is None:
        return HostPredictor
    return RemotePredictor if deployment.gpu.remote_predictor else FusedPredictor


def executor_classes(deployment: Deployment) -> dict[str, type[Executor]]:
    """The class of every executor of a deployment, by actor."""
    made: dict[Role, type[Executor]] = {
        Role.LEADER: leading_class(deployment),
        Role.WORKER: WorkerExecutor,
        Role.PREDICTOR: predictor_class(deployment),
    }
    return {member.actor: made[member.role] for member in deployment.topology.members}


def make_executor(
    actor: str, deployment: Deployment, segment: Segment, shared: Shared | None = None
) -> Executor:
    """One actor's executor; HotcoldError where what it computes with cannot be had."""
    member = deployment.topology.member(actor)
    return executor_classes(deployment)[actor](deployment, segment, shared or Shared(), member)


def roles(deployment: Deployment) -> dict[str, str]:
    """What each actor does under a deployment, in words."""
    classes, members = executor_classes(deployment), deployment.topology.members
    return {one.actor: classes[one.actor].role(deployment, one) for one in members}
