"""Rows of a machine file's tables, as the measurements of host and GPU both write them."""

from typing import Any

from hotcold.native.abi.names import DTYPE_BYTES

Row = dict[str, Any]


def neuron_row(device: str, dtype: str, threads: int, d: int, seconds: float) -> Row:
    """A row of the table `neurons`, from the seconds of one gated neuron."""
    return {
        "device": device,
        "dtype": dtype,
        "threads": threads,
        "d_model": d,
        "us_per_neuron": four_digits(seconds * 1e6),
        "gb_per_s": four_digits(3 * d * DTYPE_BYTES[dtype] / seconds / 1e9),
    }


def four_digits(value: float) -> float:
    """Round to four digits: more cannot be measured."""
    return float(f"{value:.4g}")
