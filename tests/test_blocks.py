"""Encoding weights: ggml's bytes where the gguf package has them, else bounds on the error."""

from __future__ import annotations

import ctypes
import platform
import sys
import zlib
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from test_bit_identity import FloatEnvironment

import gptoss
from gptoss import blocks, mx

Array = NDArray[Any]

SAME_BYTES = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
K_QUANTS = ("Q4_K", "Q5_K", "Q6_K")
PACKED = (*SAME_BYTES, *K_QUANTS, "MXFP4")

# Relative root mean square error of ggml's reference on a million values of each distribution.
GGML_ERROR = {
    ("Q4_K", "normal"): 0.07137,
    ("Q5_K", "normal"): 0.03613,
    ("Q6_K", "normal"): 0.01775,
    ("MXFP4", "normal"): 0.1152,
    ("Q4_K", "laplace"): 0.08466,
    ("Q5_K", "laplace"): 0.04284,
    ("Q6_K", "laplace"): 0.02166,
    ("MXFP4", "laplace"): 0.1267,
    ("Q4_K", "uniform"): 0.05459,
    ("Q5_K", "uniform"): 0.02761,
    ("Q6_K", "uniform"): 0.01325,
    ("MXFP4", "uniform"): 0.1440,
}


@pytest.fixture
def rng() -> np.random.Generator:
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def type_of(format: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[format]


def gguf_decode(packed: Array, format: str) -> Array:
    rows = packed.reshape(-1, packed.shape[-2] * packed.shape[-1])
    values: Array = gguf.quants.dequantize(rows, type_of(format))
    return values.reshape(*packed.shape[:-2], -1)


def relative_error(decoded: Array, values: Array) -> float:
    difference = decoded.astype(np.float64) - values
    return float(np.sqrt(np.square(difference).sum() / np.square(values, dtype=np.float64).sum()))


def hard_rows(rng: np.random.Generator) -> Array:
    """(n, 256): random rows of many magnitudes, ties, zeros, constants, lone values."""
    normal = rng.standard_normal((60, 256)) * 10.0 ** rng.uniform(-4, 4, (60, 1))
    spread = rng.standard_normal((60, 256)) * 10.0 ** rng.uniform(-5, 0, (60, 256))
    integers = rng.integers(-127, 128, (60, 256)) / 2.0
    integers[:, ::32] = 127 / 2  # scales are exact, halves are ties
    few = rng.choice([-1.0, -0.5, 0.0, 0.5, 1.0], (40, 256))
    lone = np.where(rng.random((40, 256)) < 0.02, rng.standard_normal((40, 256)), 0)
    constant = np.broadcast_to(rng.standard_normal((20, 1)), (20, 256))
    signed = np.abs(rng.standard_normal((20, 256))) * rng.choice([-1, 1], (20, 1))
    rows = [normal, spread, integers, few, lone, constant, signed, np.zeros((1, 256))]
    return np.concatenate(rows).astype(np.float32)


@pytest.mark.parametrize("format", SAME_BYTES)
def test_same_bytes_as_the_gguf_package(format: str, rng: np.random.Generator) -> None:
    rows = hard_rows(rng)
    packed = blocks.encode(rows, format)
    with np.errstate(all="ignore"):
        expected = gguf.quants.quantize(rows, type_of(format))
    np.testing.assert_array_equal(packed.reshape(expected.shape), expected)


@pytest.mark.parametrize("format", ["F16", "BF16", "F32"])
def test_elements_are_rounded_to_nearest_even(format: str, rng: np.random.Generator) -> None:
    bits = rng.integers(0, 2**32, 1 << 16, dtype=np.uint32)
    small = np.arange(-999, 999, dtype=np.float32) / np.float32(2**25)
    values = np.concatenate([bits.view(np.float32), small])
    dtype = {"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32}[format]
    with np.errstate(over="ignore", invalid="ignore"):
        values = values[np.isfinite(values.astype(dtype).astype(np.float32))]
        expected = values.astype(dtype)
    encoded = blocks.encode(values, format)
    assert encoded.dtype == dtype
    np.testing.assert_array_equal(encoded.view(np.uint8), expected.view(np.uint8))
    np.testing.assert_array_equal(blocks.decode(encoded, format), expected.astype(np.float32))


@pytest.mark.parametrize("format", PACKED)
def test_decodes_as_the_gguf_package_does(format: str, rng: np.random.Generator) -> None:
    packed = blocks.encode(hard_rows(rng), format)
    np.testing.assert_array_equal(blocks.decode(packed, format), gguf_decode(packed, format))


@pytest.mark.parametrize("distribution", ["normal", "laplace", "uniform"])
@pytest.mark.parametrize("format", (*K_QUANTS, "MXFP4"))
def test_error_is_below_that_of_ggml(
    format: str, distribution: str, rng: np.random.Generator
) -> None:
    draw = {
        "normal": rng.standard_normal,
        "laplace": lambda shape: rng.laplace(size=shape),
        "uniform": lambda shape: rng.uniform(-1, 1, shape),
    }[distribution]
    values = draw((64, 2048)).astype(np.float32)
    error = relative_error(gguf_decode(blocks.encode(values, format), format), values)
    assert error < GGML_ERROR[format, distribution]


@pytest.mark.parametrize("format", K_QUANTS)
def test_large_and_small_scales_have_the_same_error(format: str, rng: np.random.Generator) -> None:
    """But for the binary16 scale, which has fewer bits below 2^-14, a power of two changes
    nothing."""
    values = rng.standard_normal((8, 256)).astype(np.float32)
    errors = [
        relative_error(blocks.decode(blocks.encode(values * scale, format), format), values * scale)
        for scale in (np.float32(1), np.float32(2**8), np.float32(2**-2))
    ]
    assert errors[1] == errors[0] and errors[2] <= errors[0] * 1.01


@given(
    st.sampled_from(PACKED),
    arrays(np.float32, 256, elements=st.floats(-60000, 60000, width=32)),
)
@settings(max_examples=300, deadline=None)
def test_any_values(format: str, values: Array) -> None:
    decoded = blocks.decode(blocks.encode(values, format), format)
    span = float(np.abs(values).max())
    # A quarter of the largest magnitude (MXFP4 has one bit of mantissa), or what underflows.
    assert (np.abs(decoded.astype(np.float64) - values) <= span * 0.26 + 2.0**-24 * 2048).all()


@pytest.mark.parametrize("format", blocks.ENCODED)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(format: str, bad: float) -> None:
    values = np.zeros((3, 512), np.float32)
    values[1, 300] = bad
    with pytest.raises(gptoss.NumericError, match=rf"{format}.*\(1, \d+\): -?(nan|inf).*finite"):
        blocks.encode(values, format)


@pytest.mark.parametrize("format", [f for f in blocks.ENCODED if f not in ("F32", "MXFP4")])
def test_what_is_too_large_is_refused(format: str) -> None:
    values = np.zeros((2, 256), np.float32)
    values[1, 7], values[1, 8] = 3.4e38, -3.4e38
    with pytest.raises(gptoss.NumericError, match=r"3\.4e.38 is beyond its range"):
        blocks.encode(values, format)


@pytest.mark.parametrize("format", PACKED)
def test_shapes(format: str) -> None:
    elements, block_bytes = blocks.block_of(format)
    for shape in ((0,), (elements,), (2, 3, elements * 2), (0, elements)):
        packed = blocks.encode(np.ones(shape), format)
        assert packed.shape == (*shape[:-1], shape[-1] // elements, block_bytes)
        assert blocks.decode(packed, format).shape == shape
    for width in (1, elements - 1, elements + 1):
        with pytest.raises(gptoss.ArgumentError, match=f"blocks of {elements} along the last axis"):
            blocks.encode(np.ones((2, width)), format)
    with pytest.raises(gptoss.ArgumentError, match=rf"blocks, {block_bytes}\), not uint8 \(3, 5\)"):
        blocks.decode(np.zeros((3, 5), np.uint8), format)


def test_wrong_formats() -> None:
    with pytest.raises(gptoss.ArgumentError, match=r"'Q4_L'.*did you mean.*'Q4_K'"):
        blocks.encode(np.ones(256), "Q4_L")
    with pytest.raises(gptoss.ArgumentError, match="'Q2_K'"):
        blocks.encode(np.ones(256), "Q2_K")
    with pytest.raises(gptoss.ArgumentError, match="'U8' is no format of weights"):
        blocks.decode(np.ones(4, np.uint8), "U8")
    with pytest.raises(gptoss.ArgumentError, match="BF16 is stored as bfloat16, not float32"):
        blocks.decode(np.ones(4, np.float32), "BF16")


def test_mxfp4_as_hugging_face_has_it(rng: np.random.Generator) -> None:
    rows = hard_rows(rng)
    codes, scales = mx.encode(rows, "e2m1", scale="search")
    packed = blocks.encode(rows, "MXFP4")
    planes = blocks.split_mxfp4(packed)
    pairs = codes.reshape(*scales.shape, 16, 2)
    np.testing.assert_array_equal(planes[0], pairs[..., 0] | pairs[..., 1] << 4)
    np.testing.assert_array_equal(planes[1], scales)
    np.testing.assert_array_equal(blocks.join_mxfp4(*planes), packed)


def test_mxfp4_is_the_search_of_mx(rng: np.random.Generator) -> None:
    rows = hard_rows(rng)
    codes, scales = mx.encode(rows, "e2m1", scale="search")
    packed = blocks.encode(rows, "MXFP4")
    np.testing.assert_array_equal(packed[..., 0], scales)
    halves = codes.reshape(*scales.shape, 2, 16)
    np.testing.assert_array_equal(packed[..., 1:], halves[..., 0, :] | halves[..., 1, :] << 4)


# ---- the same bits everywhere ----

# CRC-32 of the blocks of grid(), the same on x86-64 and aarch64, at any optimisation.
CHECKSUMS = {
    "F32": 0x9B6CC134,
    "F16": 0xB4526536,
    "BF16": 0x4B672771,
    "Q8_0": 0x36BCA54F,
    "Q6_K": 0xB3CBD1C5,
    "Q5_1": 0x48C1302A,
    "Q5_K": 0xA58BD3EE,
    "Q5_0": 0x2CF3B014,
    "Q4_1": 0x87DEBD9E,
    "Q4_K": 0xBD2B8654,
    "Q4_0": 0xBAD836F1,
    "MXFP4": 0x1E645AB4,
}


def grid() -> Array:
    """65536 numbers of many magnitudes that need no random generator."""
    index = np.arange(1, 1 << 16, dtype=np.int64)
    scattered = (index * 2654435761 % 2**32 - 2**31) / 2**31
    values = np.ldexp(scattered, index // 256 % 16 - 8)
    return np.concatenate([[0.0], values]).astype(np.float32).reshape(-1, 256)


@pytest.mark.parametrize("format", blocks.ENCODED)
def test_checksums(format: str) -> None:
    assert zlib.crc32(blocks.encode(grid(), format).tobytes()) == CHECKSUMS[format]


@pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.platform != "linux", reason="sets MXCSR through glibc"
)
def test_dirty_float_environment() -> None:
    """A host may flush subnormals and round down: encoding and decoding are the same."""
    libm = ctypes.CDLL("libm.so.6")
    clean, dirty, after = (FloatEnvironment() for _ in range(3))
    tiny = grid() * np.float32(2.0**-126)
    expected = [(blocks.encode(grid(), f), mx.encode(tiny, e)) for f in PACKED for e in mx.FORMATS]
    decoded = [mx.decode(*mx.encode(tiny, element), element) for element in mx.FORMATS]
    libm.fegetenv(ctypes.byref(clean))
    libm.fegetenv(ctypes.byref(dirty))
    dirty.mxcsr |= 0x8000 | 0x0040 | 0x2000
    values = grid()
    libm.fesetenv(ctypes.byref(dirty))
    try:
        found = [(blocks.encode(values, f), mx.encode(tiny, e)) for f in PACKED for e in mx.FORMATS]
        again = [mx.decode(*mx.encode(tiny, element), element) for element in mx.FORMATS]
        libm.fegetenv(ctypes.byref(after))
    finally:
        libm.fesetenv(ctypes.byref(clean))
    assert after.mxcsr & ~0x3F == dirty.mxcsr & ~0x3F
    for (packed, pair), (packed_then, pair_then) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(packed, packed_then)
        for array, then in zip(pair, pair_then, strict=True):
            np.testing.assert_array_equal(array, then)
    np.testing.assert_array_equal(again, decoded)
