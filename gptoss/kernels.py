"""The CPU kernels one at a time, as the tests, the benchmarks and the self-test run them.

Layouts, shapes and orders are those of docs/numerics.md and csrc/cpu/kernels.h. Not a public
interface.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss import _core
from gptoss.model import BLOCKS, PLANES

Float32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]

LANES = 16
PANEL_ROWS = 32
TILE_TOKENS = 6
MAX_TILES = 16
MAX_VECTORS = 4
LANES_PER_SCALE = 4
BLOCK = 32  # weights that share a scale in the MX formats

SCALED_LAYOUTS = ("mxfp4", "mxfp4_gguf")
# Where the f16 scales of a block begin, in the formats of GGUF that count as float32.
HALVES = {
    "q8_0": (0,),
    "q4_0": (0,),
    "q4_1": (0, 2),
    "q5_0": (0,),
    "q5_1": (0, 2),
    "q2_k": (80, 82),
    "q3_k": (108,),
    "q4_k": (0, 2),
    "q5_k": (0, 2),
    "q6_k": (208,),
}
# Bytes of a block's codes where they and the E8M0 scales are apart.
PLANE_BYTES = {name.lower(): block_bytes for name, block_bytes in PLANES.items()}
LAYOUTS = (
    *("f32", "f16", "bf16", "f32_transposed", "f16_transposed", "bf16_transposed"),
    *SCALED_LAYOUTS,
    *HALVES,
    *(layout for layout in PLANE_BYTES if layout not in SCALED_LAYOUTS),
)

# What rounding, overflow and signs of zero go wrong with; the last three are not finite.
SPECIAL = np.array(
    [0, -0.0, 1e-45, -1e-39, 1e-20, -3e38, 3e38, np.inf, -np.inf, np.nan], np.float32
)


def block(layout: str) -> int:
    """Elements of a block, of which a row has a whole number."""
    if layout in HALVES:
        return BLOCKS[layout.upper()][0]
    return BLOCK if is_scaled(layout) or layout in PLANE_BYTES else 1


def is_scaled(layout: str) -> bool:
    return layout in SCALED_LAYOUTS


def per_lane(layout: str) -> int:
    """Elements of a group that one lane owns."""
    return 8 if is_scaled(layout) else 1


def lane_elements(layout: str) -> NDArray[np.int64]:
    """(16, per_lane): which elements of a group each lane owns, in the order of its chain."""
    elements = np.arange(LANES * per_lane(layout)).reshape(LANES, -1)
    if layout != "mxfp4_gguf":
        return elements
    lane, i = elements // 8, elements % 8
    order: NDArray[np.int64] = lane // 4 * 32 + lane % 4 * 4 + i // 2 + i % 2 * 16
    return order


def num_groups(num_columns: int, layout: str) -> int:
    return -(-num_columns // (LANES * per_lane(layout)))


@dataclass(frozen=True)
class Matrix:
    """A weight matrix in memory; scales is empty but for layouts of two planes."""

    layout: str
    num_rows: int
    num_columns: int
    row_bytes: int
    scale_row_bytes: int
    data: Bytes
    scales: Bytes

    def as_arguments(self) -> tuple[str, int, int, int, Bytes, Bytes]:
        sizes = (self.num_columns, self.row_bytes, self.scale_row_bytes)
        return (self.layout, *sizes, self.data, self.scales)


def place(rows: Bytes, padding: int, offset: int) -> tuple[Bytes, int]:
    """The rows `padding` bytes apart, `offset` bytes behind an aligned address, and their stride.

    Nothing follows the last row.
    """
    count, num_bytes = rows.shape
    stride = num_bytes + padding
    memory = np.zeros(offset + count * stride, np.uint8)
    memory[offset:].reshape(count, stride)[:, :num_bytes] = rows
    return memory[offset : offset + (count - 1) * stride + num_bytes], stride


def random_matrix(
    rng: np.random.Generator,
    layout: str,
    num_rows: int,
    num_columns: int,
    *,
    special: bool = False,
    padding: int = 0,
    offset: int = 0,
) -> Matrix:
    """Random weights. special: with some elements of any bits, and scales over their whole range.

    padding, offset: bytes between rows and in front of the first, of data and of scales.
    """
    if is_scaled(layout) or layout in PLANE_BYTES:
        return _random_mx(rng, layout, num_rows, num_columns, special, padding, offset)
    if layout in HALVES:
        blocks = random_blocks(rng, layout, (num_rows, num_columns // block(layout)), special)
        return _in_one_plane(layout, num_columns, blocks, padding, offset)
    element, _, transposed = layout.partition("_")
    shape = (num_columns, num_rows) if transposed else (num_rows, num_columns)
    values = rng.standard_normal(shape).astype(np.float32)
    bits: NDArray[Any]
    if element == "f32":
        bits = values.view(np.uint32)
    elif element == "f16":
        bits = values.astype(np.float16).view(np.uint16)
    else:
        bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    if special:
        odd = rng.integers(0, np.iinfo(bits.dtype).max, shape, bits.dtype, endpoint=True)
        bits = np.where(rng.random(shape) < min(0.1, 4 / num_columns), odd, bits)
    data, row_bytes = place(np.ascontiguousarray(bits).view(np.uint8), padding, offset)
    return Matrix(layout, num_rows, num_columns, row_bytes, 0, data, np.zeros(0, np.uint8))


def random_blocks(
    rng: np.random.Generator, layout: str, shape: tuple[int, int], special: bool = False
) -> Bytes:
    """(rows, blocks, bytes of a block) of random codes and f16 scales of a sensible size. special:
    some of the latter are any bits."""
    blocks = rng.integers(0, 256, (*shape, BLOCKS[layout.upper()][1]), np.uint8)
    for at in HALVES[layout]:
        bits = (rng.standard_normal(shape) / 64).astype(np.float16).view(np.uint16)
        if special:
            odd = rng.integers(0, 1 << 16, shape, np.uint16)
            bits = np.where(rng.random(shape) < min(0.5, 2 / shape[1]), odd, bits)
        blocks[..., at : at + 2] = bits[..., None].view(np.uint8)
    return blocks


def _in_one_plane(
    layout: str, num_columns: int, blocks: Bytes, padding: int, offset: int
) -> Matrix:
    num_rows = len(blocks)
    data, row_bytes = place(blocks.reshape(num_rows, -1), padding, offset)
    return Matrix(layout, num_rows, num_columns, row_bytes, 0, data, np.zeros(0, np.uint8))


def _random_mx(
    rng: np.random.Generator,
    layout: str,
    num_rows: int,
    num_columns: int,
    special: bool,
    padding: int,
    offset: int,
) -> Matrix:
    shape = (num_rows, num_columns // BLOCK)
    codes = rng.integers(0, 256, (*shape, PLANE_BYTES.get(layout, BLOCK // 2)), np.uint8)
    exponents = rng.integers(118, 130, shape, np.uint8)
    if layout.startswith("mxfp8"):  # few NaN and infinite ones
        codes &= np.where(special & (rng.random(codes.shape) < 2 / num_columns), 0xFF, 0xBF).astype(
            np.uint8
        )
    if special:
        low = rng.integers(0, 4, shape, np.uint8)
        exponents = np.where(rng.random(shape) < 0.5, low, exponents)
        odd = rng.integers(0, 256, shape).astype(np.uint8)
        exponents = np.where(rng.random(shape) < 0.02, odd, exponents)
        exponents[rng.random(shape) < 0.5 / shape[1]] = 0xFF
    if layout == "mxfp4_gguf":
        blocks = np.concatenate([exponents[..., None], codes], axis=-1)
        return _in_one_plane(layout, num_columns, blocks, padding, offset)
    data, row_bytes = place(codes.reshape(num_rows, -1), padding, offset)
    plane, plane_row_bytes = place(exponents, padding, offset)
    return Matrix(layout, num_rows, num_columns, row_bytes, plane_row_bytes, data, plane)


def random_input(
    rng: np.random.Generator, num_columns: int, *, num_tokens: int = 1, special: bool = False
) -> Float32:
    """(num_tokens, num_columns) activations. special: a few are zero, tiny or huge and, in one
    array of four, infinite or NaN."""
    x = rng.standard_normal((num_tokens, num_columns)).astype(np.float32)
    if special:
        choices = SPECIAL if rng.random() < 0.25 else SPECIAL[:-3]
        where = rng.random(x.shape) < min(0.1, 6 / num_columns)
        x = np.where(where, rng.choice(choices, x.shape), x)
    return x


def _in_groups(x: Float32, layout: str) -> Float32:
    """Inputs (..., num_columns) as (..., groups, 16 lanes, per_lane), absent elements +0."""
    order = lane_elements(layout)
    groups = num_groups(x.shape[-1], layout)
    whole = np.zeros((*x.shape[:-1], groups * order.size), np.float32)
    whole[..., : x.shape[-1]] = x
    return whole.reshape(*x.shape[:-1], groups, order.size)[..., order]


def pack_lanes(x: Float32, layout: str) -> Float32:
    """Inputs (..., num_columns) one after another in lane order, whole groups."""
    return np.ascontiguousarray(_in_groups(x, layout).swapaxes(-1, -2)).ravel()


def pack_tiles(x: Float32, layout: str) -> Float32:
    """Inputs (num_tokens, num_columns) as [tile][lane][chain_stride][6 tokens], whole tiles."""
    num_tokens, num_columns = x.shape
    whole = np.zeros((-(-num_tokens // TILE_TOKENS) * TILE_TOKENS, num_columns), np.float32)
    whole[:num_tokens] = x
    groups = _in_groups(whole, layout)
    parts = groups.reshape(-1, TILE_TOKENS, *groups.shape[1:])
    return np.ascontiguousarray(parts.transpose(0, 3, 2, 4, 1))


def matvec(
    isa: str, matrix: Matrix, x: Float32, first_row: int = 0, num_rows: int | None = None
) -> Float32:
    """Rows first_row .. of the matrix times x (num_columns,), or times up to 4 vectors
    (num_vectors, num_columns): (rows,) or (num_vectors, rows)."""
    count = matrix.num_rows - first_row if num_rows is None else num_rows
    out = np.empty((*x.shape[:-1], count), np.float32)
    packed, num_vectors = pack_lanes(x, matrix.layout), out.size // count
    _core.kernel_matvec(isa, matrix.as_arguments(), first_row, count, packed, num_vectors, out)
    return out


def product_bf16(isa: str, form: str, matrix: Matrix, x: Float32) -> Float32:
    """(num_tokens, num_rows): the matrix times each of x (num_tokens, num_columns) at precision
    bf16. form: "vector", as few tokens are multiplied, or "panel", as many are."""
    out = np.empty((len(x), matrix.num_rows), np.float32)
    _core.kernel_product_bf16(isa, form, matrix.as_arguments(), matrix.num_rows, x, len(x), out)
    return out


@dataclass(frozen=True)
class Panel:
    """32 rows of a matrix, expanded. scales is empty for unscaled layouts."""

    layout: str
    num_columns: int
    values: Float32  # [lane][chain_stride][row]
    scales: Float32  # [lane / 4][group][row]


def expand_panel(isa: str, matrix: Matrix, first_row: int = 0, num_rows: int = PANEL_ROWS) -> Panel:
    """What the layout's kernel writes; elements that the last group lacks are +0."""
    groups = num_groups(matrix.num_columns, matrix.layout)
    scale_groups = groups if is_scaled(matrix.layout) else 0
    values = np.zeros((LANES, groups * per_lane(matrix.layout), PANEL_ROWS), np.float32)
    scales = np.zeros((LANES // LANES_PER_SCALE, scale_groups, PANEL_ROWS), np.float32)
    arguments = matrix.as_arguments()
    _core.kernel_expand_panel(isa, arguments, first_row, num_rows, values, scales)
    return Panel(matrix.layout, matrix.num_columns, values, scales)


def multiply_panel(isa: str, panel: Panel, x: Float32) -> Float32:
    """(num_tokens, 32): the panel's rows times each of x (num_tokens, num_columns)."""
    tiles = pack_tiles(x, panel.layout)
    out = np.empty((len(tiles) * TILE_TOKENS, PANEL_ROWS), np.float32)
    _core.kernel_multiply_panel(
        isa, panel.num_columns, panel.values, panel.scales, tiles, len(tiles), out
    )
    return out[: len(x)]


def num_different(actual: NDArray[Any], expected: NDArray[Any]) -> int:
    """How many elements have other bits; NaN equals NaN."""
    unsigned = f"u{actual.itemsize}"
    different = actual.view(unsigned) != expected.view(unsigned)
    if actual.dtype.kind == "f":
        different &= ~(np.isnan(actual) & np.isnan(expected))
    return int(np.count_nonzero(different))
