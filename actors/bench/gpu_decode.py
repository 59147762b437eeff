"""Decode speed on a GPU without Ray, by memory budget: the three loops in one process.

    hotcold plant llama2-13b --density 0.12 --share80 0.3 --hidden 960 --out /dev/shm/13b
    python -m hotcold.actors.bench.gpu_decode --model /dev/shm/13b --vram all 16GiB

prints, a JSON line a budget, tokens/s of three runs, ms a token by phase, GB/s on both sides, and
the share of the bound that `hotcold roofline` computes from the rates measured here. Context
512, float16 KV, temperature 1. `hotcold bench decode` is the same with the actors.

    ... --predictor-process fused mps

compares the predictor in the GPU executor's graph with one in a process of its own. Because that
needs processes, both are measured with the actors. `ask_us` is the round trip to the predictor's
process, without the time of the prediction itself.
"""

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from hotcold.native.gpu import nvml
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.engine.request import make_request
from hotcold.runtime.options.config import ENGINE, EngineConfig, Sampling
from hotcold.runtime.plan.roofline import roofline
from hotcold.runtime.tracing.phases import phase_times

# Options of the engine that are the same for every budget.
ONCE = ("predictor", "predictor_dtype", "policy", "schedule", "threads", "store", "hardware")
VOCABULARY = 1000  # prompts are of ids below this


def measure(config: EngineConfig, tokens: int, prompt: int) -> dict[str, Any]:
    """Tokens/s and what the time went into."""
    before = nvml.used_bytes() or 0
    began = time.monotonic()
    prepared = prepare_model(config)
    plan = solve(prepared)
    deployment, vocabulary = deploy(prepared, plan), prepared.bundle.spec.vocab_size
    serial = roofline(prepared.problem, plan)
    bound = roofline(prepared.problem, plan, ahead=deployment.reads_ahead)
    with LocalSession(deployment) as local:
        launched = time.monotonic() - began
        used = (nvml.used_bytes() or 0) - before
        gpu, row = local.leader, []
        rng = np.random.default_rng(0)
        for repeat in range(3):
            ids = rng.integers(3, vocabulary, prompt).tolist()
            request = make_request(ids, Sampling(tokens, 1.0, seed=repeat), prepared.context)
            prompted = None
            for _ in gpu.generate(request):  # the first token comes out alone, after the prompt
                prompted = prompted or local.segment.actor_state("cpu")
            times = gpu.request_times()
            decoded = local.segment.actor_state("cpu")
            decode_s = (times.end_ns - times.prompt_ns) * 1e-9
            row.append((tokens - 1) / decode_s)
        assert gpu.native.device is not None and prompted is not None
        phases = phase_times(local.segment)
        report = gpu.native.device.report()
        peak = (nvml.used_bytes() or 0) - before
        cpu_s = (decoded.busy_ns - prompted.busy_ns) * 1e-9
        cpu_gb = (decoded.bytes - prompted.bytes) * 1e-9
        ahead_gb = (decoded.ahead_bytes - prompted.ahead_bytes) * 1e-9
        return {
            "tokens_per_s": [round(value, 1) for value in row],
            "bound_tokens_per_s": round(bound.tokens_per_s, 1),
            "of_the_bound": round(sorted(row)[1] * bound.token_s, 3),
            "of_the_bound_without_reading_ahead": round(sorted(row)[1] * serial.token_s, 3),
            "hardware": prepared.problem.hardware.name,
            "prompt_tokens_per_s": round(prompt / ((times.prompt_ns - times.begin_ns) * 1e-9), 1),
            "pass_ms": round(report.pass_ns * 1e-6, 3),
            "phase_ms": {name: round(s * 1e3, 3) for name, s in phases.items()},
            "gpu_gb_per_s": round(report.bytes / report.pass_ns, 1),
            "cpu_gb_per_s": round(cpu_gb / cpu_s, 1) if cpu_s else 0.0,
            "cpu_mb_a_token": round(cpu_gb * 1e3 / (tokens - 1), 1),
            "of_it_ahead_mb": round(ahead_gb * 1e3 / (tokens - 1), 1),
            "cold_neurons": report.cold_neurons,
            "hot_rows": report.gate_rows,
            "hot_share": round(plan.gpu_activation_share, 4),
            "neurons_on_gpu": round(float(plan.hot_LN.mean()), 4),
            "gpu_mib_by_nvml": [used >> 20, peak >> 20],
            "allocated_mib": report.allocated_bytes >> 20,
            "launch_s": round(launched, 1),
        }


def measure_engine(config: EngineConfig, tokens: int, prompt: int) -> dict[str, Any]:
    """The same figures, as far as an engine of three actors reports them."""
    from hotcold.actors import Engine

    before = nvml.used_bytes() or 0
    began = time.monotonic()
    with Engine.launch(**vars(config)) as engine:
        launched, rates = time.monotonic() - began, []
        bound, rng = engine.roofline(), np.random.default_rng(0)
        for repeat in range(3):
            ids = rng.integers(3, VOCABULARY, prompt).tolist()
            for _ in engine.generate(ids, Sampling(tokens, 1.0, seed=repeat, ignore_eos=True)):
                pass
            assert engine.last is not None
            rates.append(engine.last.decode_tokens_per_s)
            prompt_rate = engine.last.prompt_tokens_per_s
        stats, used = engine.stats(), (nvml.used_bytes() or 0) - before
        gpu, predictor = stats.actors["gpu"], stats.actors["predictor"]
        lost = gpu.asked_s - predictor.busy_s
        return {
            "tokens_per_s": [round(value, 1) for value in rates],
            "bound_tokens_per_s": round(bound.tokens_per_s, 1),
            "of_the_bound": round(sorted(rates)[1] * bound.token_s, 3),
            "prompt_tokens_per_s": round(prompt_rate, 1),
            "phase_ms": {name: round(s * 1e3, 3) for name, s in stats.phase_s.items()},
            "ask_us": round(lost / gpu.asks * 1e6, 2) if gpu.asks else None,
            "predictor_us": round(predictor.busy_s / gpu.asks * 1e6, 2) if gpu.asks else None,
            "gpu_mib_by_nvml": used >> 20,
            "launch_s": round(launched, 1),
        }


def main(arguments: list[str] | None = None) -> None:
    """Parse and measure every budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--vram", nargs="+", default=["10GiB"])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=40)
    for name in ONCE:
        row = ENGINE[name]
        choices = row.choices or None
        parser.add_argument(f"--{row.dashed}", type=row.type, choices=choices, default=row.default)
    parser.set_defaults(predictor="learned")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--bus-share", type=float, nargs="+", default=[0.0])
    parser.add_argument(
        "--predictor-process", nargs="+", choices=ENGINE["predictor_process"].choices, default=[]
    )
    options = parser.parse_args(arguments)
    processes = options.predictor_process or [None]
    for vram, bus_share, process in itertools.product(options.vram, options.bus_share, processes):
        config = EngineConfig(
            model=options.model,
            vram=None if vram == "all" else vram,
            kv_dtype="float16",
            context=512,
            bus_share=bus_share,
            predictor_process=process or "fused",
            settings=dict(setting.split("=", 1) for setting in options.settings),
            **{name: getattr(options, name) for name in ONCE},
        )
        result = {"vram": vram, "predictor": options.predictor_dtype or "as stored"}
        result |= {"policy": options.policy, "schedule": options.schedule, "bus_share": bus_share}
        result |= {"predictor_process": process} if process else {}
        take = measure_engine if process else measure
        print(json.dumps(result | take(config, options.tokens, options.prompt)), flush=True)


if __name__ == "__main__":
    main()
