"""Decode speed on a GPU by memory budget: a planted 13B ReGLU model, or any bundle.

`python -m hotcold.runtime.bench.gpu_decode --folder /dev/shm/planted --vram 10GiB` makes the model
where it is not there yet (random weights whose gates fire as planned, an exact predictor) and runs
the three loops in one process, without Ray: tokens/s, time by phase, GB/s on both sides, and the
roofline's bound with this machine's rates (`hotcold hardware` measures them). One JSON line a
budget, last. With --model, a bundle and its own predictor, as `hotcold plant` writes them:

    hotcold plant opt-30b --hidden 512 --out /dev/shm/opt-30b
    python -m hotcold.runtime.bench.gpu_decode --model /dev/shm/opt-30b --vram 24GiB

How the 13B's firing is planted: residual channel 0 is constant, so a gate row's weight on it is a
bias; the rest of a gate row is low-rank, so that a predictor of width 2 * rank + 1 is exact; the
bias of neuron i is the normal quantile of its firing probability, a clipped power law.

One H100, 16 cores, 13B, context 512, fp16 KV, prompt 40, 64 decoded, temperature 1, 2026-11-22;
tokens/s of three runs:
    all on the GPU                         168.6-169.1
    16 GiB, fp16 predictor                 102.6-103.9   --bus-share 0.4: 110.3-111.8
    16 GiB, int8 predictor                 106.8-108.2   --bus-share 0.4: 113.5-117.2
    10 GiB, int8 predictor                  39.4-42.3
    over-firing 1.7 times (--overfire 0.5), int8: 16 GiB 86.9-89.7, 10 GiB 31.3-34.0
"""

import argparse
import itertools
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hotcold.native import nvml
from hotcold.runtime import embedded
from hotcold.runtime.config import EngineConfig
from hotcold.runtime.deployment import deploy, prepare_model, solve
from hotcold.runtime.executor import make_request
from hotcold.runtime.formats.convert import (
    FORMAT,
    VERSION,
    header_digest,
    model_checksum,
)
from hotcold.runtime.formats.digest import STAMP, write_stamp
from hotcold.runtime.formats.layout import layout
from hotcold.runtime.model import ModelSpec
from hotcold.runtime.neurons import NeuronRecord
from hotcold.runtime.predictor import PredictorLayer
from hotcold.runtime.profile import ActivationProfile
from hotcold.runtime.roofline import roofline
from hotcold.runtime.session import LocalSession

CONSTANT = 20.0  # residual channel 0
WIDTH = 960  # of the predictor
DENSITY, HOT_SHARE, HOT_MASS = 0.12, 0.3, 0.8


def spec_13b(layers: int) -> ModelSpec:
    """The shape of Llama-2 13B with ReGLU, in float16."""
    return ModelSpec("llama", layers, 5120, 13824, 40, 40, 128, 32000, 4096, 1e-5, 10000.0, False,
                     "float16")  # fmt: skip


def power_law(n: int) -> NDArray[np.float64]:
    """Firing probabilities, hottest first: mean DENSITY, hottest HOT_SHARE hold HOT_MASS."""
    rank = (np.arange(n) + 0.5) / n

    def curve(s: float) -> NDArray[np.float64]:
        low, high = 0.0, 10.0
        for _ in range(60):
            c = (low + high) / 2
            p = np.minimum(0.98, c * rank**-s)
            low, high = (c, high) if p.mean() < DENSITY else (low, c)
        return p

    low, high = 0.0, 5.0
    for _ in range(60):
        s = (low + high) / 2
        p = curve(s)
        low, high = (s, high) if p[: int(HOT_SHARE * n)].sum() < HOT_MASS * p.sum() else (low, s)
    return curve(s)


@dataclass
class Planted:
    """The exact predictor of the planted model; weights are made again from the seed."""

    folder: str
    spec: ModelSpec
    overfire: float = 0.0  # lowers the threshold, in units of a score's deviation
    _layers: list[PredictorLayer] = field(default_factory=list)

    def prepare(self, model: Any, profile: Any = None) -> None:
        """Read what `plant` wrote."""
        if self._layers:
            return
        for layer in range(self.spec.n_layers):
            data = np.load(Path(self.folder) / f"predictor{layer}.npz")
            self._layers.append(
                PredictorLayer(data["fc1"], data["fc2"], None, True, -0.01 - self.overfire)
            )

    def density(self, layer: int) -> float:
        """Share of neurons proposed."""
        return DENSITY

    def scores(self, x_BD: Any, layer: int) -> Any:
        """By the readable reference."""
        return self._layers[layer].scores(x_BD)

    def native(self, layer: int) -> PredictorLayer:
        """The layer as planted."""
        return self._layers[layer]


def plant(folder: Path, spec: ModelSpec) -> None:
    """Write a bundle with planted sparsity, its predictors and its profile."""
    folder.mkdir(parents=True)
    entries, size = layout(spec)
    d, n, rank = spec.d_model, spec.n_neurons, (WIDTH - 1) // 2
    weights = np.memmap(folder / "weights.bin", np.uint8, "w+", shape=(size,))
    torch.manual_seed(0)
    cuda = torch.device("cuda")

    def normal(*shape: int, scale: float) -> torch.Tensor:
        return torch.randn(*shape, device=cuda) * scale

    def put(name: str, tensor: torch.Tensor, half: bool = True) -> None:
        at, data = entries[name], (tensor.half() if half else tensor.float()).contiguous()
        raw = torch.from_numpy(weights[at.offset : at.offset + at.size])
        raw.copy_(data.view(torch.uint8).reshape(-1))

    quantile = torch.distributions.Normal(0.0, 1.0).icdf(torch.from_numpy(power_law(n)))
    x0 = CONSTANT / np.sqrt((CONSTANT**2 + d - 1) / d)
    deviation = np.sqrt((d - 1) / (CONSTANT**2 + d - 1))
    counts_LN = np.zeros((spec.n_layers, n), np.int64)
    for layer in range(spec.n_layers):
        order = torch.randperm(n)
        bias = (torch.empty(n, dtype=torch.float64).scatter_(0, order, quantile)).to(cuda).float()
        counts_LN[layer] = np.rint(10000 * torch.special.ndtr(bias.double()).cpu().numpy())
        P, A = normal(rank, d, scale=d**-0.5), normal(n, rank, scale=rank**-0.5)
        P[:, 0] = 0
        records = torch.zeros(n, 3, d, device=cuda)
        records[:, 0] = A @ P
        records[:, 0, 0] = bias * deviation / x0
        records[:, 1] = normal(n, d, scale=d**-0.5)
        records[:, 2] = normal(n, d, scale=1e-2 * d**-0.5)
        records[:, 2, 0] = 0
        prefix = f"layers.{layer}."
        put(prefix + "neurons", records)
        put(prefix + "attention_norm", torch.ones(d, device=cuda), half=False)
        put(prefix + "ffn_norm", torch.ones(d, device=cuda), half=False)
        put(prefix + "qkv", normal(3 * d, d, scale=d**-0.5))
        o = normal(d, d, scale=1e-2 * d**-0.5)
        o[0] = 0
        put(prefix + "o", o)
        constant = torch.zeros(1, d, device=cuda)
        constant[0, 0] = 1 / x0
        fc1 = torch.cat([P, -P, constant, torch.zeros(WIDTH - 2 * rank - 1, d, device=cuda)])
        fc2 = torch.zeros(n, WIDTH, device=cuda)
        fc2[:, :rank], fc2[:, rank : 2 * rank], fc2[:, 2 * rank] = A, -A, bias * deviation
        np.savez(
            folder / f"predictor{layer}.npz",
            fc1=fc1.half().cpu().numpy(),
            fc2=fc2.half().cpu().numpy(),
        )
    embed = normal(spec.vocab_size, d, scale=1.0)
    embed[:, 0] = CONSTANT
    put("embed", embed)
    put("head", normal(spec.vocab_size, d, scale=d**-0.5))
    put("final_norm", torch.ones(d, device=cuda), half=False)
    weights.flush()
    finish(folder, spec, size, counts_LN)


def finish(folder: Path, spec: ModelSpec, size: int, counts_LN: NDArray[np.int64]) -> None:
    """Header, tokenizer, profile; the checksum names the recipe, for nobody reads 26 GB twice."""
    entries, _ = layout(spec)
    sha256 = "0" * 64
    header: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "name": folder.name,
        "source": "planted",
        "checksum": model_checksum(spec, sha256),
        "spec": spec.to_json(),
        "record": vars(NeuronRecord.for_spec(spec)),
        "weights": {"bytes": size, "sha256": sha256},
        "tensors": {name: entry.to_json() for name, entry in entries.items()},
        "files": {},
    }
    header = json.loads(json.dumps(header))
    header["header_sha256"] = header_digest(header)
    (folder / "bundle.json").write_text(json.dumps(header))
    (folder / "tokenizer.json").write_bytes((embedded.path() / "tokenizer.json").read_bytes())
    ActivationProfile(counts_LN, 10000, header["checksum"], "planted").save(
        folder / "activations.npz"
    )
    time.sleep(0.2)
    stamp = [folder / STAMP]
    for _ in range(2):
        time.sleep(3)
        write_stamp(stamp, header["header_sha256"], {"weights.bin": folder / "weights.bin"})


def measure(config: EngineConfig, tokens: int, prompt: int) -> dict[str, Any]:
    """Tokens/s and what the time went into."""
    before = nvml.used_bytes() or 0
    began = time.monotonic()
    prepared = prepare_model(config)
    plan = solve(prepared)
    bound, vocabulary = roofline(prepared.problem, plan), prepared.bundle.spec.vocab_size
    with LocalSession(deploy(prepared, plan)) as local:
        launched = time.monotonic() - began
        used = (nvml.used_bytes() or 0) - before
        gpu, row = local.executors["gpu"], []
        rng = np.random.default_rng(0)
        for repeat in range(3):
            ids = rng.integers(3, vocabulary, prompt).tolist()
            states = {a: local.segment.actor_state(a) for a in ("gpu", "cpu")}
            request = make_request(ids, tokens, prepared.context, temperature=1.0, seed=repeat)
            for _ in gpu.generate(request):
                pass
            times = gpu.request_times()
            after = {a: local.segment.actor_state(a) for a in ("gpu", "cpu")}
            decode_s = (times.end_ns - times.prompt_ns) * 1e-9
            row.append((tokens - 1) / decode_s)
        assert gpu.native.device is not None
        report = gpu.native.device.report()
        peak = (nvml.used_bytes() or 0) - before
        cpu_s = (after["cpu"].busy_ns - states["cpu"].busy_ns) * 1e-9
        cpu_gb = (after["cpu"].bytes - states["cpu"].bytes) * 1e-9
        return {
            "tokens_per_s": [round(value, 1) for value in row],
            "bound_tokens_per_s": round(bound.tokens_per_s, 1),
            "of_the_bound": round(sorted(row)[1] * bound.token_s, 3),
            "hardware": prepared.problem.hardware.name,
            "prompt_tokens_per_s": round(prompt / ((times.prompt_ns - times.begin_ns) * 1e-9), 1),
            "pass_ms": round(report.pass_ns * 1e-6, 3),
            "phase_ms": {name: round(ns * 1e-6, 3) for name, ns in report.phase_ns.items()},
            "gpu_gb_per_s": round(report.bytes / report.pass_ns, 1),
            "cpu_gb_per_s": round(cpu_gb / cpu_s, 1) if cpu_s else 0.0,
            "cold_neurons": report.cold_neurons,
            "hot_rows": report.gate_rows,
            "hot_share": round(plan.gpu_activation_share, 4),
            "neurons_on_gpu": round(float((plan.device_LN == 0).mean()), 4),
            "gpu_mib_by_nvml": [used >> 20, peak >> 20],
            "allocated_mib": report.allocated_bytes >> 20,
            "launch_s": round(launched, 1),
        }


def planted_13b(folder: Path, spec: ModelSpec, overfire: float) -> Planted:
    """The predictor of the planted model, which is made where it is not there yet."""
    if not (folder / "bundle.json").exists():
        began = time.monotonic()
        plant(folder, spec)
        torch.cuda.empty_cache()
        print(f"planted in {time.monotonic() - began:.0f} s", file=sys.stderr)
    return Planted(str(folder), spec, overfire)


def main(arguments: list[str] | None = None) -> None:
    """Parse, plant where needed, measure every budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--folder", type=Path)
    which.add_argument("--model", type=Path)
    parser.add_argument("--predictor", default="learned", help="of --model")
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--vram", nargs="+", default=["10GiB"])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=40)
    parser.add_argument("--predictor-dtype")
    parser.add_argument("--overfire", type=float, default=0.0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--bus-share", type=float, nargs="+", default=[0.0])
    options = parser.parse_args(arguments)
    predictor: Any = options.predictor
    if options.folder is not None:
        predictor = planted_13b(options.folder, spec_13b(options.layers), options.overfire)
    for vram, bus_share in itertools.product(options.vram, options.bus_share):
        config = EngineConfig(
            model=options.folder or options.model, vram=None if vram == "all" else vram,
            predictor=predictor, kv_dtype="float16", predictor_dtype=options.predictor_dtype,
            context=512, threads=options.threads, bus_share=bus_share, hardware=options.hardware,
        )  # fmt: skip
        result = {"vram": vram, "predictor": options.predictor_dtype or "float16",
                  "bus_share": bus_share}  # fmt: skip
        print(json.dumps(result | measure(config, options.tokens, options.prompt)), flush=True)


if __name__ == "__main__":
    main()
