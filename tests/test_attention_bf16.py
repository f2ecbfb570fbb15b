"""Attention to a tile of keys at precision bf16 against the documented order in NumPy, bit for bit.

Where the processor lacks AMX, in a copy of the package that emulates its instructions.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import bf16_support as bf16
import numpy as np
import pytest
from kernel_support import assert_equal_bits, expf, sprinkle
from test_kernels_attention import (
    TILE,
    Array,
    attention_tile,
    both_caches,
    random_tile,
)

from gptoss import _core

HAS_AMX = dict(_core.bf16_isas())["amx"]
needs_amx = pytest.mark.skipif(not HAS_AMX, reason="this machine lacks amx")


@pytest.fixture
def rng() -> np.random.Generator:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def attend_by_the_book(
    keys: Array, values: Array, query: Array, begin: int, end: int, scale: float
) -> tuple[np.float32, np.float32, Array]:
    """One query -> maximum, sum, value (head_dim,)."""
    if end <= begin:
        return np.float32(-np.inf), np.float32(0), np.zeros(values.shape[1], np.float32)
    keys, values, query = (
        bf16.round_to_bf16(bf16.flush(x.astype(np.float32))) for x in (keys, values, query)
    )
    scores = bf16.amx_dots(keys[begin:end], query) * np.float32(scale)
    numbers = scores[~np.isnan(scores)]
    maximum = np.float32(numbers.max() if numbers.size else -np.inf) + np.float32(0)
    weights, seen = np.zeros(TILE, np.float32), np.zeros_like(values)
    weights[begin:end] = bf16.round_to_bf16(bf16.flush(expf(scores - maximum)))
    seen[begin:end] = values[begin:end]
    total = np.float32(0)
    for pair in weights.reshape(-1, 2):
        for weight in pair[::-1]:
            total = bf16.step(weight, np.float32(1), total)
    return maximum, total, bf16.amx_dots(seen.T, weights) + np.float32(0)


@needs_amx
@both_caches
@pytest.mark.parametrize("head_dim", [2, 6, 20, 64, 130])
@pytest.mark.parametrize(
    ("num_queries", "odd", "alike"),
    [
        (1, False, False),
        (5, False, False),
        (16, False, True),
        (17, False, False),
        (9, True, False),
        (33, True, True),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
def test_bits_are_those_of_the_documented_order(
    rng: np.random.Generator, head_dim: int, dtype: Any, num_queries: int, odd: bool, alike: bool
) -> None:
    """odd: with infinities, NaN and subnormals; alike: all queries see the whole tile."""
    keys, values, queries = random_tile(rng, head_dim, num_queries, dtype)
    if odd:
        keys, values, queries = (sprinkle(rng, x) for x in (keys, values, queries))
    first = np.zeros(num_queries, int) if alike else rng.integers(0, TILE, num_queries)
    end = np.full(num_queries, TILE) if alike else rng.integers(1, TILE + 1, num_queries)
    actual = attention_tile("amx", keys, values, queries, first, end, 0.125)
    for i, query in enumerate(queries):
        expected = attend_by_the_book(keys, values, query, first[i], end[i], 0.125)
        for name, x, y in zip(("maximum", "sum", "value"), actual, expected, strict=True):
            assert_equal_bits(x[i], np.asarray(y, np.float32), f"{name} of query {i}")


@needs_amx
@both_caches
def test_queries_together_have_the_bits_of_each_alone(rng: np.random.Generator, dtype: Any) -> None:
    for head_dim in (6, 64, 80):
        keys, values, queries = random_tile(rng, head_dim, 129, dtype)
        first, end = np.sort(rng.integers(0, 65, 129)), np.sort(rng.integers(0, 65, 129))
        together = attention_tile("amx", keys, values, queries, first, end, 0.25)
        for i in range(129):
            one = slice(i, i + 1)
            alone = attention_tile("amx", keys, values, queries[one], first[one], end[one], 0.25)
            for x, y in zip(together, alone, strict=True):
                assert_equal_bits(x[one], y, f"query {i}")


@pytest.mark.skipif(
    HAS_AMX or not dict(_core.isas()).get("avx2"),
    reason="the processor runs the tests above itself, or cannot emulate it",
)
@pytest.mark.build
def test_the_same_emulated(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parent
    subprocess.run([sys.executable, root / "emulation.py", tmp_path], check=True)
    tests = [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(tests, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed, 1 skipped" in done.stdout, done.stdout  # this test
