"""An executor: one actor's share of a deployment, ready to run on this machine's CPU.

Opens the weight store, gathers what its role needs (GPU executor: every dense part, its hot
neurons, the KV cache; CPU executor: its cold neurons; predictor: its matrices) and hands addresses
to the native loop. No Ray in here: the actors are shells around it, and `LocalSession` runs three
of them as threads.
"""

import os
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.bindings.device import Mailbox
from hotcold.native.bindings.executor import (
    ExecutorArrays,
    LayerAddresses,
    ModelAddresses,
    NativeExecutor,
    OwnedNeurons,
    PredictorArrays,
    Request,
    RequestTimes,
)
from hotcold.native.errors import KernelError
from hotcold.runtime.engine.deployment import Deployment
from hotcold.runtime.engine.gpu import GpuChoice, check_promise, device_arrays, say_parts
from hotcold.runtime.engine.kv import KvCache
from hotcold.runtime.engine.prompt import PromptForm
from hotcold.runtime.engine.remote_predictor import matrix_bytes, pass_flag
from hotcold.runtime.engine.variant import use_kernels
from hotcold.runtime.exchange.segment import Segment
from hotcold.runtime.model.checkpoints.bundle import Bundle, open_bundle
from hotcold.runtime.model.rotary import rotary_tables
from hotcold.runtime.plan.plan import Plan
from hotcold.runtime.predictors.predictor import ModelView, native_layers
from hotcold.runtime.predictors.predictor_choice import choose_predictor
from hotcold.runtime.weights.pages import packed
from hotcold.runtime.weights.weights import WeightStore

_NUMBERS = ("relu", "input_bits", "window", "probe_every")  # of a predictor's layer, by form
# Each time tokens are handed on costs about 1.4 ms of processor time in three processes (actor,
# driver, Ray): on two cores that both compute, 2 % of a 1B model's 33 ms if done for every token
# (by the scheduler's counts; tokens/s vary more from run to run). Many cores keep nobody waiting.
COALESCE_MS = min(200, max(50, 400 // len(os.sched_getaffinity(0))))
AT_ONCE = 64  # or as soon as so many are there


@dataclass(frozen=True)
class Sampled:
    """Ids and log probabilities that became ready together."""

    ids: list[int]
    logprobs: list[float]


class Executor:
    """One actor's native loop over a bundle and a segment.

    Args:
        actor: "gpu", "cpu" or "predictor".
        deployment: what to run.
        segment: the exchange, already attached; must outlive the executor.
        kv: the KV cache of the GPU executor; None makes a private one.
        fired_LN: int64 counts to add fired gates into (profiling), or None.
        mailbox: of the GPU executor, for a predictor with a process of its own on the GPU.
    """

    def __init__(
        self,
        actor: str,
        deployment: Deployment,
        segment: Segment,
        kv: KvCache | None = None,
        fired_LN: NDArray[np.int64] | None = None,
        mailbox: Mailbox | None = None,
    ) -> None:
        self.actor, self.deployment, self.segment = actor, deployment, segment
        use_kernels(deployment.kernels)
        self.bundle = open_bundle(deployment.bundle_path)
        plan, layers = deployment.computed_plan, range(self.bundle.spec.n_layers)
        own_ids = [plan.ids(layer, 1) for layer in layers] if actor == "cpu" else None
        self.store = WeightStore.open(self.bundle, deployment.store, own_ids)
        arrays = ExecutorArrays(
            actor=actor,
            model=_model_addresses(self.bundle, self.store, deployment.context),
            segment=segment.native.pointer,
            epoch=segment.epoch,
            steps=deployment.programs[actor],
            max_batch=deployment.layout.max_batch,
            threads=deployment.cores[actor].threads,
            cores=deployment.cores[actor].cores,
            fired_LN=fired_LN,
            audit_every=deployment.audit_every,
            audit_seed=deployment.audit_seed,
        )
        if deployment.gpu is not None:
            self._use_gpu(arrays, deployment.gpu, mailbox)
        elif actor == "predictor":
            arrays.device_LN = np.ascontiguousarray(plan.device_LN)
            arrays.predictors = self._predictor_arrays()
        else:
            device = 0 if actor == "gpu" else 1
            arrays.owned = _owned(plan, device)
        if actor == "gpu" and deployment.gpu is None:
            kv = kv or KvCache.private(self.bundle.spec, deployment.context)
            arrays.kv = (kv.keys, kv.values)
        self.prompts = self._prompt_form(arrays)
        self.native = NativeExecutor(arrays)
        if deployment.gpu is not None and actor == deployment.gpu.last_actor:
            check_promise(deployment.gpu, "after the launch")
            say_parts(deployment.plan)

    def _use_gpu(self, arrays: ExecutorArrays, gpu: GpuChoice, mailbox: Mailbox | None) -> None:
        """Fused, the GPU executor predicts and the predictor's loop stands by; else it is asked."""
        deployment = self.deployment
        plan, device = deployment.computed_plan, 1 if self.actor == "cpu" else 0
        if self.actor == "predictor":
            arrays.steps = arrays.steps[:0]
            if not gpu.remote_predictor:
                return
        arrays.owned = _owned(plan, device)
        if self.actor == "cpu":
            return
        made = device_arrays(
            *(gpu, deployment.plan, deployment.fetch_L, self._predictor_arrays()),
            *(deployment.programs["predictor"], deployment.kernels),
            pass_flag(deployment.layout),
        )
        if self.actor == "predictor":
            own = gpu.predictor_bytes + matrix_bytes(deployment.plan)
            steps = deployment.programs["gpu"]
            made = replace(made, vram_bytes=own, gpu_steps=steps, mailbox=mailbox)
        arrays.device = made

    @property
    def mailbox(self) -> Mailbox | None:
        """What a predictor with a process of its own opens; None where none does."""
        gpu, device = self.deployment.gpu, self.native.device
        asks = self.actor == "gpu" and gpu is not None and gpu.remote_predictor
        return device.mailbox() if asks and device is not None else None

    def _prompt_form(self, arrays: ExecutorArrays) -> PromptForm:
        gpu, deployment = self.deployment.gpu, self.deployment
        if gpu is None:
            return PromptForm("sparse", 0, arrays.max_batch, "")
        identity = f"{deployment.plan.hash} {deployment.cores} {deployment.predictor_settings}"
        return PromptForm(gpu.prompt_form, gpu.prompt_rows, arrays.max_batch, identity)

    def _predictor_arrays(self) -> list[PredictorArrays]:
        """Prepare the predictor and put it in the native form; nothing where it stands by."""
        deployment = self.deployment
        if not deployment.predicts:
            return []
        predictor = choose_predictor(
            deployment.predictor, self.bundle, deployment.predictor_settings
        )
        predictor.prepare(ModelView.of(self.bundle, self.store), deployment.profile)
        layers = native_layers(predictor, self.bundle.spec)
        parts: list[Any] = [part for layer in layers for part in layer.arrays.values()]
        if deployment.gpu is None:
            parts = packed(parts)
        ready = iter(parts)
        made = []
        for layer in layers:
            own: dict[str, Any] = {name: next(ready) for name in layer.arrays}
            own |= {name: getattr(layer, name) for name in _NUMBERS if hasattr(layer, name)}
            residual = layer.input == "residual"
            if (
                self.actor == "gpu"
                and deployment.gpu is not None
                and deployment.gpu.remote_predictor
            ):
                own = {}  # the other process has them; here they would take host memory
            made.append(PredictorArrays(layer.form, layer.threshold, residual, **own))
        return made

    def run(self) -> None:
        """Run the resident loop until the exchange is poisoned; raises what went wrong here.

        Raises:
            KernelError: this executor failed (and poisoned the exchange).
        """
        failure = self.native.run()
        if failure is not None:
            raise KernelError(f"the {self.actor} executor failed: {failure}")

    def generate(self, request: Request) -> Generator[Sampled, None, None]:
        """Run a request on the GPU executor; yields what is ready, several times a second.

        Raises:
            ConfigError: the request does not fit.
            ActorLostError: the exchange was poisoned meanwhile; names the actor at fault.
        """
        if request.n_dense is None:
            given = request.n_given or len(request.prompt)
            measure = partial(self.prompt_seconds, request)
            request = replace(request, n_dense=self.prompts.dense_tokens(given, measure))
        self.native.post(request)
        index, wanted = 0, 1
        try:
            while True:
                tokens, done = self.native.tokens(index, COALESCE_MS, wanted, AT_ONCE)
                wanted = AT_ONCE if len(tokens) else 1  # the first after a pause goes out alone
                if len(tokens):
                    index += len(tokens)
                    yield Sampled(tokens["id"].tolist(), tokens["logprob"].tolist())
                self.segment.raise_if_poisoned()
                if done:
                    break
        finally:
            self.native.cancel()
        self.native.request_times()

    def prompt_seconds(self, request: Request, tokens: int, dense: int) -> float:
        """Time the first tokens of a prompt, and throw the result away."""
        trial = replace(
            request, prompt=request.prompt[:tokens], max_tokens=0, n_past=0, n_dense=dense,
            logits_PV=None, masks_PLN=None,
        )  # fmt: skip
        for _ in self.generate(trial):
            pass
        times = self.native.request_times()
        return (times.prompt_ns - times.begin_ns) * 1e-9

    def request_times(self) -> RequestTimes:
        """Times of the last finished request."""
        return self.native.request_times()

    def close(self) -> None:
        """Free everything; the loop must have returned. Idempotent."""
        self.native.close()
        self.store.close()


def _owned(plan: Plan, device: int) -> list[OwnedNeurons]:
    layers, _ = plan.shape
    return [OwnedNeurons(plan.ids(layer, device)) for layer in range(layers)]


def _model_addresses(bundle: Bundle, store: WeightStore, context: int) -> ModelAddresses:
    spec, record = bundle.spec, bundle.record

    def at(name: str) -> int:
        return store.address(name) if name in bundle.tensors else 0

    names = "attention_norm attention_norm_bias qkv qkv_bias o o_bias ffn_norm ffn_norm_bias"
    layers = [
        LayerAddresses(
            records=at(f"layers.{i}.neurons"),
            **{name: at(f"layers.{i}.{name}") for name in f"{names} ffn_bias".split()},
        )
        for i in range(spec.n_layers)
    ]
    rotary = spec.positions == "rotary"
    cos_PE, sin_PE = rotary_tables(spec, context) if rotary else (None, None)
    ends = "embed final_norm final_norm_bias positions project_in project_out".split()
    return ModelAddresses(
        heads=spec.n_heads,
        kv_heads=spec.n_kv_heads,
        head_dim=spec.head_dim,
        d=spec.d_model,
        n=spec.n_neurons,
        vocab=spec.vocab_size,
        context=context,
        norm=spec.norm,
        norm_eps=spec.norm_eps,
        post_norm=spec.post_norm,
        embed_dim=spec.embed_width,
        dtype=spec.dtype,
        **vars(record),
        layers=layers,
        head=at("embed" if spec.tied else "head"),
        **{name: at(name) for name in ends},
        cos_PE=cos_PE,
        sin_PE=sin_PE,
    )


def make_request(
    ids: list[int],
    max_tokens: int,
    context: int,
    eos: tuple[int, ...] = (),
    **sampling: Any,
) -> Request:
    """A native request whose length is cut to what the context holds."""
    room = context - len(ids) + 1
    return Request(
        id=time.monotonic_ns(),
        prompt=np.array(ids, dtype=np.int32),
        max_tokens=max(0, min(max_tokens, room)),
        eos=np.array(eos, dtype=np.int32),
        **sampling,
    )
