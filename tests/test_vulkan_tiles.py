"""Weights in the order of cooperative matrices, as push_constants.h tells it. No device is needed;
what is computed with them, tests/test_vulkan.py compares where there is one."""

from __future__ import annotations

import secrets

import numpy as np
import pytest
from support import Array

import gptoss
from gptoss import _core

SEED = secrets.randbelow(2**32)
SIZES = [(16, 64), (16, 32), (1, 96), (7, 160), (8, 32), (9, 64), (15, 2880)]

# Of eight columns: where sign and magnitude of a code are in a word, and the byte that has it.
E2M1_MAGNITUDES = np.array([9, 6, 3, 0, 25, 22, 19, 16])
E2M1_SIGNS = np.array([15, 12, 14, 13, 31, 28, 30, 29])
Q8_BYTES = [0, 1, 4, 5, 2, 3, 6, 7]


def read_mxfp4(tile: Array, scales: Array, row: int, column: int) -> tuple[int, int]:
    block, t, j = column // 32, column % 32 // 8, column % 8
    lane, word = 4 * (row % 8) + t, 2 * (block % 2) + row // 8
    bits = int(tile.view("<u4").reshape(-1, 32, 4)[block // 2, lane, word])
    code = bits >> E2M1_MAGNITUDES[j] & 7 | (bits >> E2M1_SIGNS[j] & 1) << 3
    return code, int(scales.reshape(-1, 8, 4)[block // 2, row % 8, word])


def read_q8(tile: Array, scales: Array, row: int, column: int) -> tuple[int, int]:
    block, t, j = column // 32, column % 32 // 8, column % 8
    byte = tile.reshape(-1, 32, 2, 8)[block, 4 * (row % 8) + t, row // 8, Q8_BYTES.index(j)]
    return int(byte) - 128, int(scales.view("<u2").reshape(-1, 8, 2)[block, row % 8, row // 8])


def words_of(codes: Array) -> Array:
    """Codes of E2M1 in words as the layouts in rows have them."""
    by_word = codes.reshape(*codes.shape[:-1], -1, 8).astype(np.uint32)
    words = (by_word & 7) << E2M1_MAGNITUDES | by_word >> 3 << E2M1_SIGNS
    return np.bitwise_or.reduce(words, axis=-1).astype("<u4")


@pytest.mark.parametrize(("num_rows", "num_columns"), SIZES)
@pytest.mark.parametrize("is_mxfp4", [True, False])
def test_every_element_is_where_it_is_read(is_mxfp4: bool, num_rows: int, num_columns: int) -> None:
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    codes: Array
    if is_mxfp4:
        codes = rng.integers(0, 16, (num_rows, num_columns))
        scales = rng.integers(0, 256, (num_rows, num_columns // 32), np.uint8)
        packed = words_of(codes)
    else:
        codes = rng.integers(-128, 128, (num_rows, num_columns), np.int8)
        scales = rng.integers(0, 2**16, (num_rows, num_columns // 32), np.uint16)
        packed = codes
    *pair, _ = _core.vulkan_tile(packed.tobytes(), scales.tobytes(), num_columns, is_mxfp4)
    tile, tile_scales = (np.frombuffer(part, np.uint8) for part in pair)
    steps = -(-num_columns // 64)
    assert tile.size == steps * 64 * 16 // (2 if is_mxfp4 else 1)
    read = read_mxfp4 if is_mxfp4 else read_q8
    for row in range(num_rows):
        for column in range(num_columns):
            found = read(tile, tile_scales, row, column)
            assert found == (codes[row, column], scales[row, column // 32]), (row, column)
    # What pads has no weight.
    scale_dtype = np.uint8 if is_mxfp4 else np.uint16
    assert np.count_nonzero(tile_scales.view(scale_dtype)) == np.count_nonzero(scales)


@pytest.mark.parametrize(
    ("scales", "shift"),
    [
        ([120, 80], 90),
        ([120, 79], None),
        ([120, 0], 90),  # 2^-127 counts as zero
        ([254, 230], 224),
        ([255, 254], None),  # NaN
        ([64, 64], 34),
        ([63, 63], None),
        ([0, 0], None),
    ],
)
def test_which_scales_halves_can_have(scales: list[int], shift: int | None) -> None:
    codes = words_of(np.tile([1, 7, 9, 15], 16)[None])
    assert _core.vulkan_tile(codes.tobytes(), bytes(scales), 64, True)[2] == shift


@pytest.mark.parametrize("below", [0, 1, 12, 23, 24, 25, 29, 30, 40])
def test_what_scales_in_halves_round(below: int) -> None:
    """Halves as tiles.glsl makes them: exact down to 2^-24 of the largest scale, then by 2^-26."""
    codes = np.array([0.5, 1, 1.5, 2, 3, 4, 6])
    factor = np.array(max(30 - below, 0) << 10, np.uint16).view(np.float16)
    halves = (codes * 2.0**-14).astype(np.float16) * factor
    error = np.abs(halves.astype(np.float64) / 2 - codes * 2.0**-below)
    assert error.max() == 0 if below <= 24 else error.max() <= 2.0**-26


def test_blocks_of_zeros_have_no_scale() -> None:
    """They do not keep scales out of halves; NaN does."""
    codes = np.zeros((3, 32), np.int64)
    codes[0] = 1
    codes[1, ::2] = 8  # -0
    packed = words_of(codes).tobytes()
    scales: Array
    _, scales, shift = _core.vulkan_tile(packed, bytes([100, 250, 3]), 32, True)
    assert shift == 70 and np.count_nonzero(np.frombuffer(scales, np.uint8)) == 1
    _, scales, shift = _core.vulkan_tile(packed, bytes([100, 250, 255]), 32, True)
    assert shift is None and set(scales) == {0, 100, 255}


def test_sizes_are_checked() -> None:
    for codes, scales, num_columns in [(16, 1, 33), (16, 1, 0), (16 * 17, 17, 32), (15, 1, 32)]:
        with pytest.raises(gptoss.ArgumentError, match="whole blocks"):
            _core.vulkan_tile(bytes(codes), bytes(scales), num_columns, True)
