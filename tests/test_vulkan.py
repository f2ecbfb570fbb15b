"""The Vulkan back end against the CPU, at every tap: all families, layouts, formats of weights and
caches, and the sizes around which it computes otherwise."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dense_models
import gguf_models
import numpy as np
import pytest
from dense_models import Gpt2, Llama
from models import Spec, random_tensors, write_model, write_safetensors
from support import assert_same_bits, open_generator, random_tokens
from vulkan_support import TOLERANCE, assert_close, feed_both, needs_vulkan

import gptoss

pytestmark = needs_vulkan

SEED = secrets.randbelow(2**32)
Write = Callable[[Path, np.random.Generator], Path]

# Sizes that leave tails everywhere; eight query heads to a key head and one, and none rotated.
TAILS = Spec(
    num_layers=2,
    hidden_size=96,
    intermediate_size=32,
    num_heads=6,
    num_kv_heads=2,
    head_dim=20,
    num_experts=5,
    experts_per_token=3,
)
GROUPED = Spec(num_heads=8, num_kv_heads=1, num_layers=1, expert_gain=6.0)
WIDE = Spec(hidden_size=256, intermediate_size=256, num_layers=1, expert_dtype="F32", head_dim=64)
LLAMA = Llama(
    hidden_size=50,
    head_dim=6,
    num_heads=9,
    num_kv_heads=3,
    intermediate_size=37,
    vocab_size=33,
    num_layers=2,
    tied=True,
    attention_bias=True,
    mlp_bias=True,
)
BLOCKS = Llama(hidden_size=96, head_dim=32, num_heads=3, num_kv_heads=1, intermediate_size=64)
WIDE_LLAMA = Llama(hidden_size=256, num_heads=4, intermediate_size=256, num_layers=1)
GPT2 = Gpt2(hidden_size=60, num_heads=5, vocab_size=33, num_layers=2)
GPT2_BLOCKS = Gpt2(hidden_size=64, num_heads=2, tied=False, num_layers=1)
K_TYPES = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
OLD_TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


def hf(spec: Spec, layout: str = "hf") -> Write:
    return lambda path, rng: write_model(path, spec, rng, layout)


def gguf(spec: Spec, dense: str) -> Write:
    return lambda path, rng: gguf_models.write_model(path.with_suffix(".gguf"), spec, rng, dense)


def mixed(spec: Spec, types: list[str]) -> Write:
    """Every matrix in one of the types."""

    def write(path: Path, rng: np.random.Generator) -> Path:
        def choose(tensor: Any) -> str:
            is_matrix = len(tensor.shape) > 1 and not tensor.name.endswith(".bias")
            return str(rng.choice(types)) if is_matrix else "F32"

        return gguf_models.write_types(path.with_suffix(".gguf"), spec, rng, choose)

    return write


def dense(spec: dense_models.Spec, kind: str, dtype: str) -> Write:
    write = dense_models.write_hf if kind == "hf" else dense_models.write_gguf
    return lambda path, rng: write(path.with_suffix(f".{kind}"), spec, rng, dtype)


def mixed_llama(types: list[str]) -> Write:
    def write(path: Path, rng: np.random.Generator) -> Path:
        path.mkdir()
        choose: Callable[[str], str] = lambda name: str(rng.choice(types))  # noqa: E731
        return dense_models.write_types(path, WIDE_LLAMA, rng, choose)[0]

    return write


CASES: dict[str, Write] = {
    "gpt-oss": hf(TAILS),
    "gpt-oss-original": hf(GROUPED, "original"),
    "gpt-oss-bf16-experts": hf(Spec(**vars(TAILS) | {"expert_dtype": "BF16", "tied": True})),
    "gpt-oss-f16-experts": hf(Spec(**vars(GROUPED) | {"expert_dtype": "F16"})),
    "gpt-oss-near-scales": hf(Spec(**vars(TAILS) | {"scale_spread": 36})),
    "gpt-oss-far-scales": hf(Spec(**vars(TAILS) | {"scale_spread": 60})),
    "gpt-oss-f32": hf(Spec(**vars(TAILS) | {"expert_dtype": "F32", "dense_dtype": "F32"})),
    "gpt-oss-gguf-q8_0": gguf(Spec(**vars(GROUPED) | {"hidden_size": 96}), "q8_0"),
    "gpt-oss-gguf-q8_0-tails": gguf(
        Spec(num_heads=4, num_kv_heads=1, head_dim=8, hidden_size=160, num_experts=3), "q8_0"
    ),
    "gpt-oss-gguf-f16": gguf(TAILS, "f16"),
    "gpt-oss-k-quants": mixed(WIDE, K_TYPES),
    "gpt-oss-old-quants": mixed(WIDE, OLD_TYPES),
    "llama-f32": dense(LLAMA, "hf", "F32"),
    "llama-gguf-f16": dense(LLAMA, "gguf", "F16"),
    "llama-q8_0": dense(BLOCKS, "gguf", "Q8_0"),
    "llama-bf16": dense(BLOCKS, "hf", "BF16"),
    "llama-k-quants": mixed_llama(K_TYPES),
    "llama-old-quants": mixed_llama(OLD_TYPES),
    "gpt2-bf16": dense(GPT2, "hf", "BF16"),
    "gpt2-f32": dense(GPT2_BLOCKS, "hf", "F32"),
    "gpt2-q8_0": dense(GPT2_BLOCKS, "gguf", "Q8_0"),
    "gpt2-gguf-f16": dense(GPT2, "gguf", "F16"),
}


@pytest.mark.parametrize("name", CASES)
def test_every_tap_is_the_cpus(name: str, tmp_path: Path) -> None:
    print(f"seed {SEED}")
    path = CASES[name](tmp_path / "model", np.random.default_rng([SEED, *name.encode()]))
    with (
        gptoss.Model(path, device="vulkan", precision="fp32") as model,
        gptoss.Model(path) as reference,
    ):
        assert (model.precision, model.isa) == ("fp32", "vulkan")
        tokens = random_tokens(model, 40, SEED)
        for kv in ("f32", "f16"):
            pair = [open_generator(m, 64, kv_dtype=kv) for m in (model, reference)]
            start = 0
            # Up to 8 rows are multiplied one by one, more as panels. The window is 8.
            for size in (12, 1, 8, 1, 9) if kv == "f32" else (10, 1):
                chunk = tokens[start : start + size]
                feed_both(pair, chunk, TOLERANCE[kv], f"{name}, kv {kv}, {start}+{size}")
                start += size
            rows = pair[0].kv_range(0)[0], pair[1].kv_range(0)[0]
            for ours, theirs in zip(pair[0].kv(0), pair[1].kv(0), strict=True):
                assert ours.dtype == theirs.dtype
                skipped = max(rows)
                ours, theirs = ours[:, skipped - rows[0] :], theirs[:, skipped - rows[1] :]
                assert_close(ours, theirs, TOLERANCE[kv], "the cache")


ON_MATRICES = [
    "gpt-oss",
    "gpt-oss-original",
    "gpt-oss-near-scales",
    "gpt-oss-far-scales",
    "gpt-oss-gguf-q8_0",
    "gpt-oss-gguf-q8_0-tails",
    "llama-q8_0",
    "llama-bf16",
    "gpt2-f32",
]


@pytest.mark.parametrize("name", ON_MATRICES)
def test_fp16_is_near(name: str, tmp_path: Path) -> None:
    """What is computed on cooperative matrices: all products of weights in tiles, eight tokens a
    matrix, and those of many tokens with other weights, 64 a tile."""
    print(f"seed {SEED}")
    path = CASES[name](tmp_path / "model", np.random.default_rng([SEED, *name.encode()]))
    try:
        model = gptoss.Model(path, device="vulkan", precision="fp16")
    except gptoss.UnsupportedError as error:
        pytest.skip(str(error))
    with model, gptoss.Model(path) as reference:
        assert model.precision == "fp16"
        sizes = {"f16": (70, 1, 8, 9, 2), "f32": (16, 1, 17, 3, 65)}
        tokens = random_tokens(model, 110, SEED)
        for kv in sizes:
            pair = [open_generator(m, 110, kv_dtype=kv) for m in (model, reference)]
            for size in sizes[kv]:
                start = pair[0].position
                chunk = tokens[start : start + size]
                feed_both(pair, chunk, 5e-2, f"{name}, kv {kv}, {start}+{size}")


@pytest.mark.parametrize(
    ("head_dim", "heads", "kv_heads"), [(64, 8, 1), (32, 6, 2), (48, 2, 2), (128, 4, 1)]
)
def test_fp16_attention_of_shapes(head_dim: int, heads: int, kv_heads: int, tmp_path: Path) -> None:
    """Tiles that rows see, see in part and do not see, and a maximum that grows within."""
    print(f"seed {SEED}")
    spec = Spec(
        num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, window=100, max_positions=512
    )
    path = write_model(tmp_path / "m", spec, np.random.default_rng(SEED))
    try:
        model = gptoss.Model(path, device="vulkan", precision="fp16")
    except gptoss.UnsupportedError as error:
        pytest.skip(str(error))
    with model, gptoss.Model(path) as reference:
        tokens = random_tokens(model, 400, SEED)
        pair = [open_generator(m, 400, kv_dtype="f16") for m in (model, reference)]
        for first, end in ((0, 170), (170, 211), (211, 400)):
            feed_both(pair, tokens[first:end], 5e-2, f"{head_dim}, {first}:{end}")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("num_tokens", [1, 70])
def test_nan_of_queries_reaches_the_logits(precision: str, num_tokens: int, tmp_path: Path) -> None:
    """Not every maximum and limit keeps it."""
    print(f"seed {SEED}")
    spec = Spec(num_layers=1, num_heads=2, num_kv_heads=1, head_dim=64)
    tensors = random_tensors(spec, np.random.default_rng(SEED))
    tensors["model.layers.0.self_attn.q_proj.bias"][5] = np.nan
    write_model(tmp_path, spec, np.random.default_rng(SEED))
    write_safetensors(tmp_path / "model.safetensors", tensors)
    try:
        model = gptoss.Model(tmp_path, device="vulkan", precision=precision)
    except gptoss.UnsupportedError as error:
        pytest.skip(str(error))
    with model:
        generator = open_generator(model, 80, kv_dtype="f16")
        with pytest.raises(gptoss.NumericError):
            generator.prefill(random_tokens(model, num_tokens, SEED))


TINY = Llama(num_layers=1, hidden_size=32, num_heads=2, num_kv_heads=1, intermediate_size=32)
TINY_MOE = Spec(num_layers=2, hidden_size=32, intermediate_size=32, num_heads=2, num_kv_heads=1)


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
@pytest.mark.parametrize("sizes", [(64, 65, 63, 64, 1, 1), (254, 1, 1, 1, 1), (260, 2, 9)])
def test_around_tiles_and_parts(family: str, sizes: tuple[int, ...], tmp_path: Path) -> None:
    """64 tokens are a tile of a product."""
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    if family == "llama":
        path = dense_models.write_hf(tmp_path / "m", TINY, rng)
    else:
        path = write_model(tmp_path / "m", TINY_MOE, rng)
    with (
        gptoss.Model(path, device="vulkan", precision="fp32") as model,
        gptoss.Model(path) as reference,
    ):
        pair = [open_generator(m, 300, kv_dtype="f32") for m in (model, reference)]
        tokens = random_tokens(model, sum(sizes), SEED)
        for size in sizes:
            start = pair[0].position
            chunk = tokens[start : start + size]
            feed_both(pair, chunk, TOLERANCE["f32"], f"{start}+{size}")


@pytest.mark.parametrize(
    ("head_dim", "heads", "kv_heads", "kv"),
    [
        (2, 3, 1, "f16"),
        (6, 7, 1, "f32"),
        (8, 8, 1, "f16"),
        (16, 16, 1, "f16"),
        (20, 9, 3, "f16"),
        (64, 8, 1, "f16"),
        (64, 2, 2, "f32"),
        (96, 4, 2, "f16"),
        (128, 4, 1, "f16"),
        (256, 3, 1, "f16"),
        (1024, 2, 1, "f32"),
    ],
)
def test_attention_of_shapes(
    head_dim: int, heads: int, kv_heads: int, kv: str, tmp_path: Path
) -> None:
    """Rows whose keys are one tile of attention, several, or more than it has parts; few rows and
    many."""
    print(f"seed {SEED}")
    spec = Spec(
        hidden_size=32,
        intermediate_size=32,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        window=150,
        max_positions=2048,
    )
    path = write_model(tmp_path / "m", spec, np.random.default_rng(SEED))
    # A tile of attention is 4096 elements, or 512 keys; a row has up to 48 parts.
    length = 500 if head_dim > 512 else 1700 if head_dim in (8, 256) else 1100
    with (
        gptoss.Model(path, device="vulkan", precision="fp32") as model,
        gptoss.Model(path) as reference,
    ):
        pair = [open_generator(m, length, kv_dtype=kv) for m in (model, reference)]
        tokens = random_tokens(model, length, SEED)
        for generator in pair:
            generator.prefill(tokens[: length - 320])
        for size in (260, 32, 1, 1):
            start = pair[0].position
            what = f"{head_dim}, {start}+{size}"
            feed_both(pair, tokens[start : start + size], TOLERANCE[kv], what)


ROUTED: dict[str, Write] = {
    "f32-tails": hf(
        Spec(hidden_size=50, num_experts=5, num_layers=1, expert_dtype="F32", dense_dtype="F32")
    ),
    "bf16-few-columns": hf(Spec(hidden_size=68, num_experts=300, num_layers=1, expert_dtype="F16")),
    "bf16": hf(Spec(num_experts=140, experts_per_token=5, num_layers=1)),
    "q8_0": gguf(Spec(hidden_size=160, num_experts=9, num_layers=1), "q8_0"),
    "k-quants": mixed(WIDE, K_TYPES),
}


@pytest.mark.parametrize("name", ROUTED)
def test_many_rows_are_routed(name: str, tmp_path: Path) -> None:
    """More than 64 share workgroups, unless there are more than 256 experts."""
    print(f"seed {SEED}")
    path = ROUTED[name](tmp_path / "model", np.random.default_rng([SEED, *name.encode()]))
    with (
        gptoss.Model(path, device="vulkan", precision="fp32") as model,
        gptoss.Model(path) as reference,
    ):
        pair = [open_generator(m, 128, kv_dtype="f32") for m in (model, reference)]
        feed_both(pair, random_tokens(model, 101, SEED), TOLERANCE["f32"], name)


def test_prefill_steps_and_again(tmp_path: Path) -> None:
    """Steps and blocks agree within the tolerance; the same calls give the same bits."""
    print(f"seed {SEED}")
    path = write_model(tmp_path / "m", TAILS, np.random.default_rng(SEED))
    with gptoss.Model(path, device="vulkan") as model:
        tokens = random_tokens(model, 20, SEED)

        def run(block_size: int | None = None) -> Any:
            generator = open_generator(model, 20, kv_dtype="f32", block_size=block_size)
            return generator.prefill(tokens, all_logits=True)

        first = run()
        generator = open_generator(model, 20, kv_dtype="f32")
        steps = np.stack([generator.step(token).copy() for token in tokens])
        tolerance = TOLERANCE["f32"] if model.precision == "fp32" else 2e-2
        assert_close(steps, first, tolerance, "steps")
        assert_close(run(7), first, tolerance, "blocks of 7")
        assert_same_bits(run(), first, "again")
    with gptoss.Model(path, device="vulkan") as model:
        assert_same_bits(run(), first, "opened again")


SUBGROUPS_OF_FOUR = """
import sys
from pathlib import Path
import numpy as np
import gptoss
from models import Spec, write_model
from support import open_generator, random_tokens
from vulkan_support import TOLERANCE, feed_both

seed = int(sys.argv[2])
spec = Spec(num_layers=2, vocab_size=16391, hidden_size=64, window=8)
path = write_model(Path(sys.argv[1]), spec, np.random.default_rng(seed))
with gptoss.Model(path) as cpu, gptoss.Model(path, device="vulkan", precision="fp32") as model:
    pair = [open_generator(m, 90, kv_dtype="f32") for m in (model, cpu)]
    tokens = random_tokens(model, 80, seed)
    for first, end in ((0, 70), (70, 71), (71, 80)):
        feed_both(pair, tokens[first:end], TOLERANCE["f32"], f"{first}:{end}")
    print(repr(model))
"""


def test_subgroups_smaller_than_a_block_of_rows(tmp_path: Path) -> None:
    """The software device has subgroups of as many as its vectors; a large vocabulary is multiplied
    by eight rows at once where there are as many invocations to finish them."""
    print(f"seed {SEED}")
    run = subprocess.run(
        [sys.executable, "-c", SUBGROUPS_OF_FOUR, str(tmp_path / "m"), str(SEED)],
        env=os.environ
        | {"LP_NATIVE_VECTOR_WIDTH": "128", "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    if "llvmpipe" in run.stdout:
        assert "128 bits" in run.stdout
