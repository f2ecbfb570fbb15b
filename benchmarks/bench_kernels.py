"""Every compiled CPU kernel at gpt-oss's sizes, beside limits of this machine from the same run.

    python benchmarks/bench_kernels.py [--isa avx512] [--operation matvec] [--threads 2] [--json]

Matrix-vector products: bytes of weights a second, one core with the weights in its cache and
`threads` cores with the weights in memory; the limit is what plain loads read of such arrays. Panel
products: floating-point operations a second of one core; the limit is what independent fused
multiply-adds reach. The others: time of a call. Figures are medians.

A kernel sees rows one after another, so of a matrix's shape only the columns matter to it: 2880 in
gpt-oss's query, key, value, router, gate, up, down and output matrices, 4096 in the projection
behind attention. How operations share rows and keys among threads, attention at any depth included,
is measured in the model: gptoss bench --profile.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from gptoss import _core, kernels

COLUMNS = 2880
ATTENTION_COLUMNS = 4096
CACHED_BYTES = 400_000
MEMORY_BYTES = 256_000_000
TOKENS = (6, 24, 96)
REPEATS = 9
REPEAT_SECONDS = 0.02


@dataclasses.dataclass(frozen=True)
class Result:
    operation: str
    isa: str
    what: str
    value: float
    unit: str
    limit: float | None = None  # in the same unit


def seconds(function: Callable[[], object]) -> float:
    """The median time of a call."""
    times = []
    calls = 0
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        for _ in range(max(calls, 1)):
            function()
        elapsed = time.perf_counter() - start
        if calls == 0:
            calls = max(1, int(REPEAT_SECONDS / elapsed))
        else:
            times.append(elapsed / calls)
    return statistics.median(times)


class Cores:
    """Some threads, and what one of them reads from cache and all of them from memory."""

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self.pool = ThreadPoolExecutor(num_threads)
        isa = [name for name, available in _core.isas() if available][-1]
        large = np.ones(MEMORY_BYTES, np.uint8)
        small, parts = large[:CACHED_BYTES], np.array_split(large, num_threads)
        read_cache = seconds(lambda: _core.measure_read(isa, small))
        read_memory = seconds(lambda: self.each(lambda part: _core.measure_read(isa, part), parts))
        self.cache_limit = CACHED_BYTES / read_cache / 1e9
        self.memory_limit = MEMORY_BYTES / read_memory / 1e9

    def each(self, function: Callable[[Any], object], items: list[Any]) -> None:
        """Calls the function with every item, one thread an item."""
        for _ in self.pool.map(function, items):
            pass


def random_bits(
    rng: np.random.Generator, layout: str, num_rows: int, num_columns: int
) -> kernels.Matrix:
    """A matrix of finite weights; made faster than kernels.random_matrix makes one."""
    some = kernels.random_matrix(rng, layout, 64, num_columns)
    data = np.resize(some.data, some.data.nbytes // 64 * num_rows)
    scales = np.resize(some.scales, some.scales.nbytes // 64 * num_rows)
    row_bytes = some.row_bytes // 64 * num_rows if "transposed" in layout else some.row_bytes
    return dataclasses.replace(
        some, num_rows=num_rows, row_bytes=row_bytes, data=data, scales=scales
    )


def bench_matvec(isa: str, operation: str, layout: str, cores: Cores) -> Iterator[Result]:
    rng = np.random.default_rng(0)

    def rate(num_bytes: int, num_threads: int, columns: int = COLUMNS) -> float:
        """GB/s of one product, its rows shared out among the threads."""
        x = kernels.pack_lanes(kernels.random_input(rng, columns)[0], layout)
        row = kernels.random_matrix(rng, layout, 1, columns)
        row_bytes = row.data.nbytes + row.scales.nbytes
        rows = max(num_threads, num_bytes // row_bytes)
        matrix = random_bits(rng, layout, rows, columns)
        out = np.empty(rows, np.float32)
        bounds = np.linspace(0, rows, num_threads + 1).astype(int).tolist()

        def run(share: tuple[int, int]) -> None:
            first, end = share
            arguments = matrix.as_arguments()
            _core.kernel_matvec(isa, arguments, first, end - first, x, 1, out[first:end])

        shares = list(itertools.pairwise(bounds))
        once = (lambda: run(shares[0])) if num_threads == 1 else (lambda: cores.each(run, shares))
        return rows * row_bytes / seconds(once) / 1e9

    value = rate(CACHED_BYTES, 1)
    yield Result(operation, isa, "1 core, cache", value, "GB/s", cores.cache_limit)
    if not isa.startswith("scalar"):  # which are slower than any memory
        threads = cores.num_threads
        for columns in (COLUMNS, ATTENTION_COLUMNS):
            what = f"{threads} cores, memory, {columns}"
            value = rate(MEMORY_BYTES, threads, columns)
            yield Result(operation, isa, what, value, "GB/s", cores.memory_limit)


def bench_expand_panel(isa: str, operation: str, layout: str, cores: Cores) -> Iterator[Result]:
    matrix = kernels.random_matrix(np.random.default_rng(0), layout, kernels.PANEL_ROWS, COLUMNS)
    panel = kernels.expand_panel(isa, matrix)
    arguments = (isa, matrix.as_arguments(), 0, kernels.PANEL_ROWS, panel.values, panel.scales)
    elapsed = seconds(lambda: _core.kernel_expand_panel(*arguments))
    yield Result(operation, isa, "32 rows", elapsed * 1e6, "us")


def bench_multiply_panel(isa: str, operation: str, kind: str, cores: Cores) -> Iterator[Result]:
    rounds = 1_000_000
    fma_seconds = seconds(lambda: _core.measure_fma(isa, rounds))
    limit = _core.measure_fma(isa, rounds) / fma_seconds / 1e9 or None
    rng = np.random.default_rng(0)
    layout = {"scaled": "mxfp4", "unscaled": "f32"}[kind]
    matrix = kernels.random_matrix(rng, layout, kernels.PANEL_ROWS, COLUMNS)
    panel = kernels.expand_panel(isa, matrix)
    for num_tokens in TOKENS:
        x = kernels.random_input(rng, COLUMNS, num_tokens=num_tokens)
        tiles = kernels.pack_tiles(x, panel.layout)
        out = np.empty((num_tokens, kernels.PANEL_ROWS), np.float32)
        arguments = (isa, COLUMNS, panel.values, panel.scales, tiles, len(tiles), out)
        elapsed = seconds(lambda: _core.kernel_multiply_panel(*arguments))  # noqa: B023
        operations = 2 * kernels.PANEL_ROWS * COLUMNS * num_tokens
        yield Result(
            operation, isa, f"{num_tokens} tokens", operations / elapsed / 1e9, "GFLOP/s", limit
        )


def bench_product_bf16(isa: str, operation: str, layout: str, cores: Cores) -> Iterator[Result]:
    rng = np.random.default_rng(0)
    matrix = kernels.random_matrix(rng, layout, kernels.PANEL_ROWS, COLUMNS)
    for num_tokens in (1, *TOKENS):
        x = kernels.random_input(rng, COLUMNS, num_tokens=num_tokens)
        form = "vector" if num_tokens == 1 else "panel"
        elapsed = seconds(lambda: kernels.product_bf16(isa, form, matrix, x))  # noqa: B023
        operations = 2 * kernels.PANEL_ROWS * COLUMNS * num_tokens
        what = f"{num_tokens} tokens, {form}"
        yield Result(operation, isa, what, operations / elapsed / 1e9, "GFLOP/s")


def bench_attention_tile(isa: str, operation: str, kind: str, cores: Cores) -> Iterator[Result]:
    tile, head_dim = 64, 64
    rng = np.random.default_rng(0)
    dtype = {"f16": np.float16, "f32": np.float32}[kind]
    keys, values = rng.standard_normal((2, tile, head_dim)).astype(dtype)
    for num_queries in (8, 128):
        queries = rng.standard_normal((num_queries, head_dim)).astype(np.float32)
        first, end = np.zeros(num_queries, np.int32), np.full(num_queries, tile, np.int32)
        maximum, total = np.empty((2, num_queries), np.float32)
        arrays = (keys, values, queries, first, end, maximum, total, np.empty_like(queries))
        arguments = (isa, kind == "f16", head_dim, head_dim * keys.itemsize, 0.125, arrays)
        elapsed = seconds(lambda: _core.kernel_attention_tile(*arguments))  # noqa: B023
        yield Result(operation, isa, f"{num_queries} queries, 64 keys", elapsed * 1e6, "us")


def bench_elementwise(isa: str, operation: str, _: str, cores: Cores) -> Iterator[Result]:
    """At the size of one token of gpt-oss."""
    n = COLUMNS
    sizes = {
        "rms_norm": (n, n, n),
        "layer_norm": (n, n, n, n),
        "rope": (64 * 64, 32, 32),
        "rope_neighbours": (64 * 64, 32, 32),
        "swiglu": (2 * n, n),
        "convert_f32_f16": (512, 256),
        "attention_merge": (66, 64),
    }.get(operation, (n, n))
    arrays = [np.full(size, 0.5, np.float32) for size in sizes]
    elapsed = seconds(lambda: _core.kernel_elementwise(isa, operation, 1.0, 1.0, *arrays))
    yield Result(operation, isa, f"{sizes[0]} elements", elapsed * 1e6, "us")


BENCHES: dict[str, Callable[[str, str, str, Cores], Iterator[Result]]] = {
    "matvec_": bench_matvec,
    "expand_panel_": bench_expand_panel,
    "multiply_panel_": bench_multiply_panel,
    "product_bf16_": bench_product_bf16,
    "attention_tile_": bench_attention_tile,
    "": bench_elementwise,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the CPU kernels at gpt-oss's sizes.")
    parser.add_argument("--isa", help="only this instruction set")
    parser.add_argument("--operation", default="", help="only operations that begin so")
    parser.add_argument("--threads", type=int, default=_core.usable_cpus())
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args()
    cores = Cores(options.threads)
    for kernel in _core.kernels():
        operation, isa = kernel["operation"], kernel["isa"]
        wanted = kernel["available"] and operation.startswith(options.operation)
        if not wanted or options.isa not in (None, isa):
            continue
        prefix = next(prefix for prefix in BENCHES if operation.startswith(prefix))
        for result in BENCHES[prefix](isa, operation, operation.removeprefix(prefix), cores):
            if options.json:
                print(json.dumps(dataclasses.asdict(result)), flush=True)
                continue
            line = f"{operation:24} {isa:10} {result.what:22} {result.value:9.2f} {result.unit}"
            if result.limit:
                share = result.value / result.limit
                line += f"  {share:4.0%} of {result.limit:.1f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
