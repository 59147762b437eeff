"""The actor API: a named engine, Ray handles of its actors, a new plan while it runs.

Another driver, task or notebook of the same cluster reaches the engine by its name. Here a Ray task
does: an engine that is passed to a task is connected to there, not copied.

Run: python examples/03_actor_api.py
"""

import ray

from hotcold.actors import Engine


@ray.remote(num_cpus=0)
def continue_text(engine: Engine, prompt: str) -> str:
    return "".join(token.text for token in engine.generate(prompt, max_tokens=16))


def main() -> None:
    with Engine.launch(vram="28MiB", name="lab") as engine:
        print("actors:", ", ".join(engine.actors))
        for policy in ("greedy", "random", "all-cpu"):
            engine.replan(policy=policy)  # actors and weights stay, only the plan changes
            text = "".join(token.text for token in engine.generate("The sea was", max_tokens=16))
            load = engine.stats().gpu_neuron_load
            print(f"{policy:8} GPU neuron load {load:4.0%}: {text!r}")
        print("from a task:", repr(ray.get(continue_text.remote(engine, "The sea was"))))


if __name__ == "__main__":
    main()
