"""The numerics contract: one sequence has one set of logits, to the last bit, however it is
computed.

Every comparison here is exact. The tokens of a sequence may be fed one by one, in blocks of any
size, by any number of threads, on any instruction set, from a fork, or again after a rewind.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import LAYOUTS, Spec
from support import (
    Array,
    assert_same_bits,
    feed,
    open_generator,
    random_tokens,
    step_through,
)

import gptoss
from gptoss import _core

ISAS = [name for name, available in _core.isas() if available]
KV_DTYPES = ["f16", "f32"]
THREADS = [1, 2, 3, 5]
BLOCK_SIZES = [1, 2, 3, 7, 16, 33, 64, 100, 512]

# Sizes that leave tails everywhere: in the lanes, in the groups of 128, in tiles of rows, in pairs
# of heads.
SPECS = {
    "mxfp4": Spec(
        num_layers=3,
        hidden_size=96,
        intermediate_size=160,
        num_heads=6,
        num_kv_heads=3,
        head_dim=20,
        num_experts=5,
        experts_per_token=3,
        vocab_size=517,
        window=37,
    ),
    "mxfp4-wide": Spec(
        hidden_size=288,
        intermediate_size=224,
        num_heads=8,
        num_kv_heads=1,
        head_dim=64,
        num_experts=9,
        experts_per_token=4,
        vocab_size=131,
        window=128,
    ),
    "bf16": Spec(
        hidden_size=50,
        intermediate_size=37,
        num_heads=9,
        num_kv_heads=3,
        head_dim=6,
        num_experts=7,
        experts_per_token=7,
        vocab_size=33,
        window=1,
        expert_dtype="BF16",
    ),
    "f16": Spec(
        hidden_size=70,
        intermediate_size=19,
        num_heads=5,
        num_kv_heads=5,
        head_dim=34,
        num_experts=3,
        experts_per_token=1,
        vocab_size=97,
        window=16,
        dense_dtype="F16",
        expert_dtype="F16",
        tied=True,
    ),
    "f32": Spec(
        hidden_size=33,
        intermediate_size=129,
        num_heads=4,
        num_kv_heads=2,
        head_dim=130,
        vocab_size=17,
        window=500,
        dense_dtype="F32",
        expert_dtype="F32",
        attention_bias=False,
        yarn=None,
    ),
}
NAMES = ["demo", *SPECS]
ROWS = {"demo": 200}  # past the window of 128; 150 otherwise

Runner = Callable[..., Array]


@pytest.fixture(scope="module")
def open_model(make_directory: Callable[..., Path]) -> Callable[..., gptoss.Model]:
    def open_it(name: str, **options: Any) -> gptoss.Model:
        return gptoss.Model("demo" if name == "demo" else make_directory(SPECS[name]), **options)

    return open_it


@pytest.fixture(scope="module")
def expected(open_model: Callable[..., gptoss.Model]) -> Callable[[str, str], Array]:
    """expected(name, kv_dtype): all logits, by one prefill on one thread; computed once."""
    known: dict[tuple[str, str], Array] = {}

    def compute(name: str, kv_dtype: str) -> Array:
        if (name, kv_dtype) not in known:
            with open_model(name, threads=1) as model:
                known[name, kv_dtype] = run(model, name, kv_dtype)
        return known[name, kv_dtype]

    return compute


def run(model: gptoss.Model, name: str, kv_dtype: str, **options: Any) -> Array:
    tokens = random_tokens(model, ROWS.get(name, 150))
    generator = open_generator(model, len(tokens), kv_dtype=kv_dtype, **options)
    return generator.prefill(tokens, all_logits=True)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_token_by_token_equals_prefill(
    name: str,
    kv_dtype: str,
    open_model: Callable[..., gptoss.Model],
    expected: Callable[[str, str], Array],
) -> None:
    with open_model(name) as model:
        tokens = random_tokens(model, ROWS.get(name, 150))
        logits = step_through(open_generator(model, len(tokens), kv_dtype=kv_dtype), tokens)
    assert_same_bits(logits, expected(name, kv_dtype))


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_any_block_size(
    name: str,
    kv_dtype: str,
    open_model: Callable[..., gptoss.Model],
    expected: Callable[[str, str], Array],
) -> None:
    with open_model(name) as model:
        for block_size in BLOCK_SIZES:
            logits = run(model, name, kv_dtype, block_size=block_size)
            assert_same_bits(logits, expected(name, kv_dtype), f"{block_size=}")


@pytest.mark.parametrize("name", NAMES)
def test_any_division_into_calls(
    name: str, open_model: Callable[..., gptoss.Model], expected: Callable[[str, str], Array]
) -> None:
    with open_model(name) as model:
        tokens = random_tokens(model, ROWS.get(name, 150))
        for sizes in ([1, 1, 1, 50], [5, 64, 1, 3, 17], [149, 1], [2, 3, 5, 7, 11, 13, 31]):
            generator = open_generator(model, len(tokens))
            assert_same_bits(feed(generator, tokens, sizes), expected(name, "f16"), f"{sizes=}")


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_threads(
    name: str,
    threads: int,
    open_model: Callable[..., gptoss.Model],
    expected: Callable[[str, str], Array],
) -> None:
    with open_model(name, threads=threads) as model:
        for kv_dtype in KV_DTYPES:
            assert_same_bits(run(model, name, kv_dtype), expected(name, kv_dtype), kv_dtype)
        tokens = random_tokens(model, 40)
        logits = step_through(open_generator(model, 40), tokens)
    assert_same_bits(logits, expected(name, "f16")[:40], "steps")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", NAMES)
def test_every_instruction_set(
    name: str,
    isa: str,
    open_model: Callable[..., gptoss.Model],
    expected: Callable[[str, str], Array],
) -> None:
    """Matrix products (prefill) and matrix-vector products (steps) of each level."""
    with open_model(name, isa=isa) as model:
        assert model.isa == isa
        for kv_dtype in KV_DTYPES:
            assert_same_bits(run(model, name, kv_dtype), expected(name, kv_dtype), kv_dtype)
        tokens = random_tokens(model, 40)
        logits = step_through(open_generator(model, 40), tokens)
    assert_same_bits(logits, expected(name, "f16")[:40], "steps")


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_fork_equals_fresh(
    name: str,
    kv_dtype: str,
    open_model: Callable[..., gptoss.Model],
    expected: Callable[[str, str], Array],
) -> None:
    """A fork and its parent go on independently; both give what a fresh generator gives."""
    with open_model(name) as model:
        tokens = random_tokens(model, ROWS.get(name, 150))
        parent = open_generator(model, len(tokens), kv_dtype=kv_dtype)
        parent.prefill(tokens[:100])
        fork = parent.fork()
        assert_same_bits(fork.logits, parent.logits)
        other = step_through(parent, [tokens[0]] * 20)
        logits = fork.prefill(tokens[100:], all_logits=True)
        assert_same_bits(logits, expected(name, kv_dtype)[100:])
        fresh = open_generator(model, len(tokens), kv_dtype=kv_dtype)
        fresh.prefill(tokens[:100])
        assert_same_bits(other, step_through(fresh, [tokens[0]] * 20))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout: str, make_directory: Callable[..., Path]) -> None:
    """All layouts store the same elements in the same formats, so the bits agree too."""
    logits = []
    for directory in (
        make_directory(SPECS["mxfp4"]),
        make_directory(SPECS["mxfp4"], layout=layout),
    ):
        with gptoss.Model(directory) as model:
            logits.append(run(model, "mxfp4", "f16"))
    assert_same_bits(logits[1], logits[0])


def test_copied_files_equal_mapped_ones(
    open_model: Callable[..., gptoss.Model], expected: Callable[[str, str], Array]
) -> None:
    with open_model("mxfp4", mmap=False) as model:
        assert_same_bits(run(model, "mxfp4", "f16"), expected("mxfp4", "f16"))


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("name", ["demo", "mxfp4", "bf16"])
def test_rewind_by_any_distance(
    name: str, kv_dtype: str, open_model: Callable[..., gptoss.Model]
) -> None:
    """Sliding layers give pages behind window + 512 back; a rewind beyond computes rows again."""
    with open_model(name) as model:
        window, length = model.config.sliding_window, 1500
        tokens = random_tokens(model, length)
        generator = open_generator(model, length, kv_dtype=kv_dtype)
        expected = generator.prefill(tokens, all_logits=True)
        distances = {1, 2, window - 1, window, window + 1, 511, 512, 513, 1000, length - 1, length}
        distances |= {window + 511, window + 512, window + 513, 2 * window + 512}
        for distance in sorted(distances - {0}):
            start = length - distance
            generator.rewind(start)
            assert generator.position == start
            logits = generator.prefill(tokens[start:], all_logits=True)
            assert_same_bits(logits, expected[start:], f"{distance=}")


def test_rewind_then_another_text(open_model: Callable[..., gptoss.Model]) -> None:
    """Nothing of the rows that were rewound stays behind, not in kv() either."""
    with open_model("demo") as model:
        tokens, others = random_tokens(model, 900), random_tokens(model, 300, seed=1)
        used, fresh = gptoss.Generator(model), gptoss.Generator(model)
        used.prefill(tokens)
        used.rewind(50)
        fresh.prefill(tokens[:50])
        logits = [generator.prefill(others, all_logits=True) for generator in (used, fresh)]
        assert_same_bits(logits[0], logits[1])
        for layer in range(model.config.num_layers):
            for ours, theirs in zip(used.kv(layer), fresh.kv(layer), strict=True):
                assert_same_bits(ours[:, -300:], theirs[:, -300:], f"{layer=}")


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("name", ["mxfp4-wide", "f32"])
def test_long_context_by_parts(
    name: str, kv_dtype: str, open_model: Callable[..., gptoss.Model]
) -> None:
    """With more threads than KV heads, a long context's tiles are computed in parts and joined."""
    logits = []
    for threads in (1, 6):
        with open_model(name, threads=threads) as model:
            tokens = random_tokens(model, 1190)
            generator = open_generator(model, len(tokens), kv_dtype=kv_dtype)
            generator.capture("*sink_mass", keep="all")
            generator.prefill(tokens[:1150])
            steps = [generator.step(token).copy() for token in tokens[1150:1170]]
            rows = generator.prefill(tokens[1170:], all_logits=True)  # several rows in a part
            logits.append(np.concatenate([steps, rows]))
            masses = [np.asarray(generator.taps[tap]) for tap in sorted(generator.taps)]
            logits.append(np.concatenate([mass.ravel() for mass in masses]))
    assert_same_bits(logits[2], logits[0])
    assert_same_bits(logits[3], logits[1])


class FloatEnvironment(ctypes.Structure):
    """glibc's fenv_t on x86-64."""

    _fields_ = (("x87", ctypes.c_uint32 * 7), ("mxcsr", ctypes.c_uint32))


@pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.platform != "linux", reason="sets MXCSR through glibc"
)
@pytest.mark.parametrize("threads", [1, 3])
def test_dirty_float_environment(
    threads: int, open_model: Callable[..., gptoss.Model], expected: Callable[[str, str], Array]
) -> None:
    """A host may flush subnormals and round down: the engine computes as ever, and restores it."""
    libm = ctypes.CDLL("libm.so.6")
    clean, dirty, after, inside = (FloatEnvironment() for _ in range(4))
    with open_model("mxfp4", threads=threads) as model:
        libm.fegetenv(ctypes.byref(clean))
        libm.fegetenv(ctypes.byref(dirty))
        flush_to_zero, denormals_are_zero, round_down = 0x8000, 0x0040, 0x2000
        dirty.mxcsr |= flush_to_zero | denormals_are_zero | round_down
        libm.fesetenv(ctypes.byref(dirty))
        try:
            logits = run(model, "mxfp4", "f16")
            libm.fegetenv(ctypes.byref(after))
            open_generator(model, 8).prefill(
                [1, 2], progress=lambda done, total: libm.fegetenv(ctypes.byref(inside))
            )
        finally:
            libm.fesetenv(ctypes.byref(clean))
    status_flags = 0x3F
    for host in (after, inside):  # callbacks are the host's code, too
        assert host.mxcsr & ~status_flags == dirty.mxcsr & ~status_flags
    assert_same_bits(logits, expected("mxfp4", "f16"))


def test_taps_do_not_change_the_bits(
    open_model: Callable[..., gptoss.Model], expected: Callable[[str, str], Array]
) -> None:
    with open_model("mxfp4") as model:
        tokens = random_tokens(model, 150)
        generator = open_generator(model, 150)
        generator.capture("*")
        assert_same_bits(generator.prefill(tokens, all_logits=True), expected("mxfp4", "f16"))


def test_taps_are_the_same_bits_by_steps(open_model: Callable[..., gptoss.Model]) -> None:
    with open_model("mxfp4") as model:
        tokens = random_tokens(model, 60)
        whole, steps = open_generator(model, 60), open_generator(model, 60)
        whole.capture("*")
        whole.prefill(tokens)
        steps.capture("*", keep="all")
        step_through(steps, tokens)
        assert set(whole.taps) == set(steps.taps)
        for name, values in whole.taps.items():
            assert_same_bits(np.asarray(steps.taps[name]), np.asarray(values), name)
