"""Precision bf16: inputs rounded to bf16 before every matrix product, exact weights, float32 sums.

Products are compared bit for bit with the documented order of sums, operation by operation, so that
within a unit prefill, decode and batch cannot differ. What a processor lacks is skipped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bf16_support as bf16
import demo_eval
import numpy as np
import pytest
import reference
from kernel_support import array_at, assert_equal_bits, guarded
from support import Array, assert_same_bits, open_generator, random_tokens, step_through
from test_bit_identity import SPECS

import gptoss
from gptoss import _core, kernels
from gptoss.self_test import self_test

AVAILABLE = dict(_core.bf16_isas())
UNITS = [
    pytest.param(
        isa, marks=pytest.mark.skipif(not AVAILABLE[isa], reason=f"this machine lacks {isa}")
    )
    for isa in bf16.ISAS
]
NEEDS_ANY = pytest.mark.skipif(not any(AVAILABLE.values()), reason="needs AVX512_BF16 or AMX")

# Around every boundary: of pairs, groups of 32, tiles of 6 and of 16 tokens, panels of 32 rows
# and chunks of 16 groups. (num_rows, num_columns, num_tokens)
SHAPES = [
    (1, 32, 1),
    (2, 64, 2),
    (15, 96, 3),
    (16, 480, 4),
    (17, 512, 5),
    (31, 544, 6),
    (32, 1024, 7),
    (33, 1056, 13),
    (48, 32, 16),
    (64, 64, 17),
    (65, 96, 31),
    (70, 160, 32),
    (34, 128, 33),
    (5, 2880, 49),
]
# More than a pass of 512 tokens: (num_rows, num_columns, num_tokens)
MANY_TOKENS = (33, 64, 530)


@pytest.fixture
def rng() -> np.random.Generator:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def cases(
    rng: np.random.Generator, layout: str, special: bool
) -> Iterator[tuple[kernels.Matrix, Array]]:
    for num_rows, num_columns, num_tokens in SHAPES:
        if layout == "bf16":
            num_columns -= int(rng.choice([0, 1, 2, 15, 16, 17, 31]))
        padding, offset = (int(n) for n in rng.integers(0, 4, 2))
        matrix = kernels.random_matrix(
            rng, layout, num_rows, num_columns, special=special, padding=padding, offset=offset
        )
        yield (
            matrix,
            kernels.random_input(rng, num_columns, num_tokens=num_tokens, special=special),
        )


# ---- the reference itself ----


@pytest.mark.parametrize("isa", bf16.ISAS)
@pytest.mark.parametrize("layout", bf16.LAYOUTS)
def test_documented_order_is_near_the_exact_product(
    rng: np.random.Generator, layout: str, isa: str
) -> None:
    """n roundings of 2^-24 each, of the terms' sizes."""
    for matrix, x in cases(rng, layout, False):
        rounded, weights = bf16.round_to_bf16(x[:2]), bf16.weights_of(matrix)
        exact = rounded.astype(np.float64) @ weights.astype(np.float64).T
        terms = np.abs(rounded).astype(np.float64) @ np.abs(weights).astype(np.float64).T
        error = np.abs(bf16.product(isa, matrix, x[:2]) - exact)
        assert (error <= matrix.num_columns * 2.0**-24 * terms).all()


@pytest.mark.parametrize("layout", bf16.LAYOUTS)
def test_weights_are_those_of_the_scalar_kernels(rng: np.random.Generator, layout: str) -> None:
    matrix = kernels.random_matrix(rng, layout, 7, 96)
    identity = np.eye(96, dtype=np.float32)
    columns = [kernels.matvec("scalar", matrix, unit) for unit in identity]
    np.testing.assert_array_equal(np.stack(columns, axis=1), bf16.weights_of(matrix))


# ---- products ----


@pytest.mark.parametrize("form", ["vector", "panel"])
@pytest.mark.parametrize("layout", bf16.LAYOUTS)
@pytest.mark.parametrize("isa", UNITS)
def test_bits_are_those_of_the_documented_order(
    rng: np.random.Generator, isa: str, layout: str, form: str
) -> None:
    for special in (False, True):
        for matrix, x in cases(rng, layout, special):
            chosen = rng.choice(len(x), min(len(x), 3), replace=False)
            actual = kernels.product_bf16(isa, form, matrix, x)[chosen]
            expected = bf16.product(isa, matrix, x[chosen])
            assert_equal_bits(actual, expected, f"{matrix.num_rows} x {x.shape} {special=}")


@pytest.mark.parametrize("layout", bf16.LAYOUTS)
@pytest.mark.parametrize("isa", UNITS)
def test_outputs_depend_on_their_own_row_and_token_only(
    rng: np.random.Generator, isa: str, layout: str
) -> None:
    """One token alone, any number together, among any others, in both forms."""
    for special in (False, True):
        num_rows, num_columns, num_tokens = MANY_TOKENS
        large = kernels.random_matrix(rng, layout, num_rows, num_columns, special=special)
        inputs = kernels.random_input(rng, num_columns, num_tokens=num_tokens, special=special)
        for matrix, x in [*cases(rng, layout, special), (large, inputs)]:
            many = kernels.product_bf16(isa, "panel", matrix, x)
            singles = [kernels.product_bf16(isa, "vector", matrix, token[None]) for token in x]
            assert_equal_bits(np.concatenate(singles), many)
            few = kernels.product_bf16(isa, "vector", matrix, x)
            assert_equal_bits(few, many)
            order = rng.permutation(len(x))
            shuffled = kernels.product_bf16(isa, "panel", matrix, x[order])
            assert_equal_bits(shuffled, many[order])


@pytest.mark.parametrize("layout", ["mxfp4", "mxfp4_gguf"])
@pytest.mark.parametrize("isa", UNITS)
def test_every_scale_and_code(isa: str, layout: str) -> None:
    """One block a row, of one scale byte; the input picks one element. The instructions take
    subnormal weights for zero."""
    codes = np.tile(np.arange(256, dtype=np.uint8).reshape(16, 16), (256, 1))
    scales = np.repeat(np.arange(256, dtype=np.uint8), 16)[:, None]
    if layout == "mxfp4":
        matrix = kernels.Matrix(layout, 4096, 32, 16, 1, codes.ravel(), scales.ravel())
    else:
        blocks = np.concatenate([scales, codes], axis=1).ravel()
        matrix = kernels.Matrix(layout, 4096, 32, 17, 0, blocks, np.zeros(0, np.uint8))
    weights = bf16.flush(bf16.weights_of(matrix))
    for first in range(0, 32, 8):
        x = np.eye(32, dtype=np.float32)[first : first + 8]
        actual = kernels.product_bf16(isa, "panel", matrix, x)
        expected = weights[:, first : first + 8].T + np.float32(0)
        rows = np.isfinite(weights).all(axis=1)  # infinity times zero elsewhere
        assert rows.sum() > 4000
        assert_equal_bits(actual[:, rows], expected[:, rows])
        assert_equal_bits(actual, bf16.product(isa, matrix, x))


@pytest.mark.parametrize("layout", bf16.LAYOUTS)
@pytest.mark.parametrize("isa", UNITS)
def test_nothing_outside_is_read_or_written(
    rng: np.random.Generator, isa: str, layout: str
) -> None:
    for num_rows, num_columns, num_tokens in ((3, 32, 1), (17, 96, 5), (40, 544, 20)):
        matrix = kernels.random_matrix(rng, layout, num_rows, num_columns)
        x = kernels.random_input(rng, num_columns, num_tokens=num_tokens)
        expected = kernels.product_bf16(isa, "panel", matrix, x)
        for at_end in (True, False):
            with (
                guarded(matrix.data.nbytes, at_end=at_end) as data,
                guarded(max(matrix.scales.nbytes, 1), at_end=at_end) as scales,
                guarded(x.nbytes, at_end=at_end) as inputs,
                guarded(expected.nbytes, at_end=at_end) as outputs,
            ):
                held = [
                    array_at(data, matrix.data.size, np.uint8),
                    array_at(scales, matrix.scales.size, np.uint8),
                    array_at(inputs, x.size, np.float32),
                    array_at(outputs, expected.size, np.float32),
                ]
                for array, values in zip(held, (matrix.data, matrix.scales, x), strict=False):
                    array[:] = values.ravel()
                arguments = (*matrix.as_arguments()[:4], held[0], held[1])
                for form in ("vector", "panel"):
                    _core.kernel_product_bf16(
                        isa, form, arguments, num_rows, held[2], num_tokens, held[3]
                    )
                    assert_equal_bits(held[3].reshape(expected.shape).copy(), expected)
                del arguments
                held.clear()


@NEEDS_ANY
def test_entry_point_refuses_what_would_leave_memory(rng: np.random.Generator) -> None:
    isa = next(name for name, available in AVAILABLE.items() if available)
    matrix = kernels.random_matrix(rng, "bf16", 4, 33)
    x, out = kernels.random_input(rng, 33, num_tokens=2), np.empty((2, 4), np.float32)

    def run(matrix: kernels.Matrix, x: Array, num_tokens: int, out: Array, isa: str = isa) -> None:
        arguments = matrix.as_arguments()
        _core.kernel_product_bf16(isa, "panel", arguments, 4, x, num_tokens, out)

    run(matrix, x, 2, out)
    for bad in ((x, 3, out), (x, 0, out), (x[:1], 2, out), (x, 2, out[:1])):
        with pytest.raises(gptoss.ArgumentError):
            run(matrix, *bad)
    with pytest.raises(gptoss.ArgumentError, match="layout"):
        run(kernels.random_matrix(rng, "f32", 4, 33), x, 2, out)
    with pytest.raises(gptoss.UnsupportedError):
        run(matrix, x, 2, out, "avx2")


@pytest.mark.parametrize("isa", UNITS)
def test_self_test(rng: np.random.Generator, isa: str) -> None:
    results = self_test(isa, int(rng.integers(2**31)))
    assert [r["operation"] for r in results] == [f"product_bf16_{name}" for name in bf16.LAYOUTS]
    assert [r for r in results if r["mismatches"] or not r["cases"]] == []


# ---- models ----


def open_model(name: str, make_directory: Callable[..., Path], **options: Any) -> gptoss.Model:
    path = "demo" if name == "demo" else make_directory(SPECS[name])
    return gptoss.Model(path, precision="bf16", **options)


@pytest.mark.parametrize("name", ["demo", *SPECS])
@pytest.mark.parametrize("isa", UNITS)
def test_bits_are_the_same_however_computed(
    isa: str, name: str, make_directory: Callable[..., Path]
) -> None:
    """Prefill in blocks of any size, token by token, on any number of threads, forked."""
    expected: Array | None = None
    for threads in (1, 2, 5):
        with open_model(name, make_directory, isa=isa, threads=threads) as model:
            assert (model.isa, model.precision) == (isa, "bf16")
            tokens = random_tokens(model, 150)
            for block_size in (512, 1, 3, 4, 16, 17, 33, 64):
                generator = open_generator(model, 150, block_size=block_size)
                logits = generator.prefill(tokens, all_logits=True)
                expected = logits if expected is None else expected
                assert_same_bits(logits, expected, f"{threads=} {block_size=}")
            assert_same_bits(step_through(open_generator(model, 150), tokens), expected, "steps")
            generator = open_generator(model, 150)
            generator.prefill(tokens[:100])
            fork = generator.fork()
            assert_same_bits(fork.prefill(tokens[100:], all_logits=True), expected[100:], "fork")


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("isa", UNITS)
def test_agrees_with_the_reference(
    isa: str, name: str, make_directory: Callable[..., Path]
) -> None:
    """float64 with the same roundings. A value near the middle of two bf16 numbers may round the
    other way, by 2^-8 of itself, in each product; a route is only followed where the reference's
    margin is larger than that does."""
    directory = make_directory(SPECS[name])
    with gptoss.Model(directory, precision="bf16", isa=isa) as model:
        tokens = random_tokens(model, 60)
        generator = open_generator(model, 60, kv_dtype="f32")
        generator.capture("*")
        logits = generator.prefill(tokens, all_logits=True)
        taps = {tap: np.asarray(values) for tap, values in generator.taps.items()}
    oracle = reference.Model(directory)
    routes = {
        layer: taps[f"layers.{layer}.router_experts"] for layer in range(oracle.config.num_layers)
    }
    expected = reference.forward(
        oracle,
        tokens,
        routes=routes,
        precision="bf16",
        attention_precision="bf16" if isa == "amx" else "fp32",
    )
    exact = reference.forward(oracle, tokens, routes=routes)
    for layer, chosen in routes.items():
        router = expected[f"layers.{layer}.router_logits"]
        best = np.sort(router, axis=-1)[:, ::-1][:, : chosen.shape[1]]
        assert np.abs(np.take_along_axis(router, chosen, axis=-1) - best).max() < 0.05

    def error(values: Array, wanted: Array) -> float:
        return float(np.sqrt(np.mean((values - wanted) ** 2) / np.mean(wanted**2)))

    for tap in ("attn_norm", "attn_residual", "router_logits", "mlp_output", "residual"):
        assert error(taps["layers.0." + tap], expected["layers.0." + tap]) < 2e-3, tap
    assert error(logits, expected["logits"]) < 1e-2
    # The roundings are there, and in the right places: without them the reference is farther off.
    assert error(logits, expected["logits"]) < error(logits, exact["logits"]) / 2


@pytest.fixture(scope="module")
def plain_logits() -> Array:
    with gptoss.Model("demo") as model:
        return open_generator(model, 64).prefill(random_tokens(model, 64), all_logits=True)


@pytest.mark.parametrize("isa", UNITS)
def test_demo_is_near_fp32(isa: str, plain_logits: Array) -> None:
    with gptoss.Model("demo", precision="bf16", isa=isa) as model:
        tokens = random_tokens(model, 64)
        logits = open_generator(model, 64).prefill(tokens, all_logits=True)
    difference = np.sqrt(np.mean((logits - plain_logits) ** 2))
    assert 0 < difference < 0.1 * plain_logits.std()


@pytest.mark.oracle
@pytest.mark.parametrize("isa", UNITS)
def test_demo_answers_questions(shared: Path, isa: str) -> None:
    """Two questions of each task; as many right as in fp32, but for two."""
    judge = demo_eval.Judge(shared, "f32", threads=1, precision="bf16", isa=isa)
    recorded = demo_eval.load_recorded(shared)
    right = before = 0
    for task, items in demo_eval.load_items(shared, 2).items():
        right += sum(judge(item) for item in items)
        before += sum(recorded[task][item["index"]] for item in items)
    assert abs(right - before) <= 2


# ---- choosing ----


@NEEDS_ANY
def test_the_best_unit_is_the_default() -> None:
    best = [name for name, available in AVAILABLE.items() if available][-1]
    with gptoss.Model("demo", precision="bf16") as model:
        assert (model.isa, model.precision) == (best, "bf16")
        assert f"bf16 on {best}" in repr(model)


def test_fp32_is_the_default_precision() -> None:
    with gptoss.Model("demo") as model:
        assert model.precision == "fp32"
        assert model.isa in [name for name, available in _core.isas() if available]


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx1024"])
def test_instruction_sets_without_bf16_are_refused(isa: str) -> None:
    with pytest.raises(gptoss.UnsupportedError, match="use precision 'fp32'") as info:
        gptoss.Model("demo", precision="bf16", isa=isa)
    assert isa in str(info.value)


@pytest.mark.skipif(any(AVAILABLE.values()), reason="this machine has bf16 instructions")
@pytest.mark.parametrize("isa", [None, *bf16.ISAS])
def test_machines_without_bf16_refuse(isa: str | None) -> None:
    with pytest.raises(gptoss.UnsupportedError, match="use precision 'fp32'") as info:
        gptoss.Model("demo", precision="bf16", isa=isa)
    assert all(name in str(info.value) for name in bf16.ISAS)


@pytest.mark.parametrize("isa", bf16.ISAS)
def test_bf16_instruction_sets_refuse_fp32(isa: str) -> None:
    with pytest.raises(gptoss.UnsupportedError, match="precision 'bf16' only"):
        gptoss.Model("demo", isa=isa)


def test_unknown_precision_lists_both() -> None:
    with pytest.raises(gptoss.UnsupportedError, match="fp32, bf16"):
        gptoss.Model("demo", precision="int8")
