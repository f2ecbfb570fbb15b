"""Precision bf16 in NumPy: each unit's order of sums (docs/numerics.md), operation by operation.

expected = product(isa, matrix, x)      # (num_tokens, num_rows)
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from kernel_support import fma, sum_lanes
from numpy.typing import NDArray

from gptoss import _core, kernels

Array = NDArray[Any]

ISAS = [name for name, _ in _core.bf16_isas()]
LAYOUTS = ("bf16", "mxfp4", "mxfp4_gguf")
GROUP = 32
TINY = np.float32(2.0**-126)


def flush(x: Array) -> Array:
    """Subnormals to zero of their sign: the instructions keep none."""
    return np.where(np.abs(x) < TINY, np.copysign(np.float32(0), x), x).astype(np.float32)


def round_to_bf16(x: Array) -> Array:
    """float32 values that bf16 holds."""
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


def step(a: Array, b: Array, c: Array) -> Array:
    return flush(fma(flush(a), flush(b), flush(c)))


def weights_of(matrix: kernels.Matrix) -> Array:
    """(num_rows, num_columns) float32, exact but for infinity beyond the range."""
    shape = (matrix.num_rows, -1)
    if matrix.layout == "bf16":
        bits = _rows(matrix.data, matrix.num_rows, 2 * matrix.num_columns, matrix.row_bytes)
        return (bits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    num_blocks = matrix.num_columns // GROUP
    if matrix.layout == "mxfp4":
        codes = _rows(matrix.data, matrix.num_rows, num_blocks * 16, matrix.row_bytes)
        scales = _rows(matrix.scales, matrix.num_rows, num_blocks, matrix.scale_row_bytes)
    else:
        blocks = _rows(matrix.data, matrix.num_rows, num_blocks * 17, matrix.row_bytes)
        scales = blocks.reshape(matrix.num_rows, num_blocks, 17)[..., 0]
        codes = blocks.reshape(matrix.num_rows, num_blocks, 17)[..., 1:]
    codes = codes.reshape(matrix.num_rows, num_blocks, 16)
    order = [codes & 15, codes >> 4]
    axis = -2 if matrix.layout == "mxfp4_gguf" else -1
    nibbles = np.stack(order, axis=axis).reshape(matrix.num_rows, num_blocks, GROUP)
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])[nibbles & 7]
    values = np.where(nibbles & 8, -values, values)
    powers = np.where(scales == 0xFF, np.nan, np.exp2(scales.astype(np.float64) - 127))
    with np.errstate(over="ignore"):
        return (values * powers[..., None]).reshape(shape).astype(np.float32)


def _rows(data: Array, num_rows: int, row_bytes: int, stride: int) -> Array:
    rows = np.lib.stride_tricks.as_strided(data, (num_rows, row_bytes), (stride, 1))
    return np.ascontiguousarray(rows)


def _pairs(values: Array, layout: str) -> Array:
    """(n, num_columns) -> (n, groups, 16 pairs, 2), 0 past the last column."""
    groups = -(-values.shape[1] // GROUP)
    whole = np.zeros((len(values), groups * GROUP), np.float32)
    whole[:, : values.shape[1]] = values
    if layout == "mxfp4_gguf":  # one byte holds elements 16 apart
        return whole.reshape(len(values), groups, 2, 16).swapaxes(-1, -2)
    return whole.reshape(len(values), groups, 16, 2)


def product(isa: str, matrix: kernels.Matrix, x: Array) -> Array:
    """x (num_tokens, num_columns) -> (num_tokens, num_rows), in the unit's order."""
    weights = _pairs(weights_of(matrix), matrix.layout)[None]
    inputs = _pairs(round_to_bf16(flush(x)), matrix.layout)[:, None]
    shape = (len(x), matrix.num_rows)
    with np.errstate(all="ignore"):
        if isa == "avx512_bf16":
            lanes = np.zeros((*shape, 16), np.float32)
            for g in range(weights.shape[2]):
                w, v = weights[:, :, g], inputs[:, :, g]
                lanes = step(w[..., 1], v[..., 1], lanes)
                lanes = step(w[..., 0], v[..., 0], lanes)
            return sum_lanes(lanes)
        return _sum_as_amx(weights, inputs)


def _sum_as_amx(weights: Array, inputs: Array) -> Array:
    """Pairs (..., groups, 16, 2) each -> sums (...)."""
    shape = np.broadcast_shapes(weights.shape, inputs.shape)
    total = np.zeros(shape[:-3], np.float32)
    for g in range(shape[-3]):
        sums = np.zeros((*shape[:-3], 2), np.float32)
        for pair in range(16):
            sums = step(weights[..., g, pair, :], inputs[..., g, pair, :], sums)
        total = flush(total + flush(sums[..., 0] + sums[..., 1]))
    return total


def amx_dots(rows: Array, vector: Array) -> Array:
    """rows (n, columns), vector (columns,), both rounded already -> (n,)."""
    return _sum_as_amx(_pairs(rows, "bf16"), _pairs(vector[None], "bf16"))
