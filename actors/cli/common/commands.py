"""The commands by name, and the version they belong to."""

import importlib.metadata

# Name -> module under hotcold.actors.cli, and the attribute that is its command. Listed, not
# imported: `hotcold --help` then costs no numpy, no torch and no Ray.
COMMANDS: dict[str, tuple[str, str]] = {
    "generate": ("commands.generate", "Continue a text with the three actors"),
    "serve": ("commands.serve", "Serve a model over HTTP, as the OpenAI API has it"),
    "inspect": ("commands.inspect", "Show a model's shapes, bytes and sparsity"),
    "convert": ("commands.convert", "Make a model's bundle, its neurons in int8 for example"),
    "profile": ("offline.profile", "Count over a text how often each neuron fires"),
    "sparsity": ("offline.sparsity", "Measure how sparse each layer really is on a text"),
    "train-predictors": (
        "offline.train_predictors",
        "Train predictors on a text, report their quality",
    ),
    "pictures": ("offline.pictures", "Draw a profile and predictors: PNG files and a page"),
    "plant": ("offline.plant", "Make a model of planted sparsity at a real shape"),
    "solve": ("commands.solve", "Place a model's neurons, save the plan and explain it"),
    "evaluate": ("offline.evaluate", "Measure perplexity, recall and speed of a predictor"),
    "compare": ("compare.command", "Run placements and schedules on the same prompt"),
    "trace": ("commands.trace", "Record what every actor does for a token: Perfetto file and PNG"),
    "watch": ("commands.watch", "Show what a running engine does, live in the terminal"),
    "hardware": ("commands.hardware", "Measure this machine for policies and cost models"),
    "roofline": ("commands.roofline", "Compute the highest speed a machine allows a plan"),
    "policies": ("commands.policies", "List the installed policies and predictors"),
    "doctor": ("commands.doctor", "Say what this machine offers and what to mend"),
    "submit": (
        "commands.submit",
        "Run a command as a job of a Ray cluster, which may lack hotcold",
    ),
    "chaos": ("commands.chaos", "Kill and stop actors at random; the tokens must not change"),
    "bench": ("bench.bench", "Measure kernels, exchange, weight stores and decoding"),
}


def version() -> str:
    """The installed version; in a checkout that is not installed there is none to tell."""
    try:
        return importlib.metadata.version("hotcold")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
