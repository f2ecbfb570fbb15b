"""Whether the kernels of an instruction set give the scalar kernels' bits on this machine."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator
from typing import TypedDict

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gptoss import _core, kernels

Output = NDArray[np.float32] | NDArray[np.float16]
Case = Callable[[str], Output]  # computes with the kernels of an instruction set
Rng = np.random.Generator

NUM_ROUNDS = 8


class OperationResult(TypedDict):
    operation: str
    cases: int
    mismatches: int


def _sizes(rng: Rng, layout: str) -> tuple[int, int]:
    """Rows and columns, most of them no multiple of anything."""
    columns = int(rng.integers(1, 700))
    return int(rng.integers(1, 70)), columns * 32 if layout in kernels.BLOCK_LAYOUTS else columns


def _matrix(rng: Rng, layout: str, special: bool) -> kernels.Matrix:
    rows, columns = _sizes(rng, layout)
    padding, offset = (int(n) for n in rng.integers(0, 4, 2))
    return kernels.random_matrix(
        rng, layout, rows, columns, special=special, padding=padding, offset=offset
    )


def _matvec(rng: Rng, layout: str) -> Iterator[Case]:
    for special in (False, True):
        matrix = _matrix(rng, layout, special)
        num_vectors = int(rng.integers(1, kernels.MAX_VECTORS, endpoint=True))
        x = kernels.random_input(rng, matrix.num_columns, num_tokens=num_vectors, special=special)
        yield functools.partial(kernels.matvec, matrix=matrix, x=x)


def _expand_panel(rng: Rng, layout: str) -> Iterator[Case]:
    matrix = _matrix(rng, layout, True)
    num_rows = min(matrix.num_rows, kernels.PANEL_ROWS)

    def run(isa: str) -> NDArray[np.float32]:
        panel = kernels.expand_panel(isa, matrix, matrix.num_rows - num_rows, num_rows)
        return np.concatenate([panel.values.ravel(), panel.scales.ravel()])

    yield run


def _multiply_panel(rng: Rng, kind: str) -> Iterator[Case]:
    layout = {"scaled": "mxfp4", "unscaled": "f32"}[kind]
    for special in (False, True):
        matrix = _matrix(rng, layout, special)
        panel = kernels.expand_panel("scalar", matrix, 0, min(matrix.num_rows, kernels.PANEL_ROWS))
        num_tokens = int(rng.integers(1, kernels.MAX_TILES * kernels.TILE_TOKENS, endpoint=True))
        x = kernels.random_input(rng, matrix.num_columns, num_tokens=num_tokens, special=special)
        yield functools.partial(kernels.multiply_panel, panel=panel, x=x)


def _product_bf16(rng: Rng, layout: str) -> Iterator[Case]:
    """There is no scalar kernel: how many elements differ between one token and many, and how many
    are far from the float32 product of the rounded inputs."""
    matrix = _matrix(rng, layout, False)
    x = kernels.random_input(rng, matrix.num_columns, num_tokens=int(rng.integers(1, 70)))
    rounded = x.astype(ml_dtypes.bfloat16).astype(np.float32)

    def run(isa: str) -> NDArray[np.float32]:
        if isa == "scalar":
            return np.zeros(2, np.float32)
        many = kernels.product_bf16(isa, "panel", matrix, x)
        singles = [kernels.product_bf16(isa, "vector", matrix, token[None]) for token in x]
        exact = np.stack([kernels.matvec("scalar", matrix, token) for token in rounded])
        far = np.abs(many - exact) > 1e-4 * np.abs(exact).max()
        different = kernels.num_different(many, np.concatenate(singles))
        return np.array([different, np.count_nonzero(far)], np.float32)

    yield run


def _attention_tile(rng: Rng, kind: str) -> Iterator[Case]:
    tile, head_dim, num_queries = 64, 2 * int(rng.integers(1, 70)), int(rng.integers(1, 40))
    dtype = {"f16": np.float16, "f32": np.float32}[kind]
    keys, values = rng.standard_normal((2, tile, head_dim)).astype(dtype)
    queries = rng.standard_normal((num_queries, head_dim)).astype(np.float32)
    bounds = np.sort(rng.integers(0, tile, (2, num_queries), endpoint=True), axis=0)
    first_key, end_key = bounds.astype(np.int32)

    def run(isa: str) -> NDArray[np.float32]:
        maximum, total = np.empty((2, num_queries), np.float32)
        value = np.empty((num_queries, head_dim), np.float32)
        arrays = (keys, values, queries, first_key, end_key, maximum, total, value)
        row_bytes = head_dim * keys.itemsize
        _core.kernel_attention_tile(isa, kind == "f16", head_dim, row_bytes, 0.3, arrays)
        return np.concatenate([maximum, total, value.ravel()])

    yield run


def _elementwise(rng: Rng, operation: str) -> Iterator[Case]:
    """Array sizes as _core.kernel_elementwise documents them; the last array holds the result, or
    for operations in place the first."""
    n, heads = int(rng.integers(1, 700)), int(rng.integers(1, 5))
    sizes, scalars, result = {
        "add": ((n, n), (0.0, 0.0), 0),
        "multiply_add": ((n, n), (0.7, 0.0), 0),
        "divide": ((n, n), (1.7, 0.0), 1),
        "convert_f32_f16": ((n, n), (0.0, 0.0), 1),
        "swiglu": ((2 * n, n), (7.0, 1.702), 1),
        "rms_norm": ((n, n, n), (1e-5, 0.0), 2),
        "layer_norm": ((n, n, n, n), (1e-5, 0.0), 3),
        "silu_multiply": ((n, n), (0.0, 0.0), 0),
        "gelu": ((n, n), (0.0, 0.0), 1),
        "rope": ((2 * n * heads, n, n), (0.0, 0.0), 0),
        "rope_neighbours": ((2 * n * heads, n, n), (0.0, 0.0), 0),
        "attention_merge": ((n + 2, n), (float(rng.standard_normal()), 1.5), 0),
    }[operation]
    inputs: list[Output] = [kernels.random_input(rng, size, special=True)[0] for size in sizes]
    if operation == "convert_f32_f16":
        inputs[1] = np.zeros(n, np.float16)
        inputs[0] *= np.exp2(rng.integers(-30, 20, n)).astype(np.float32)

    def run(isa: str) -> Output:
        arrays = [array.copy() for array in inputs]
        _core.kernel_elementwise(isa, operation, *scalars, *arrays)
        return arrays[result]

    yield run


# By the beginning of the operation's name; the rest of it is the argument.
_FAMILIES: dict[str, Callable[[Rng, str], Iterator[Case]]] = {
    "matvec_": _matvec,
    "expand_panel_": _expand_panel,
    "multiply_panel_": _multiply_panel,
    "product_bf16_": _product_bf16,
    "attention_tile_": _attention_tile,
    "": _elementwise,
}


def _cases(rng: Rng, operation: str) -> Iterator[Case]:
    prefix = next(prefix for prefix in _FAMILIES if operation.startswith(prefix))
    return _FAMILIES[prefix](rng, operation.removeprefix(prefix))


def self_test(isa: str, seed: int) -> list[OperationResult]:
    """Compares every kernel of an instruction set with the scalar one, bit for bit, on random data;
    products at precision bf16, which have none, between one token and many.

    Args:
        isa: one that this machine has.
        seed: of the data; the same seed gives the same cases everywhere.

    Returns:
        For every operation how many cases were run and how many of them differ.
    """
    results = []
    for kernel in _core.kernels():
        if kernel["isa"] != isa:
            continue
        operation = kernel["operation"]
        rng = np.random.default_rng([seed, zlib.crc32(operation.encode())])
        result = OperationResult(operation=operation, cases=0, mismatches=0)
        for _ in range(NUM_ROUNDS):
            with np.errstate(all="ignore"):
                cases = list(_cases(rng, operation))
            for case in cases:
                result["cases"] += 1
                result["mismatches"] += kernels.num_different(case(isa), case("scalar")) > 0
        results.append(result)
    return results
