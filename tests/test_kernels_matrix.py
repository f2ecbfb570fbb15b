"""The matrix kernels: every one of every instruction set against the scalar one to the last bit,
the scalar one against an emulation of docs/numerics.md, and all of them against float64."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import gptoss
from gptoss import _core, kernels
from gptoss.self_test import self_test

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

KERNELS = [kernel for kernel in _core.kernels() if kernel["available"]]
ISAS = list(dict.fromkeys(kernel["isa"] for kernel in KERNELS))
OTHER_ISAS = [isa for isa in ISAS if isa != "scalar"]
ROWS = (1, 31, 32, 33)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def columns_of(layout: str) -> tuple[int, ...]:
    """Around every boundary of the layout's lanes, groups and blocks; the last is gpt-oss's."""
    if kernels.block(layout) == 256:
        return (256, 512, 768, 2816)
    if kernels.block(layout) == 32:
        return (32, 64, 96, 128, 160, 224, 256, 384, 480, 512, 544, 2880)
    return (1, 2, 15, 16, 17, 31, 32, 33, 127, 128, 129, 2880)


@pytest.fixture
def rng() -> np.random.Generator:
    seed = int(os.environ.get("GPTOSS_TEST_SEED", 0)) or int.from_bytes(os.urandom(4), "little")
    print(f"GPTOSS_TEST_SEED={seed}")
    return np.random.default_rng(seed)


def assert_same_bits(actual: Float32, expected: Float32, what: object) -> None:
    assert kernels.num_different(actual, expected) == 0, what


# ---- docs/numerics.md in NumPy ----


def fma(a: Float32, b: Float32, c: Float32) -> Float32:
    """a * b + c rounded once. The product is exact in float64; the sum is rounded to odd there,
    which keeps the second rounding, to float32, honest (Boldo and Melquiond, 2008)."""
    product = a.astype(np.float64) * b
    total = product + c
    virtual = total - product
    error = (product - (total - virtual)) + (c - virtual)
    to_odd = np.isfinite(total) & (error != 0) & (total.view(np.int64) % 2 == 0)
    odd = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where(to_odd, odd, total).astype(np.float32)


def decode(matrix: kernels.Matrix) -> tuple[Float32, Float32]:
    """Weights or codes (rows, columns), and the scale of each, 1 where there is none."""
    if kernels.is_scaled(matrix.layout):
        return decode_mxfp4(matrix)
    if matrix.layout in kernels.PLANE_BYTES:
        return decode_planes(matrix), np.ones((matrix.num_rows, matrix.num_columns), np.float32)
    if matrix.layout in kernels.HALVES:
        return decode_gguf(matrix), np.ones((matrix.num_rows, matrix.num_columns), np.float32)
    element, _, transposed = matrix.layout.partition("_")
    width = 4 if element == "f32" else 2
    shape = (matrix.num_rows, matrix.num_columns)
    num_rows, num_columns = shape[::-1] if transposed else shape
    rows = strided(matrix.data, num_rows, num_columns * width, matrix.row_bytes)
    if element == "bf16":
        weights = (rows.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        weights = rows.view(np.dtype(f"f{width}")).astype(np.float32)
    return (weights.T if transposed else weights), np.ones(shape, np.float32)


def decode_gguf(matrix: kernels.Matrix) -> Float32:
    """By ggml's own decoder."""
    type_ = gguf.GGMLQuantizationType[matrix.layout.upper()]
    block, block_bytes = gguf.GGML_QUANT_SIZES[type_]
    row_bytes = matrix.num_columns // block * block_bytes
    rows = strided(matrix.data, matrix.num_rows, row_bytes, matrix.row_bytes)
    with np.errstate(all="ignore"):  # infinity times zero
        weights: Float32 = gguf.quants.dequantize(rows, type_)
    return weights


def elements_of(layout: str) -> Any:
    """ml_dtypes' type of a layout's codes, a byte each."""
    element = layout.partition("_")[2]
    return getattr(ml_dtypes, f"float{layout[4]}_{element}" + ("" if element == "e5m2" else "fn"))


def decode_planes(matrix: kernels.Matrix) -> Float32:
    """MXFP6 and MXFP8: a string of bits, lowest first; values are those of ml_dtypes."""
    num_blocks, num_bits = matrix.num_columns // 32, int(matrix.layout[4])
    codes = strided(matrix.data, matrix.num_rows, num_blocks * num_bits * 4, matrix.row_bytes)
    scales = strided(matrix.scales, matrix.num_rows, num_blocks, matrix.scale_row_bytes)
    bits = np.unpackbits(codes, axis=1, bitorder="little").reshape(matrix.num_rows, -1, num_bits)
    numbers = np.packbits(bits, axis=2, bitorder="little")[..., 0].view(elements_of(matrix.layout))
    powers = np.ldexp(1.0, scales.astype(int) - 127)
    powers[scales == 0xFF] = np.nan
    with np.errstate(over="ignore", invalid="ignore"):
        exact = numbers.astype(np.float64) * np.repeat(powers, 32, axis=1)
        return exact.astype(np.float32)


def decode_mxfp4(matrix: kernels.Matrix) -> tuple[Float32, Float32]:
    shape = (matrix.num_rows, matrix.num_columns // kernels.BLOCK, -1)
    num_blocks = shape[1]
    if matrix.layout == "mxfp4":
        codes = strided(matrix.data, matrix.num_rows, num_blocks * 16, matrix.row_bytes)
        scales = strided(matrix.scales, matrix.num_rows, num_blocks, matrix.scale_row_bytes)
    else:
        blocks = strided(matrix.data, matrix.num_rows, num_blocks * 17, matrix.row_bytes)
        scales, codes = np.split(blocks.reshape(shape), [1], axis=-1)
    codes, scales = codes.reshape(shape), scales.reshape(matrix.num_rows, -1)
    nibbles = np.stack([codes & 15, codes >> 4], axis=-1)
    if matrix.layout == "mxfp4_gguf":  # the low nibbles of a block, then the high ones
        nibbles = nibbles.swapaxes(-1, -2)
    nibbles = nibbles.reshape(matrix.num_rows, -1)
    values = np.where(nibbles & 8, -E2M1[nibbles & 7], E2M1[nibbles & 7])
    exponents = np.where(scales == 0xFF, 0, scales.astype(int) - 127)
    powers = np.where(scales == 0xFF, np.nan, np.ldexp(1.0, exponents)).astype(np.float32)
    return values, np.repeat(powers, kernels.BLOCK, axis=1)


def strided(data: kernels.Bytes, num_rows: int, row_bytes: int, stride: int) -> kernels.Bytes:
    rows = np.lib.stride_tricks.as_strided(data, (num_rows, row_bytes), (stride, 1))
    return np.ascontiguousarray(rows)


def emulate(matrix: kernels.Matrix, x: Float32) -> Float32:
    """The matrix times x (columns,), every operation in the documented order."""
    weights, scales = decode(matrix)
    order = kernels.lane_elements(matrix.layout)
    per_lane = order.shape[1]
    sums = np.zeros((matrix.num_rows, 16), np.float32)
    for start in range(0, matrix.num_columns, 16 * per_lane):
        num_lanes = min(16, (matrix.num_columns - start) // per_lane)
        elements = start + order[:num_lanes].T
        if kernels.is_scaled(matrix.layout):
            t = np.zeros((matrix.num_rows, num_lanes), np.float32)
            for number in elements:
                t = fma(weights[:, number], x[number], t)
            sums[:, :num_lanes] = fma(scales[:, elements[0]], t, sums[:, :num_lanes])
        else:
            sums[:, :num_lanes] = fma(weights[:, elements[0]], x[elements[0]], sums[:, :num_lanes])
    for half in (8, 4, 2, 1):
        sums = sums[:, :half] + sums[:, half : 2 * half]
    return sums[:, 0]


def test_fma_is_rounded_once() -> None:
    a = np.array([1 + 2**-12, 1 + 2**-23, 3e38, 1e-30, -1e-30, 1.0], np.float32)
    b = np.array([1 + 2**-12, 1 + 2**-23, 2.0, 1e-30, 1e-30, 0.0], np.float32)
    c = np.array([2**-70, -1.0, -3e38, 0.0, 0.0, -0.0], np.float32)
    expected = np.array([1 + 2**-11 + 2**-23, 2**-22 + 2**-46, 3e38, 0.0, -0.0, 0.0], np.float32)
    with np.errstate(all="ignore"):
        assert kernels.num_different(fma(a, b, c), expected) == 0


# ---- products ----


def matrices(
    rng: np.random.Generator, layout: str, special: bool = False
) -> Iterator[tuple[kernels.Matrix, Float32]]:
    for index, num_columns in enumerate(columns_of(layout)):
        for num_rows in ROWS:
            matrix = kernels.random_matrix(
                rng,
                layout,
                num_rows,
                num_columns,
                special=special,
                padding=index % 2,
                offset=num_rows % 4,
            )
            yield matrix, kernels.random_input(rng, num_columns, special=special)[0]


@pytest.mark.parametrize("special", [False, True], ids=["plain", "special"])
@pytest.mark.parametrize("layout", kernels.LAYOUTS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_scalar_matvec_is_the_specification(
    rng: np.random.Generator, layout: str, special: bool
) -> None:
    num_numbers = total = 0
    for matrix, x in matrices(rng, layout, special):
        product = kernels.matvec("scalar", matrix, x)
        assert_same_bits(product, emulate(matrix, x), (matrix.num_rows, matrix.num_columns))
        num_numbers += np.count_nonzero(~np.isnan(product))
        total += len(product)
    assert num_numbers > total / 10, "most of the special products say nothing"


@pytest.mark.parametrize("isa", OTHER_ISAS)
@pytest.mark.parametrize("layout", kernels.LAYOUTS)
def test_matvec_bits(rng: np.random.Generator, layout: str, isa: str) -> None:
    for special in (False, True):
        for matrix, x in matrices(rng, layout, special):
            shape = (matrix.num_rows, matrix.num_columns, special)
            assert_same_bits(
                kernels.matvec(isa, matrix, x), kernels.matvec("scalar", matrix, x), shape
            )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", kernels.LAYOUTS)
def test_vectors_do_not_depend_on_each_other(
    rng: np.random.Generator, layout: str, isa: str
) -> None:
    for special in (False, True):
        for matrix, _ in matrices(rng, layout, special):
            x = kernels.random_input(rng, matrix.num_columns, num_tokens=4, special=special)
            expected = np.stack([kernels.matvec("scalar", matrix, vector) for vector in x])
            for num_vectors in range(1, kernels.MAX_VECTORS + 1):
                product = kernels.matvec(isa, matrix, x[:num_vectors])
                shape = (num_vectors, matrix.num_rows, matrix.num_columns, special)
                assert_same_bits(product, expected[:num_vectors], shape)


@pytest.mark.parametrize("layout", kernels.LAYOUTS)
def test_matvec_is_near_float64(rng: np.random.Generator, layout: str) -> None:
    """A chain of n roundings errs by at most n units in the last place of the sum of magnitudes."""
    for matrix, x in matrices(rng, layout):
        weights, scales = decode(matrix)
        exact = weights.astype(np.float64) * scales
        bound = (matrix.num_columns / 16 + 16) * 2.0**-24 * (np.abs(exact) @ np.abs(x)) + 1e-44
        for isa in ISAS:
            error = np.abs(kernels.matvec(isa, matrix, x) - exact @ x.astype(np.float64))
            assert (error <= bound).all(), (isa, matrix.num_rows, matrix.num_columns)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", kernels.LAYOUTS)
def test_rows_do_not_depend_on_how_they_are_split(
    rng: np.random.Generator, layout: str, isa: str
) -> None:
    num_columns = max(96, kernels.block(layout))
    matrix = kernels.random_matrix(rng, layout, 150, num_columns, padding=3, offset=1)
    x = kernels.random_input(rng, num_columns)[0]
    whole = kernels.matvec(isa, matrix, x)
    for first, count in ((0, 1), (1, 7), (3, 64), (149, 1), (17, 133)):
        part = kernels.matvec(isa, matrix, x, first, count)
        assert_same_bits(part, whole[first : first + count], (first, count))


@pytest.mark.parametrize("isa", ISAS)
def test_mxfp4_scales(isa: str) -> None:
    """Each scale byte times each code, alone in its row; byte 0 is 2**-127 and 0xFF is NaN."""
    codes, scale_bytes = np.arange(16, dtype=np.uint8), np.arange(256, dtype=np.uint8)
    data = np.zeros((256, 16, 64), np.uint8)
    data[:, :, 7] = codes << 4  # column 15
    scales = np.full((256, 16, 4), 127, np.uint8)
    scales[:, :, 0] = scale_bytes[:, None]
    matrix = kernels.Matrix("mxfp4", 4096, 128, 64, 4, data.ravel(), scales.ravel())
    x = np.zeros(128, np.float32)
    x[15] = 0.75
    values = np.where(codes & 8, -E2M1[codes & 7], E2M1[codes & 7]).astype(np.float64)
    powers = np.ldexp(1.0, scale_bytes.astype(int) - 127)
    powers[255] = np.nan
    with np.errstate(over="ignore"):
        expected = (0.75 * values * powers[:, None]).astype(np.float32)
    expected += np.float32(0)  # a sum that starts from +0 is never -0
    assert_same_bits(kernels.matvec(isa, matrix, x), expected.ravel(), "scale byte times code")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", [n for n in kernels.PLANE_BYTES if not kernels.is_scaled(n)])
def test_mx_scales(layout: str, isa: str) -> None:
    """Each scale byte with each code at each place of a block, in the panel that holds it."""
    num_bits = int(layout[4])
    codes = np.arange(1 << num_bits, dtype=np.uint8)
    places = np.stack([np.roll(codes, shift) for shift in range(32)])  # every code everywhere
    bits = np.unpackbits(places[..., None], axis=2, bitorder="little")[..., :num_bits]
    data = np.packbits(bits.reshape(32, -1), axis=1, bitorder="little")
    for scale in (0, 1, 2, 100, 126, 127, 128, 240, 253, 254, 255):
        scales = np.full((32, codes.size // 32), scale, np.uint8)
        sizes = (data.shape[1], scales.shape[1])
        matrix = kernels.Matrix(layout, 32, codes.size, *sizes, data.ravel(), scales.ravel())
        values, _ = expected_panel(matrix, 32)
        assert_same_bits(kernels.expand_panel(isa, matrix).values, values, scale)
        assert np.isnan(values).all() == (scale == 255)


# ---- panels ----


def expected_panel(matrix: kernels.Matrix, num_rows: int) -> tuple[Float32, Float32]:
    """Values and scales of the first rows, by index arithmetic; -1 where nothing is written."""
    per_lane = kernels.per_lane(matrix.layout)
    groups = kernels.num_groups(matrix.num_columns, matrix.layout)
    order = kernels.lane_elements(matrix.layout)
    weights, scales = decode(matrix)
    values = np.full((16, groups * per_lane, 32), -1, np.float32)
    scale_values = np.full((4, groups if per_lane == 8 else 0, 32), -1, np.float32)
    for column in range(matrix.num_columns):
        group, within = divmod(column, 16 * per_lane)
        lane, i = (int(found[0]) for found in np.nonzero(order == within))
        chain = values[lane, group * per_lane + i]
        chain[:] = 0
        chain[:num_rows] = weights[:num_rows, column]
        if per_lane == 8:
            chain = scale_values[lane // 4, group]
            chain[:] = 0
            chain[:num_rows] = scales[:num_rows, column]
    return values, scale_values


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", kernels.LAYOUTS)
def test_expand_panel(rng: np.random.Generator, layout: str, isa: str) -> None:
    for special in (False, True):
        for num_columns in columns_of(layout):
            matrix = kernels.random_matrix(rng, layout, 35, num_columns, special=special, offset=1)
            for num_rows in (1, 7, 16, 31, 32):
                panel = kernels.expand_panel(isa, matrix, 0, num_rows)
                values, scales = expected_panel(matrix, num_rows)
                shape = (num_columns, num_rows)
                assert_same_bits(panel.values[values != -1], values[values != -1], shape)
                assert_same_bits(panel.scales[scales != -1], scales[scales != -1], shape)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", kernels.LAYOUTS)
def test_panel_product_is_matvec(rng: np.random.Generator, layout: str, isa: str) -> None:
    for special in (False, True):
        for num_columns in columns_of(layout):
            matrix = kernels.random_matrix(rng, layout, 40, num_columns, special=special)
            num_tokens = 96 if num_columns < 200 else 7
            x = kernels.random_input(rng, num_columns, num_tokens=num_tokens, special=special)
            for first_row, num_rows in ((8, 32), (39, 1)):
                panel = kernels.expand_panel(isa, matrix, first_row, num_rows)
                product = kernels.multiply_panel(isa, panel, x)[:, :num_rows]
                rows = [kernels.matvec("scalar", matrix, token, first_row, num_rows) for token in x]
                assert_same_bits(product, np.stack(rows), (num_columns, num_rows, special))


# ---- memory ----


class Guarded:
    """Memory that ends where reading and writing are forbidden."""

    def __init__(self, num_bytes: int) -> None:
        self.size = -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.map = mmap.mmap(-1, self.size + mmap.PAGESIZE)
        self.bytes = np.frombuffer(self.map, np.uint8)
        end = ctypes.c_void_p(self.bytes.ctypes.data + self.size)
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(end, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0

    def copy(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array, so placed that the forbidden page follows its last byte."""
        place = self.bytes[self.size - array.nbytes : self.size].view(array.dtype)
        place = place.reshape(array.shape)
        place[...] = array
        return place


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", kernels.LAYOUTS)
def test_nothing_behind_the_arrays_is_touched(
    rng: np.random.Generator, layout: str, isa: str
) -> None:
    guards = [Guarded(1 << 21) for _ in range(5)]
    for num_columns in columns_of(layout):
        for num_rows in (1, 5, 9, 32):
            m = kernels.random_matrix(rng, layout, num_rows, num_columns)
            data, scales = guards[0].copy(m.data), guards[1].copy(m.scales)
            matrix = (layout, num_columns, m.row_bytes, m.scale_row_bytes, data, scales)
            x = kernels.random_input(rng, num_columns, num_tokens=6)
            for num_vectors in (1, 2, 3, 4):
                packed = guards[2].copy(kernels.pack_lanes(x[:num_vectors], layout))
                out = guards[3].copy(np.zeros((num_vectors, num_rows), np.float32))
                _core.kernel_matvec(isa, matrix, 0, num_rows, packed, num_vectors, out)
            expected = out.copy()
            empty = kernels.expand_panel(isa, m, 0, num_rows)
            values, panel_scales = guards[3].copy(empty.values), guards[4].copy(empty.scales)
            _core.kernel_expand_panel(isa, matrix, 0, num_rows, values, panel_scales)
            tiles = guards[2].copy(kernels.pack_tiles(x, layout))
            product = guards[0].copy(np.zeros((6, 32), np.float32))
            _core.kernel_multiply_panel(isa, num_columns, values, panel_scales, tiles, 1, product)
            assert_same_bits(product[:4, :num_rows].copy(), expected, (num_columns, num_rows))


def test_entry_points_refuse_what_would_leave_memory(rng: np.random.Generator) -> None:
    matrix = kernels.random_matrix(rng, "bf16", 4, 33)
    x, out = kernels.pack_lanes(kernels.random_input(rng, 33)[0], "bf16"), np.empty(4, np.float32)
    good = matrix.as_arguments()
    _core.kernel_matvec("scalar", good, 0, 4, x, 1, out)
    for first_row, num_rows in ((1, 4), (-1, 2), (0, 0), (0, 2**40)):
        with pytest.raises(gptoss.ArgumentError):
            _core.kernel_matvec("scalar", good, first_row, num_rows, x, 1, out)
    for bad_x, num_vectors, bad_out in (
        *((x[:-1], 1, out), (x, 1, out[:3]), (x, 0, out), (x, 5, np.empty(20, np.float32))),
        *((np.tile(x, 2)[:-1], 2, np.empty(8, np.float32)), (np.tile(x, 2), 2, out)),
    ):
        with pytest.raises(gptoss.ArgumentError):
            _core.kernel_matvec("scalar", good, 0, 4, bad_x, num_vectors, bad_out)
    with pytest.raises(gptoss.ArgumentError):
        _core.kernel_matvec("scalar", ("q9", *good[1:]), 0, 4, x, 1, out)
    with pytest.raises(gptoss.UnsupportedError):
        _core.kernel_matvec("avx1024", good, 0, 4, x, 1, out)


# ---- the table and the self-test ----


def test_every_instruction_set_has_every_kernel() -> None:
    operations: dict[str, list[str]] = {}
    for kernel in _core.kernels():
        assert kernel["name"] == f"{kernel['operation']}_{kernel['isa']}"
        operations.setdefault(kernel["isa"], []).append(kernel["operation"])
    for isas in (_core.isas(), _core.bf16_isas()):
        assert len({tuple(operations[isa]) for isa, _ in isas}) == (1 if isas else 0)
    assert list(operations) == [isa for isa, _ in [*_core.isas(), *_core.bf16_isas()]]
    assert "scalar" in ISAS


@pytest.mark.parametrize("isa", OTHER_ISAS)
def test_self_test(rng: np.random.Generator, isa: str) -> None:
    seed = int(rng.integers(2**31))
    results = self_test(isa, seed)
    assert [r["operation"] for r in results] == [k["operation"] for k in KERNELS if k["isa"] == isa]
    assert all(r["cases"] > 0 for r in results)
    assert [r for r in results if r["mismatches"]] == []


def test_self_test_is_a_function_of_its_seed_and_finds_differences(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not OTHER_ISAS:
        pytest.skip("needs a second instruction set")
    right = kernels.matvec

    def wrong(isa: str, *arguments: Any, **options: Any) -> Float32:
        product = right(isa, *arguments, **options)
        return product if isa == "scalar" else np.nextafter(product, np.float32(np.inf))

    monkeypatch.setattr(kernels, "matvec", wrong)
    results = self_test(OTHER_ISAS[0], 7)
    assert results == self_test(OTHER_ISAS[0], 7)
    wrong_names = [r["operation"] for r in results if r["mismatches"]]
    assert wrong_names == [f"matvec_{layout}" for layout in kernels.LAYOUTS]
