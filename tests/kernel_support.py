"""What the kernel tests share: fused multiply-adds in NumPy, comparison of bits, guarded memory."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss import _core

Array = NDArray[Any]

ISAS = [name for name, available in _core.isas() if available]
LANES = 16


def fma(a: Any, b: Any, c: Any) -> Array:
    """float32 a * b + c with one rounding.

    The product is exact in float64; a sum rounded to odd there may be rounded once more.
    """
    with np.errstate(all="ignore"):
        product = np.asarray(a, np.float32).astype(np.float64) * np.asarray(b, np.float32).astype(
            np.float64
        )
        c = np.asarray(c, np.float32).astype(np.float64)
        total = np.asarray(product + c)
        other = total - product
        error = (product - (total - other)) + (c - other)
        is_even = total.view(np.uint64) & 1 == 0
        move = is_even & (error != 0) & np.isfinite(total) & np.isfinite(error)
        odd = np.where(move, np.nextafter(total, np.copysign(np.inf, error)), total)
        return odd.astype(np.float32)


def sum_lanes(lanes: Array) -> Array:
    """(..., 16) float32 -> (...): l += l + 8, then + 4, + 2, + 1."""
    half = LANES // 2
    while half:
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
        half //= 2
    return lanes[..., 0]


def dot(a: Array, b: Array) -> Array:
    """Over the last axis, in the lane order of an unscaled row."""
    shape = np.broadcast_shapes(a.shape, b.shape)
    lanes = np.zeros((*shape[:-1], LANES), np.float32)
    for start in range(0, shape[-1], LANES):
        x, y = a[..., start : start + LANES], b[..., start : start + LANES]
        width = x.shape[-1]
        lanes[..., :width] = fma(x, y, lanes[..., :width])
    return sum_lanes(lanes)


def expf(x: Array) -> Array:
    """The engine's own single-precision exponential."""
    x = np.array(x, np.float32)
    out = np.empty_like(x)
    _core.math_expf(x, out)
    return out


def assert_equal_bits(actual: Array, expected: Array, what: str = "") -> None:
    """The same bits, but that any NaN equals any NaN."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype, what
    unsigned = f"u{actual.itemsize}"
    same = np.ascontiguousarray(actual).view(unsigned) == np.ascontiguousarray(expected).view(
        unsigned
    )
    if np.issubdtype(actual.dtype, np.floating):
        same |= np.isnan(actual) & np.isnan(expected)
    if not same.all():
        at = tuple(int(i) for i in np.argwhere(~same)[0])
        raise AssertionError(
            f"{what}: at {at} {actual[at]!r}, not {expected[at]!r}; {(~same).sum()} differ"
        )


def sprinkle(rng: np.random.Generator, x: Array, share: float = 0.02) -> Array:
    """x with some elements replaced by the values that arithmetic treats in a way of its own."""
    odd = [np.nan, np.inf, -np.inf, 0.0, -0.0, 6e-8, -6e-8, 6e4, 1e-30, 1e-42, 3e38]
    with np.errstate(over="ignore"):
        values = np.array(odd).astype(x.dtype)
    chosen = rng.random(x.shape) < share
    return np.where(chosen, rng.choice(values, x.shape), x).astype(x.dtype)


@contextmanager
def guarded(num_bytes: int, *, at_end: bool) -> Iterator[int]:
    """The address of num_bytes of memory right after an unreadable page or (at_end) before one."""
    page = mmap.PAGESIZE
    inner = -(-num_bytes // page) * page
    region = mmap.mmap(-1, inner + 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(region))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    guards = (address, address + page + inner)
    for guard in guards:
        assert libc.mprotect(guard, page, 0) == 0
    try:
        yield address + page + (inner - num_bytes if at_end else 0)
    finally:
        for guard in guards:
            libc.mprotect(guard, page, 3)


def array_at(address: int, count: int, dtype: Any) -> Array:
    """A writable array over memory that is not touched to make it."""
    num_bytes = count * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * num_bytes).from_address(address), dtype)


def aligned_apart(x: Array, offset_bytes: int = 4) -> Array:
    """A copy of x that begins offset_bytes after a 64-byte boundary."""
    memory = np.empty(x.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset_bytes
    copy = memory[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy
