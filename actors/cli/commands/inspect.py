"""`hotcold inspect`: what a model is made of, without running it."""

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import engine_options, json_option
from hotcold.native.abi.names import DTYPE_BYTES
from hotcold.runtime.model.block import words
from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.units import format_bytes

if TYPE_CHECKING:
    from hotcold.runtime.model.checkpoints.bundle import Bundle, TensorEntry

ELEMENT_BYTES = {**DTYPE_BYTES, "uint8": 1}
PARTS = ("embedding", "head", "attention", "neurons", "norms")
KINDS = {
    "embed": "embedding",
    "positions": "embedding",
    "project_in": "embedding",
    "head": "head",
    "project_out": "head",
    "neurons": "neurons",
    "ffn_bias": "neurons",
}


@click.command("inspect")
@json_option
@engine_options("inspect", argument=True)
def command(options: EngineConfig) -> None:
    """Show the shapes, bytes and sparsity of MODEL and where its bundle is cached.

    MODEL is a folder; without one, the embedded model. A checkpoint that has no bundle yet is
    converted first, as it would be by `generate`.
    """
    from hotcold.runtime.model.checkpoints.bundle import resolve_model

    bundle = resolve_model(options.model, options.dtype)
    result = describe(bundle)
    _print(result)
    output.emit_json(result)


def describe(bundle: "Bundle") -> dict[str, Any]:
    """The facts of a bundle, units in the keys."""
    from hotcold.runtime.predictors.predictor_choice import choose_auto
    from hotcold.runtime.profiles.profile import ActivationProfile

    profile = None if bundle.profile_path is None else ActivationProfile.load(bundle.profile_path)
    choice = choose_auto(bundle, profile)
    parameters: Counter[str] = Counter()
    n_bytes: Counter[str] = Counter()
    for name, entry in bundle.tensors.items():
        part = part_of(name)
        n_bytes[part] += math.prod(entry.shape) * ELEMENT_BYTES[entry.dtype]
        parameters[part] += _elements(name, entry, bundle)
    return {
        "name": bundle.name,
        "source": bundle.source,
        "bundle": str(bundle.path),
        "checksum": bundle.checksum,
        "spec": bundle.spec.to_json(),
        "parameters": {**{part: parameters[part] for part in PARTS}, "total": parameters.total()},
        "bytes": {**{part: n_bytes[part] for part in PARTS}, "total": n_bytes.total()},
        "file_bytes": bundle.weights_bytes,
        "sparsity_L": None if profile is None else [float(share) for share in profile.sparsity_L],
        "predictors": None if bundle.predictors_path is None else str(bundle.predictors_path),
        "auto_predictor": {
            "kind": choice.kind,
            "why": choice.why,
            "ffn_bytes_per_token": None if choice.bytes is None else choice.bytes.to_json(),
        },
    }


def part_of(tensor: str) -> str:
    """The part of the model a tensor of weights.bin belongs to."""
    kind = tensor.rsplit(".", 1)[-1]
    if kind.removesuffix("_bias").endswith("norm"):
        return "norms"
    return KINDS.get(kind, "attention")


def _elements(name: str, entry: "TensorEntry", bundle: "Bundle") -> int:
    # A neuron record is its rows and columns, perhaps a bias, and padding that is no parameter.
    if name.endswith(".neurons"):
        spec: ModelSpec = bundle.spec
        return spec.n_neurons * (spec.neuron_rows * spec.d_model + spec.biases)
    return math.prod(entry.shape)


def _print(result: dict[str, Any]) -> None:
    spec = result["spec"]
    dtypes = spec["dtype"]
    if neurons := spec.get("neuron_dtype"):
        dtypes += f", neurons {neurons}"
    click.echo(f"model      {result['name']} ({spec['architecture']}, {dtypes})")
    click.echo(f"source     {result['source']}")
    click.echo(f"bundle     {result['bundle']}")
    click.echo(
        f"layers     {spec['n_layers']} x {spec['n_neurons']} neurons ({kind_of_neuron(spec)}), "
        f"width {spec['d_model']}"
    )
    turned = f", {spec['rotary_dim']} of them turned" if spec.get("rotary_dim") else ""
    if biased := spec.get("attention_biases"):
        turned += f", biases of {biased.replace(' ', ' and ')}"
    turned += ", normed by head" if spec.get("qk_norm") else ""
    if rope := spec.get("rope_scaling"):
        turned += f", rope {rope['rope_type']}"
    window = spec.get("attention_window")
    click.echo(
        f"attention  {spec['n_heads']} heads, {spec['n_kv_heads']} key/value heads, "
        f"{spec['head_dim']} each{turned}{f', a window of {window} positions' if window else ''}"
    )
    learned = "learned " if spec.get("positions") == "learned" else ""
    projected = f", embeddings of width {spec['embed_dim']}" if spec.get("embed_dim") else ""
    click.echo(
        f"context    {spec['max_context']} {learned}positions, vocabulary {spec['vocab_size']}"
        f"{projected}"
    )
    if spec.get("norm") == "layer":
        click.echo("norms      layer norms")
    click.echo(f"block      {words(ModelSpec.from_json(spec).block)}")
    click.echo()
    rows = [
        (part, output.count(result["parameters"][part]), format_bytes(result["bytes"][part]))
        for part in (*PARTS, "total")
    ]
    click.echo(output.table(("part", "parameters", "bytes"), rows))
    click.echo()
    auto = result["auto_predictor"]
    click.echo(f"predictor  auto takes {auto['kind']}; {auto['why']}")
    click.echo()
    if result["sparsity_L"] is None:
        click.echo("no activation profile; make one with: hotcold profile --text FILE --out DIR")
        return
    click.echo(sparsity_table(result["sparsity_L"]))


def kind_of_neuron(spec: dict[str, Any]) -> str:
    """In words: gated or not, with a bias or without."""
    act = spec.get("activation", "relu").replace("relu", "ReLU")
    kind = f"gated {act}" if spec.get("gated", True) else act
    if threshold := spec.get("activation_threshold"):
        kind += f" at {threshold:g}"
    return f"{kind} with bias" if spec.get("biases") else kind


def sparsity_table(sparsity_L: list[float]) -> str:
    """Per layer, the share of neurons that stay at zero for a token."""
    rows = [(str(layer), output.percent(share)) for layer, share in enumerate(sparsity_L)]
    rows.append(("all", output.percent(sum(sparsity_L) / len(sparsity_L))))
    return output.table(("layer", "sparsity"), rows)
