"""OCP Microscaling Formats (MX) v1.0: blocks of 32 numbers with one power of two for a scale.

    codes, scales = gptoss.mx.encode(values, "e2m1")          # MXFP4
    values = gptoss.mx.decode(codes, scales, "e2m1")

A block is 32 neighbours along the last axis, so that axis is a multiple of 32. A code takes one
byte, whatever its width; FORMATS describes the elements, whose values are those of ml_dtypes of
the same names. A scale is an E8M0 byte: 2^(byte - 127), and 0xFF is NaN. In files codes are
packed; ELEMENTS names the element of each format of weights:

    element = gptoss.mx.ELEMENTS[model.tensor_info("x_blocks").weight_format]
    codes = gptoss.mx.unpack(model.tensors["x_blocks"], element)
    values = gptoss.mx.decode(codes, model.tensors["x_scales"], element)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from gptoss import _core
from gptoss.errors import ArgumentError, did_you_mean

BLOCK = 32
_F16_BLOCK_BYTES = 18


@dataclass(frozen=True)
class Format:
    """An element format.

    name: "e2m1". bits: width of a code. mantissa_bits: of INT8, bits after the point. min_exponent,
    max_exponent: of the smallest and the largest normal number. max_code: code of the largest
    number, max_value.
    """

    name: str
    bits: int
    mantissa_bits: int
    min_exponent: int
    max_exponent: int
    max_code: int

    @property
    def max_value(self) -> float:
        mantissa = self.max_code & ((1 << self.mantissa_bits) - 1)
        return (1 + mantissa / (1 << self.mantissa_bits)) * 2.0**self.max_exponent


FORMATS: Mapping[str, Format] = MappingProxyType(
    {entry[0]: Format(*entry) for entry in _core.mx_formats()}
)

# Formats of weights, whose codes and scales are "X_blocks" and "X_scales" in safetensors.
ELEMENTS: Mapping[str, str] = MappingProxyType(
    {
        "MXFP4": "e2m1",
        "MXFP6_E2M3": "e2m3",
        "MXFP6_E3M2": "e3m2",
        "MXFP8_E4M3": "e4m3",
        "MXFP8_E5M2": "e5m2",
    }
)


def encode(
    values: npt.ArrayLike, element: str, *, scale: str = "floor"
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Codes, of the shape of values, and scales, (..., n / 32), of values converted to float32.

    Elements are rounded to nearest, ties to even, and saturate; zeros keep their sign. A block that
    holds NaN or an infinity becomes NaN as a whole: scale 0xFF, codes 0.

    Args:
        element: one of FORMATS.
        scale: "floor", 2^(floor(log2(max |value|)) - max_exponent), as section 6.3 of the
            specification has it; or "search", the scale of least squared error. Neither is below
            2^-127, which is the scale of a block of zeros.

    Raises ArgumentError.
    """
    _require_format(element)
    if scale not in ("floor", "search"):
        raise ArgumentError(f"scale must be 'floor' or 'search', not {scale!r}")
    numbers = _floats(values)
    codes = np.empty(numbers.shape, np.uint8)
    scales = np.empty((*numbers.shape[:-1], numbers.shape[-1] // BLOCK), np.uint8)
    _core.mx_encode(element, scale == "search", numbers, codes, scales)
    return codes, scales


def decode(codes: npt.ArrayLike, scales: npt.ArrayLike, element: str) -> npt.NDArray[np.float32]:
    """The values, float32, of the shape of codes: exact, but infinite beyond the range of float32.

    Args:
        codes: uint8 (..., n). scales: uint8 (..., n / 32). element: one of FORMATS.

    Raises ArgumentError, also for codes wider than the format.
    """
    form = _require_format(element)
    code_array, scale_array = _bytes("codes", codes), _bytes("scales", scales)
    shape = code_array.shape
    _require_blocks(shape)
    expected = (*shape[:-1], shape[-1] // BLOCK)
    if scale_array.shape != expected:
        raise ArgumentError(
            f"codes of shape {shape} need scales of shape {expected}, not {scale_array.shape}"
        )
    if form.bits < 8 and code_array.size and int(code_array.max()) >> form.bits:
        raise ArgumentError(
            f"{element} codes have {form.bits} bits, but one is {int(code_array.max())}; are two "
            "packed in a byte?"
        )
    out = np.empty(shape, np.float32)
    _core.mx_decode(element, code_array, scale_array, out)
    return out


def pack(codes: npt.ArrayLike, element: str) -> npt.NDArray[np.uint8]:
    """Codes as files have them: uint8 (..., n) to (..., n / 32, 4 * bits).

    A block is a string of bits, lowest first: of 4 bits the first code is in the low nibble of the
    first byte, of 6 bits 4 codes fill 3 bytes. Raises ArgumentError.
    """
    bits = _require_format(element).bits
    array = _bytes("codes", codes)
    _require_blocks(array.shape)
    shape = (*array.shape[:-1], array.shape[-1] // BLOCK, 4 * bits)
    if bits == 8:
        return array.reshape(shape)
    if bits == 4:
        return (array[..., 0::2] | array[..., 1::2] << 4).reshape(shape)
    fours = array.reshape(-1, 4).astype("<u4")
    joined = fours[:, 0] | fours[:, 1] << 6 | fours[:, 2] << 12 | fours[:, 3] << 18
    return np.ascontiguousarray(joined[:, None].view(np.uint8)[:, :3]).reshape(shape)


def unpack(blocks: npt.ArrayLike, element: str) -> npt.NDArray[np.uint8]:
    """The way back from pack: uint8 (..., blocks, 4 * bits) to codes (..., 32 * blocks)."""
    bits = _require_format(element).bits
    array = _bytes("blocks", blocks)
    if array.ndim < 2 or array.shape[-1] != 4 * bits:
        raise ArgumentError(f"{element} has blocks (..., n, {4 * bits}), not {array.shape}")
    shape = (*array.shape[:-2], array.shape[-2] * BLOCK)
    if bits == 8:
        return array.reshape(shape)
    if bits == 4:
        return np.stack([array & 15, array >> 4], axis=-1).reshape(shape)
    first, second, third = (array.reshape(-1, 3)[:, i] for i in range(3))
    codes = (first, first >> 6 | second << 2, second >> 4 | third << 4, third >> 2)
    return (np.stack(codes, axis=-1) & 63).reshape(shape)


def encode_f16_scaled(values: npt.ArrayLike, *, exponent_bias: int = 1) -> npt.NDArray[np.uint8]:
    """Blocks (..., n / 32, 18) of a variant of MXFP4 that is not OCP's: a binary16 scale, low byte
    first, then 16 bytes of E2M1 codes, neighbours in a byte, the first in its low nibble.

    The scale is max |value| / (the largest code's value), rounded to binary16 and at most 65504. A
    block that holds NaN or an infinity becomes NaN.

    Args:
        exponent_bias: 1 as in OCP's E2M1; 2, as one old runtime has it, halves every code's value.
    """
    numbers = _floats(values)
    _require_bias(exponent_bias)
    blocks = np.empty((*numbers.shape[:-1], numbers.shape[-1] // BLOCK, _F16_BLOCK_BYTES), np.uint8)
    _core.mx_encode_f16_scaled(exponent_bias, numbers, blocks)
    return blocks


def decode_f16_scaled(blocks: npt.ArrayLike, *, exponent_bias: int = 1) -> npt.NDArray[np.float32]:
    """What encode_f16_scaled encoded: blocks uint8 (..., n / 32, 18) to float32 (..., n)."""
    _require_bias(exponent_bias)
    packed = _bytes("blocks", blocks)
    if packed.ndim < 2 or packed.shape[-1] != _F16_BLOCK_BYTES:
        raise ArgumentError(f"blocks must be of shape (..., n, 18), not {packed.shape}")
    out = np.empty((*packed.shape[:-2], packed.shape[-2] * BLOCK), np.float32)
    _core.mx_decode_f16_scaled(exponent_bias, packed, out)
    return out


# ---- arguments ----


def _require_format(element: str) -> Format:
    if not isinstance(element, str) or element not in FORMATS:
        hint = did_you_mean(str(element), FORMATS) or f"; there are {', '.join(FORMATS)}"
        raise ArgumentError(f"there is no MX element format {element!r}{hint}")
    return FORMATS[element]


def _require_bias(exponent_bias: int) -> None:
    if exponent_bias not in (1, 2):
        raise ArgumentError(f"exponent_bias must be 1 or 2, not {exponent_bias!r}")


def _require_blocks(shape: tuple[int, ...]) -> None:
    if not shape or shape[-1] % BLOCK != 0:
        raise ArgumentError(
            f"the last axis must be a multiple of {BLOCK}, but the shape is {shape}: pad it, or "
            "reshape so that blocks lie along it"
        )


def _floats(values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    try:
        with np.errstate(over="ignore"):
            numbers = np.ascontiguousarray(values, np.float32)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"values must be an array of numbers: {error}") from None
    _require_blocks(np.shape(values))
    return numbers


def _bytes(name: str, values: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    array: npt.NDArray[Any] = np.asarray(values)
    if array.dtype != np.uint8:
        raise ArgumentError(f"{name} must be uint8, not {array.dtype}")
    return np.ascontiguousarray(array)
