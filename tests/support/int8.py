"""Models whose neurons are int8, for tests: the oracle of what is left of their weights."""

from dataclasses import replace
from typing import Any

import numpy as np
from support.oracle import F64, Oracle

from hotcold.runtime.model.checkpoints.quantised import STORED
from hotcold.runtime.model.neurons import NeuronRecord
from hotcold.runtime.model.spec import ModelSpec, split_dtype

ROWS = ("mlp.gate_proj.weight", "mlp.up_proj.weight", "fc1.weight")
COLUMNS = ("mlp.down_proj.weight", "fc2.weight")


def stored_rows(rows: F64, dtype: str) -> tuple[Any, F64]:
    """Rows as a format stores them, and what they then are."""
    form = STORED[dtype]
    raw = form.pack(rows.astype(np.float32), "float32")
    return raw, form.unpack(raw, rows.shape[1]).astype(np.float64)


def requantised(
    oracle: Any,  # noqa: ANN401 - an Oracle of any kind
    marked_LN: Any = None,  # noqa: ANN401
    rest: str = "float32",
) -> Any:  # noqa: ANN401
    """The oracle with int8 neurons: all, or those marked, and the rest in another format."""
    tensors = dict(oracle.tensors)
    for name, value in tensors.items():
        if not name.endswith(ROWS + COLUMNS):
            continue
        rows = value.T if name.endswith(COLUMNS) else value
        exact = stored_rows(rows, "int8")[1]
        if marked_LN is not None:
            layer = next(int(part) for part in name.split(".") if part.isdigit())
            exact = np.where(marked_LN[layer][:, None], exact, stored_rows(rows, rest)[1])
        tensors[name] = exact.T if name.endswith(COLUMNS) else exact
    return replace(oracle, tensors=tensors)


def records_of(oracle: Oracle, spec: ModelSpec, dtype: str) -> tuple[list[Any], dict[str, Any]]:
    """By layer, records of a Llama's neurons in a format, and the fields of their hc_record."""
    dtype_, neurons = split_dtype(dtype, spec.dtype)
    record = NeuronRecord.for_spec(replace(spec, dtype=dtype_, neuron_dtype=neurons))
    records_L = []
    for layer in range(spec.n_layers):
        records = np.zeros((spec.n_neurons, record.bytes), np.uint8)
        for part in record.parts:
            value = oracle.layer(layer, f"mlp.{part.name}_proj")
            rows = value.T if part.name == "down" else value
            records[:, part.slice] = stored_rows(rows, dtype)[0]
        records_L.append(records)
    return records_L, record.fields()
