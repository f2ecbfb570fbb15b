"""gptoss.mx: every code against ml_dtypes, encoding against plain float64 arithmetic."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

import gptoss
from gptoss import mx

Array = NDArray[Any]

DTYPES: dict[str, Any] = {
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}
ELEMENTS = (*DTYPES, "int8")
EMAX = {"e2m1": 2, "e2m3": 2, "e3m2": 4, "e4m3": 8, "e5m2": 15, "int8": 0}  # table 2 of the spec
LARGEST = {"e2m1": 6, "e2m3": 7.5, "e3m2": 28, "e4m3": 448, "e5m2": 57344, "int8": 127 / 64}
SPECIAL = np.array([0, -0.0, 1e-45, -1e-45, 1.1754944e-38, 3.4028235e38, -3.4028235e38], np.float32)


@pytest.fixture
def rng() -> np.random.Generator:
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def values_of(element: str) -> Array:
    """float64 value of every code."""
    if element == "int8":
        return np.arange(256).astype(np.uint8).view(np.int8) / 64
    dtype = DTYPES[element]
    codes = np.arange(1 << mx.FORMATS[element].bits, dtype=np.uint8)
    return codes.view(dtype).astype(np.float64)


def e8m0(scales: Array) -> Array:
    return scales.view(ml_dtypes.float8_e8m0fnu).astype(np.float64)


def grid_of(element: str) -> tuple[Array, Array]:
    """Magnitudes from zero to the largest, ascending, and their codes."""
    values = values_of(element)
    count = mx.FORMATS[element].max_code + 1
    return values[:count], np.arange(count)


def nearest(element: str, magnitudes: Array) -> Array:
    """Codes of the nearest grid values, ties to the even code, saturating."""
    grid, codes = grid_of(element)
    upper = np.searchsorted(grid, magnitudes).clip(1, len(grid) - 1)
    below, above = magnitudes - grid[upper - 1], grid[upper] - magnitudes
    even = np.where(codes[upper] % 2 == 0, upper, upper - 1)
    chosen = np.where(below < above, upper - 1, np.where(above < below, upper, even))
    return codes[chosen]


def encode_at(element: str, blocks: Array, scales: Array) -> Array:
    """blocks (n, 32) and exponents (n,) to codes, in float64, where all of it is exact."""
    scaled = np.ldexp(blocks.astype(np.float64), -scales[:, None])
    magnitude = nearest(element, np.abs(scaled))
    negative = np.signbit(blocks)
    if element == "int8":
        return np.where(negative, -magnitude, magnitude).astype(np.int8).view(np.uint8)
    return (magnitude | negative << (mx.FORMATS[element].bits - 1)).astype(np.uint8)


def encode_reference(element: str, blocks: Array) -> tuple[Array, Array]:
    largest = np.abs(blocks.astype(np.float64)).max(axis=1)
    exponent = np.frexp(largest)[1] - 1  # floor(log2), exact
    scales = np.where(largest == 0, -127, np.maximum(exponent - EMAX[element], -127))
    return encode_at(element, blocks, scales), (scales + 127).astype(np.uint8)


def hard_blocks(element: str, rng: np.random.Generator) -> Array:
    """Random blocks of all magnitudes, grid values, ties, their float32 neighbours, extremes."""
    grid = grid_of(element)[0]
    ties = (grid[:-1] + grid[1:]) / 2
    exact = np.concatenate([grid, ties, np.nextafter(grid, 1e9), [LARGEST[element] * 1.9]])
    edges = np.concatenate([exact, ties * (1 + 2**-23), ties * (1 - 2**-24)]).astype(np.float32)
    picked = rng.choice(np.concatenate([edges, -edges]), (400, 32))
    picked[:, 0] = LARGEST[element]  # so that the scale is 1, and ties stay ties
    shifted = np.ldexp(picked, rng.integers(-130, 110, (400, 1)))
    wild = rng.standard_normal((400, 32)) * 10.0 ** rng.integers(-45, 38, (400, 1))
    spread = rng.standard_normal((400, 32)) * 10.0 ** rng.uniform(-6, 0, (400, 32))
    special = rng.choice(np.concatenate([SPECIAL, edges]), (200, 32))
    one_hot = np.eye(32) * np.ldexp(1.0, rng.integers(-149, 128, 32))
    with np.errstate(over="ignore"):
        parts = [picked, shifted, wild, spread, special, one_hot, np.zeros((1, 32))]
        blocks = np.concatenate(parts).astype(np.float32)
    return blocks[np.isfinite(blocks).all(axis=1)]


@pytest.mark.parametrize("element", ELEMENTS)
def test_every_code_and_every_scale(element: str) -> None:
    values = values_of(element)
    codes = np.tile(np.resize(np.arange(len(values), dtype=np.uint8), 256), (256, 1))
    scales = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 8, axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        product = values[codes].reshape(256, 8, 32) * e8m0(scales)[..., None]
        expected = product.reshape(256, 256).astype(np.float32)
    decoded = mx.decode(codes, scales, element)
    np.testing.assert_array_equal(decoded, expected)
    known = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(decoded[known]), np.signbit(expected[known]))


@pytest.mark.parametrize("element", ELEMENTS)
def test_formats_say_what_they_are(element: str) -> None:
    form = mx.FORMATS[element]
    assert form.max_value == LARGEST[element] and form.max_exponent == EMAX[element]
    if element != "int8":
        info = ml_dtypes.finfo(DTYPES[element])
        assert form.max_value == float(info.max)
        assert (form.bits, form.mantissa_bits) == (info.bits, info.nmant)
        assert form.min_exponent == info.minexp


@pytest.mark.parametrize("element", ELEMENTS)
def test_encode_is_round_to_nearest_even(element: str, rng: np.random.Generator) -> None:
    blocks = hard_blocks(element, rng)
    codes, scales = mx.encode(blocks, element)
    expected_codes, expected_scales = encode_reference(element, blocks)
    np.testing.assert_array_equal(scales[:, 0], expected_scales)
    np.testing.assert_array_equal(codes, expected_codes)


@pytest.mark.parametrize("element", DTYPES)
def test_encode_agrees_with_ml_dtypes(element: str, rng: np.random.Generator) -> None:
    blocks = rng.standard_normal((500, 32)).astype(np.float32)
    codes, scales = mx.encode(blocks, element)
    scaled = np.clip(blocks / e8m0(scales), -LARGEST[element], LARGEST[element])
    np.testing.assert_array_equal(codes, scaled.astype(DTYPES[element]).view(np.uint8))


@pytest.mark.parametrize("element", ELEMENTS)
def test_search_finds_the_best_of_all_scales(element: str, rng: np.random.Generator) -> None:
    blocks = hard_blocks(element, rng)
    blocks = np.concatenate([blocks[rng.permutation(len(blocks))[:200]], blocks[-33:]])
    # Few large values among many small ones, where lower scales win.
    picked = rng.choice(np.ldexp(1.0, np.arange(-6, 1)), (100, 32)).astype(np.float32)
    blocks = np.concatenate([blocks, picked * np.float32(1.01), np.sqrt(picked)])
    codes, scales = mx.encode(blocks, element, scale="search")
    errors = np.square(decode_wide(element, codes, scales) - blocks).sum(axis=1)
    least = np.full(len(blocks), np.inf)
    for byte in range(255):
        tried = encode_at(element, blocks, np.full(len(blocks), byte - 127))
        values = decode_wide(element, tried, np.full((len(blocks), 1), byte, np.uint8))
        least = np.minimum(least, np.square(values - blocks).sum(axis=1))
    np.testing.assert_allclose(errors, least, rtol=1e-9)
    exponents = scales[:, 0].astype(np.int32) - 127
    np.testing.assert_array_equal(codes, encode_at(element, blocks, exponents))


def decode_wide(element: str, codes: Array, scales: Array) -> Array:
    """float64, where nothing is infinite."""
    return values_of(element)[codes] * e8m0(scales)


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("scale", ["floor", "search"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_block_with_no_number_is_nan(element: str, scale: str, bad: float) -> None:
    values = np.ones((3, 64), np.float32)
    values[1, 40] = bad
    codes, scales = mx.encode(values, element, scale=scale)
    assert scales[1, 1] == 0xFF and not codes[1, 32:].any()
    decoded = mx.decode(codes, scales, element)
    assert np.isnan(decoded[1, 32:]).all()
    decoded[1, 32:] = 1
    assert (decoded == 1).all()


@pytest.mark.parametrize("element", ELEMENTS)
def test_zeros(element: str) -> None:
    codes, scales = mx.encode([0.0] * 16 + [-0.0] * 16, element)
    decoded = mx.decode(codes, scales, element)
    assert scales.tolist() == [0] and not decoded.any()
    if element != "int8":  # two's complement has one zero
        assert np.signbit(decoded).tolist() == [False] * 16 + [True] * 16


@given(
    st.sampled_from(ELEMENTS),
    arrays(np.float32, (2, 32), elements=st.floats(width=32, allow_nan=False)),
)
@settings(max_examples=200, deadline=None)
def test_decoded_values_encode_to_themselves(element: str, values: Array) -> None:
    codes, scales = mx.encode(values, element)
    decoded = mx.decode(codes, scales, element)
    finite = np.isfinite(values).all(axis=1)
    again = mx.decode(*mx.encode(decoded, element), element)
    np.testing.assert_array_equal(again, decoded)
    largest = np.abs(values[finite]).max(axis=1, initial=0, keepdims=True).astype(np.float64)
    # Half a step of the largest element, or what saturates; half a step at the smallest scale.
    bound = largest * 0.25 + 2.0**-127
    assert (np.abs(decoded[finite] - values[finite].astype(np.float64)) <= bound).all()


@pytest.mark.parametrize("shape", [(0,), (32,), (3, 0), (2, 3, 64), (0, 32)])
def test_shapes(shape: tuple[int, ...]) -> None:
    codes, scales = mx.encode(np.ones(shape), "e2m3")
    assert codes.shape == shape and scales.shape == (*shape[:-1], shape[-1] // 32)
    decoded = mx.decode(codes, scales, "e2m3")
    assert decoded.shape == shape and decoded.dtype == np.float32 and (decoded == 1).all()
    strided = np.ones((*shape[:-1], shape[-1] * 2))[..., ::2]
    np.testing.assert_array_equal(mx.encode(strided, "e2m3")[0], codes)


@pytest.mark.parametrize("count", [1, 31, 33, 48])
def test_other_widths_are_refused(count: int) -> None:
    with pytest.raises(gptoss.ArgumentError, match=f"multiple of 32.*{count}"):
        mx.encode(np.ones((2, count)), "e2m1")
    with pytest.raises(gptoss.ArgumentError, match="multiple of 32"):
        mx.decode(np.ones((2, count), np.uint8), np.ones((2, 1), np.uint8), "e2m1")


def test_wrong_arguments() -> None:
    codes, scales = np.zeros(64, np.uint8), np.zeros(2, np.uint8)
    with pytest.raises(gptoss.ArgumentError, match=r"did you mean .*'e2m3'"):
        mx.encode(np.ones(32), "e2m2")
    with pytest.raises(gptoss.ArgumentError, match="'floor' or 'search'"):
        mx.encode(np.ones(32), "e2m1", scale="best")
    with pytest.raises(gptoss.ArgumentError, match="multiple of 32"):
        mx.encode(1.0, "e2m1")
    with pytest.raises(gptoss.ArgumentError, match="array of numbers"):
        mx.encode(["one"] * 32, "e2m1")
    with pytest.raises(gptoss.ArgumentError, match=r"scales of shape \(2,\), not \(3,\)"):
        mx.decode(codes, np.zeros(3, np.uint8), "e2m1")
    with pytest.raises(gptoss.ArgumentError, match="codes must be uint8, not float64"):
        mx.decode(codes / 1.0, scales, "e2m1")
    with pytest.raises(gptoss.ArgumentError, match="4 bits, but one is 16"):
        mx.decode(codes + 16, scales, "e2m1")


# ---- MXFP4 with a binary16 scale ----


def f16_scaled_reference(blocks: Array, bias: int) -> tuple[Array, Array]:
    """Scales (binary16) and codes, from the definition."""
    unit = np.float32(1 if bias == 1 else 0.5)
    wanted = np.abs(blocks).max(axis=1) / (6 * unit)
    scales = np.minimum(wanted, np.float32(65504)).astype(np.float16)
    divisor = (scales.astype(np.float32) * unit)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.where(divisor > 0, blocks / divisor, np.float32(0))
    codes = nearest("e2m1", np.abs(scaled.astype(np.float64))) | np.signbit(scaled) << 3
    return scales, codes.astype(np.uint8)


@pytest.mark.parametrize("bias", [1, 2])
def test_f16_scaled(bias: int, rng: np.random.Generator) -> None:
    blocks = hard_blocks("e2m1", rng)
    packed = mx.encode_f16_scaled(blocks, exponent_bias=bias)
    assert packed.shape == (len(blocks), 1, 18)
    scales, codes = f16_scaled_reference(blocks, bias)
    np.testing.assert_array_equal(packed[:, 0, :2].copy().view(np.float16)[:, 0], scales)
    np.testing.assert_array_equal(packed[:, 0, 2:], codes[:, ::2] | codes[:, 1::2] << 4)
    values = values_of("e2m1")[codes] * scales.astype(np.float64)[:, None] / bias
    np.testing.assert_array_equal(mx.decode_f16_scaled(packed, exponent_bias=bias), values)


def test_f16_scaled_edges() -> None:
    values = np.ones((2, 64), np.float32)
    values[1, 5] = np.inf
    decoded = mx.decode_f16_scaled(mx.encode_f16_scaled(values))
    assert np.isnan(decoded[1, :32]).all() and (decoded[0] == decoded[1, 32:].max()).all()
    with pytest.raises(gptoss.ArgumentError, match="1 or 2"):
        mx.encode_f16_scaled(values, exponent_bias=3)
    with pytest.raises(gptoss.ArgumentError, match="multiple of 32"):
        mx.encode_f16_scaled(values[:, :40])
    with pytest.raises(gptoss.ArgumentError, match=r"\(..., n, 18\)"):
        mx.decode_f16_scaled(np.zeros((2, 17), np.uint8))
