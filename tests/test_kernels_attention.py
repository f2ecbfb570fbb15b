"""The attention and elementwise kernels of every instruction set against the documented order in
NumPy, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_support import (
    ISAS,
    aligned_apart,
    array_at,
    assert_equal_bits,
    dot,
    expf,
    fma,
    guarded,
    sprinkle,
    sum_lanes,
)
from numpy.typing import NDArray

from gptoss import _core

Array = NDArray[Any]

TILE = 64
HEAD_DIMS = [2, 6, 16, 20, 32, 64, 80, 96, 128, 130]
LENGTHS = [1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 64, 100, 2880]

every_isa = pytest.mark.parametrize("isa", ISAS)
every_head_dim = pytest.mark.parametrize("head_dim", HEAD_DIMS)
both_caches = pytest.mark.parametrize("dtype", [np.float16, np.float32])


# ---- attention over a tile ----


def attention_tile(
    isa: str,
    keys: Array,
    values: Array,
    queries: Array,
    first: Array,
    end: Array,
    scale: float,
    row_bytes: int | None = None,
) -> tuple[Array, Array, Array]:
    """keys, values (64, head_dim) -> maximum (n,), sum (n,), value (n, head_dim)."""
    count, head_dim = queries.shape
    maximum, total = np.full(count, 7, np.float32), np.full(count, 7, np.float32)
    value = np.full((count, head_dim), 7, np.float32)
    arrays = (
        keys,
        values,
        queries,
        first.astype(np.int32),
        end.astype(np.int32),
        maximum,
        total,
        value,
    )
    is_f16 = keys.dtype == np.float16
    row_bytes = row_bytes or head_dim * keys.itemsize
    _core.kernel_attention_tile(isa, is_f16, head_dim, row_bytes, scale, arrays)
    return maximum, total, value


def attention_tile_by_the_book(
    keys: Array, values: Array, queries: Array, first: Array, end: Array, scale: float
) -> tuple[Array, Array, Array]:
    keys, values = keys.astype(np.float32), values.astype(np.float32)
    maxima, totals, outs = [], [], []
    for query, begin, stop in zip(queries, first, end, strict=True):
        seen = slice(begin, max(begin, stop))
        scores = dot(query[None], keys[seen]) * np.float32(scale)
        numbers = scores[~np.isnan(scores)]
        maximum = np.float32(numbers.max() if numbers.size else -np.inf) + np.float32(0)
        weights = expf(scores - maximum)
        lanes, value = np.zeros(16, np.float32), np.zeros(values.shape[1], np.float32)
        for j, weight in zip(range(begin, stop), weights, strict=False):
            lanes[j % 16] += weight
            value = fma(weight, values[j], value)
        maxima.append(maximum)
        totals.append(sum_lanes(lanes))
        outs.append(value)
    return np.array(maxima), np.array(totals), np.array(outs)


def random_tile(
    rng: np.random.Generator, head_dim: int, num_queries: int, dtype: Any
) -> tuple[Array, Array, Array]:
    keys, values = (rng.standard_normal((TILE, head_dim)).astype(dtype) for _ in range(2))
    queries = (3 * rng.standard_normal((num_queries, head_dim))).astype(np.float32)
    return keys, values, queries


@every_isa
@every_head_dim
@both_caches
@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
def test_attention_tile_follows_the_documented_order(isa: str, head_dim: int, dtype: Any) -> None:
    rng = np.random.default_rng(head_dim)
    for num_queries, has_odd_values in [(1, False), (5, False), (9, True)]:
        arrays = random_tile(rng, head_dim, num_queries, dtype)
        if has_odd_values:
            arrays = tuple(sprinkle(rng, x) for x in arrays)
        first, end = rng.integers(0, TILE, num_queries), rng.integers(1, TILE + 1, num_queries)
        expected = attention_tile_by_the_book(*arrays, first, end, 0.125)
        actual = attention_tile(isa, *arrays, first, end, 0.125)
        for name, x, y in zip(("maximum", "sum", "value"), actual, expected, strict=True):
            assert_equal_bits(x, y, name)


@every_isa
@both_caches
def test_attention_tile_in_groups_of_queries(isa: str, dtype: Any) -> None:
    """Kernels take queries that see the same keys together: with the bits of one at a time."""
    rng = np.random.default_rng(5)
    for head_dim in (6, 64, 80):
        keys, values, queries = random_tile(rng, head_dim, 23, dtype)
        first = np.repeat([0, 3, 3, 10, 64], [9, 5, 1, 6, 2])
        end = np.repeat([64, 40, 41, 11, 64], [9, 5, 1, 6, 2])
        together = attention_tile(isa, keys, values, queries, first, end, 0.25)
        for i in range(23):
            alone = attention_tile(
                isa, keys, values, queries[i : i + 1], first[i : i + 1], end[i : i + 1], 0.25
            )
            for x, y in zip(together, alone, strict=True):
                assert_equal_bits(x[i : i + 1], y, f"query {i}")


@every_isa
def test_a_query_that_sees_nothing(isa: str) -> None:
    keys, values, queries = random_tile(np.random.default_rng(6), 20, 3, np.float16)
    first, end = np.array([5, 64, 9]), np.array([5, 64, 3])
    maximum, total, value = attention_tile(isa, keys, values, queries, first, end, 0.5)
    assert (maximum == -np.inf).all() and (total == 0).all() and (value == 0).all()


@every_isa
def test_the_maximum_of_zeros_is_positive(isa: str) -> None:
    """A score that underflows to -0 must not let the maximum depend on the order of keys."""
    keys = np.zeros((TILE, 2), np.float32)
    keys[::2, 0] = -1e-45
    queries, first = np.ones((2, 2), np.float32), np.array([0, 2])
    maximum, _, _ = attention_tile(isa, keys, keys, queries, first, np.array([1, TILE]), 0.125)
    assert not np.signbit(maximum).any()


@every_isa
@both_caches
@pytest.mark.parametrize("head_dim", [6, 20, 64])
@pytest.mark.parametrize("at_end", [True, False])
def test_attention_tile_reads_nothing_else(
    isa: str, dtype: Any, head_dim: int, at_end: bool
) -> None:
    """The rows that queries see end before an unreadable page or begin after one."""
    rng = np.random.default_rng(7)
    keys, values, queries = random_tile(rng, head_dim, 5, dtype)
    row_bytes, num_rows = head_dim * keys.itemsize, 13
    first = np.full(5, 0 if at_end else TILE - num_rows)
    end = first + num_rows
    expected = attention_tile(isa, keys, values, queries, first, end, 0.25)
    size = num_rows * row_bytes
    with guarded(size, at_end=at_end) as key_memory, guarded(size, at_end=at_end) as value_memory:
        guarded_tiles = []
        for address, rows in ((key_memory, keys), (value_memory, values)):
            array_at(address, num_rows * head_dim, dtype)[:] = rows[first[0] : end[0]].ravel()
            tile = address - int(first[0]) * row_bytes
            guarded_tiles.append(array_at(tile, TILE * head_dim, dtype))
        actual = attention_tile(isa, *guarded_tiles, queries, first, end, 0.25)
        for x, y in zip(actual, expected, strict=True):
            assert_equal_bits(x, y)


@every_isa
def test_attention_tile_with_rows_apart_and_unaligned(isa: str) -> None:
    rng = np.random.default_rng(8)
    wide = rng.standard_normal((TILE, 37)).astype(np.float16)
    keys, values = wide[:, :20], wide[::-1, :20]
    queries = rng.standard_normal((4, 20)).astype(np.float32)
    first, end = np.zeros(4, int), np.full(4, TILE)
    expected = attention_tile(isa, keys.copy(), values.copy(), queries, first, end, 1.0)
    spread = [np.zeros((TILE, 37), np.float16) for _ in range(2)]
    for target, rows in zip(spread, (keys, values), strict=True):
        target[:, :20] = rows
    tiles = [aligned_apart(x, 2) for x in spread]
    actual = attention_tile(isa, *tiles, aligned_apart(queries), first, end, 1.0, row_bytes=74)
    for x, y in zip(actual, expected, strict=True):
        assert_equal_bits(x, y)


# ---- tiles joined ----


def elementwise(isa: str, operation: str, *arrays: Array, a: float = 0, b: float = 0) -> None:
    _core.kernel_elementwise(isa, operation, a, b, *arrays)


def attend(isa: str, keys: Array, values: Array, query: Array, sink: float) -> Array:
    state = np.concatenate([[sink, 1], np.zeros(query.size)]).astype(np.float32)
    for start in range(0, len(keys), TILE):
        rows = slice(start, start + TILE)
        count = np.array([len(keys[rows])])
        maximum, total, value = attention_tile(
            isa, keys[rows].copy(), values[rows].copy(), query[None], np.array([0]), count, 0.25
        )
        elementwise(isa, "attention_merge", state, value[0], a=maximum[0], b=total[0])
    result = np.empty(query.size, np.float32)
    elementwise(isa, "divide", state[2:].copy(), result, a=state[1])
    return result


@every_isa
@pytest.mark.parametrize("sink", [-50.0, 0.0, 3.0, 60.0])
def test_tiles_joined_are_a_softmax(isa: str, sink: float) -> None:
    rng = np.random.default_rng(9)
    keys, values = (rng.standard_normal((300, 32)).astype(np.float16) for _ in range(2))
    query = (8 * rng.standard_normal(32)).astype(np.float32)
    scores = keys.astype(np.float64) @ query.astype(np.float64) * 0.25
    top = max(scores.max(), sink)
    weights = np.exp(scores - top)
    expected = weights @ values.astype(np.float64) / (weights.sum() + np.exp(sink - top))
    np.testing.assert_allclose(attend(isa, keys, values, query, sink), expected, rtol=0, atol=2e-6)


@every_isa
@every_head_dim
@pytest.mark.parametrize(
    "maxima", [(1.5, 0.5), (0.5, 1.5), (2.0, 2.0), (-np.inf, 1.0), (np.nan, 1.0)]
)
def test_attention_merge(isa: str, head_dim: int, maxima: tuple[float, float]) -> None:
    rng = np.random.default_rng(head_dim)
    state = np.concatenate([[maxima[0], 3.7], rng.standard_normal(head_dim)]).astype(np.float32)
    value = sprinkle(rng, rng.standard_normal(head_dim).astype(np.float32), 0.1)
    old, tile_maximum, tile_sum = state.copy(), np.float32(maxima[1]), np.float32(5.3)
    elementwise(isa, "attention_merge", state, value, a=tile_maximum, b=tile_sum)
    common = tile_maximum if tile_maximum > old[0] else old[0]
    before, after = expf(np.array([old[0] - common, tile_maximum - common]))
    expected = np.concatenate(
        [[common], fma(tile_sum, after, old[1] * before)[None], fma(value, after, old[2:] * before)]
    )
    assert_equal_bits(state, expected.astype(np.float32))


# ---- elementwise ----


def inputs(length: int, seed: int, count: int = 2) -> list[Array]:
    rng = np.random.default_rng(seed)
    arrays = [4 * rng.standard_normal(length).astype(np.float32) for _ in range(count)]
    return [aligned_apart(sprinkle(rng, x) if seed % 2 else x) for x in arrays]


both_kinds = pytest.mark.parametrize("seed", [2, 3])  # odd: with NaN, infinities, zeros, subnormals
every_length = pytest.mark.parametrize("length", LENGTHS)
pytestmark = pytest.mark.filterwarnings(
    "ignore:invalid value", "ignore:overflow", "ignore:divide by zero"
)


@every_isa
@every_length
@both_kinds
def test_rms_norm(isa: str, length: int, seed: int) -> None:
    x, gain = inputs(length, seed)
    out = np.empty_like(x)
    elementwise(isa, "rms_norm", x, gain, out, a=1e-5)
    one, n = np.float32(1), np.float32(length)
    scale = one / np.sqrt(dot(x, x) / n + np.float32(1e-5))
    assert_equal_bits(out, x * scale * gain)


@every_isa
@both_kinds
@pytest.mark.parametrize("half", [1, 3, 8, 10, 16, 32, 40])
def test_rope(isa: str, half: int, seed: int) -> None:
    x, cosine, sine = (
        inputs(10 * half, seed)[0],
        *(y[:half].copy() for y in inputs(max(half, 3), seed)),
    )
    heads = x.reshape(5, 2, half)
    a, b = heads[:, 0].copy(), heads[:, 1].copy()
    elementwise(isa, "rope", x, cosine, sine)
    expected = np.stack([fma(-b, sine, a * cosine), fma(a, sine, b * cosine)], axis=1)
    assert_equal_bits(heads, expected)


@every_isa
@every_length
@both_kinds
def test_swiglu(isa: str, length: int, seed: int) -> None:
    gate_up = inputs(2 * length, seed)[0]
    out = np.empty(length, np.float32)
    elementwise(isa, "swiglu", gate_up, out, a=7.0, b=1.702)
    gate, up = gate_up[::2], gate_up[1::2]
    gate = np.where(gate > 7, np.float32(7), gate)
    up = np.where(up > 7, np.float32(7), np.where(up < -7, np.float32(-7), up))
    one = np.float32(1)
    sigmoid = one / (one + expf(-(np.float32(1.702) * gate)))
    assert_equal_bits(out, gate * sigmoid * (up + one))


@every_isa
@every_length
@both_kinds
def test_layer_norm(isa: str, length: int, seed: int) -> None:
    x, gain, bias = inputs(length, seed, 3)
    out = np.empty_like(x)
    elementwise(isa, "layer_norm", x, gain, bias, out, a=1e-5)
    one, n = np.float32(1), np.float32(length)
    centred = x - dot(x, np.ones_like(x)) / n
    scale = one / np.sqrt(dot(centred, centred) / n + np.float32(1e-5))
    assert_equal_bits(out, fma(centred * scale, gain, bias))


@every_isa
@both_kinds
@pytest.mark.parametrize("half", [1, 3, 8, 10, 16, 32, 40])
def test_rope_neighbours(isa: str, half: int, seed: int) -> None:
    x, cosine, sine = (
        inputs(10 * half, seed)[0],
        *(y[:half].copy() for y in inputs(max(half, 3), seed)),
    )
    pairs = x.reshape(5, half, 2)
    a, b = pairs[..., 0].copy(), pairs[..., 1].copy()
    elementwise(isa, "rope_neighbours", x, cosine, sine)
    expected = np.stack([fma(-b, sine, a * cosine), fma(a, sine, b * cosine)], axis=-1)
    assert_equal_bits(pairs, expected)


@every_isa
@every_length
@both_kinds
def test_silu_multiply(isa: str, length: int, seed: int) -> None:
    gate, up = inputs(length, seed)
    out, one = gate.copy(), np.float32(1)
    elementwise(isa, "silu_multiply", out, up)
    assert_equal_bits(out, gate * (one / (one + expf(-gate))) * up)


@every_isa
@every_length
@both_kinds
def test_gelu(isa: str, length: int, seed: int) -> None:
    x = inputs(length, seed)[0]
    out, one = np.empty_like(x), np.float32(1)
    elementwise(isa, "gelu", x, out)
    linear, cubic = np.float32(2 * np.sqrt(2 / np.pi)), np.float32(0.08943 * np.sqrt(2 / np.pi))
    assert_equal_bits(out, x * (one / (one + expf(-(x * fma(x * x, cubic, linear))))))


def test_gelu_is_accurate() -> None:
    """Below -4, where it is tiny, the rounding of exp's argument shows."""
    x = np.linspace(-12, 12, 400_001, dtype=np.float32)
    out = np.empty_like(x)
    elementwise("scalar", "gelu", x, out)
    wide = x.astype(np.longdouble)
    inner = np.sqrt(2 / np.longdouble(np.pi)) * (wide + np.longdouble(0.044715) * wide**3)
    exact = wide / (1 + np.exp(-2 * inner))
    error = np.abs(out - exact)
    assert (error <= 2.5e-7 * np.abs(exact))[x >= 0].all()
    assert (error <= 1.3e-6 * np.abs(exact))[x > -4].all()
    assert error[x <= -4].max() < 1e-10


@every_isa
@every_length
@both_kinds
def test_add_multiply_add_divide(isa: str, length: int, seed: int) -> None:
    x, y = inputs(length, seed)
    total = x.copy()
    elementwise(isa, "add", total, y)
    assert_equal_bits(total, x + y)
    total = x.copy()
    elementwise(isa, "multiply_add", total, y, a=0.3)
    assert_equal_bits(total, fma(np.float32(0.3), y, x))
    elementwise(isa, "divide", x, total, a=0.7)
    assert_equal_bits(total, x / np.float32(0.7))


@every_isa
def test_convert_f32_f16(isa: str) -> None:
    """Every half, the points between halves and their neighbours, and a sweep of all floats."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (halves[:-1] + halves[1:]) / 2
    sweep = np.arange(0, 2**32, 9973, dtype=np.uint64).astype(np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        beside = [np.nextafter(between, np.float32(to)) for to in (-np.inf, np.inf)]
        overflow = np.array([65519.996, 65520.0, 65536.0], np.float32)
        x = np.concatenate([halves, between, *beside, overflow, -overflow, sweep])
        expected = x.astype(np.float16)
    out = np.empty(x.size, np.uint16)
    elementwise(isa, "convert_f32_f16", x, out)
    assert_equal_bits(out.view(np.float16), expected)
    payload = np.array([0x7F812345, 0xFFC00001, 0x7F800001], np.uint32).view(np.float32)
    out = np.empty(3, np.uint16)
    elementwise(isa, "convert_f32_f16", payload, out)
    assert [hex(bits) for bits in out] == ["0x7e09", "0xfe00", "0x7e00"]


@every_isa
@pytest.mark.parametrize("length", [1, 7, 16, 33, 100])
def test_elementwise_stays_within_its_arrays(isa: str, length: int) -> None:
    """Every array ends right before an unreadable page."""
    x, y = inputs(2 * length, 2)
    operations: list[tuple[str, list[int]]] = [
        ("add", [length, length]),
        ("multiply_add", [length, length]),
        ("divide", [length, length]),
        ("rms_norm", [length, length, length]),
        ("layer_norm", [length, length, length, length]),
        ("swiglu", [2 * length, length]),
        ("silu_multiply", [length, length]),
        ("gelu", [length, length]),
        ("rope", [2 * length, length, length]),
        ("rope_neighbours", [2 * length, length, length]),
        ("attention_merge", [length + 2, length]),
    ]
    for operation, sizes in operations:
        source = [
            np.resize(values, size) for values, size in zip((x, y, x, y), sizes, strict=False)
        ]
        expected = [part.copy() for part in source]
        elementwise(isa, operation, *expected, a=0.5, b=1.0)
        with (
            guarded(4 * sizes[0], at_end=True) as first,
            guarded(4 * sizes[1], at_end=True) as second,
            guarded(4 * sizes[-1], at_end=True) as third,
            guarded(4 * sizes[-1], at_end=True) as fourth,
        ):
            places = (first, second, third, fourth)
            actual = [
                array_at(at, size, np.float32) for at, size in zip(places, sizes, strict=False)
            ]
            for target, part in zip(actual, source, strict=True):
                target[:] = part
            elementwise(isa, operation, *actual, a=0.5, b=1.0)
            for result, part in zip(actual, expected, strict=True):
                assert_equal_bits(result, part, operation)
