"""Low-rank adapters on a Vulkan device against the CPU, at every tap."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import dense_models
import dense_reference
import numpy as np
import pytest
from dense_models import Gpt2, Llama
from models import Spec, write_model
from support import assert_same_bits, open_generator, random_tokens
from test_adapters import write_adapter
from vulkan_support import TOLERANCE, assert_close, difference, feed_both, needs_vulkan

import gptoss

pytestmark = needs_vulkan

SEED = secrets.randbelow(2**32)
Modules = dict[str, tuple[int, int]]

MOE = Spec(num_layers=2, hidden_size=96, num_heads=6, num_kv_heads=2, head_dim=20, vocab_size=101)
LLAMA = Llama(num_layers=2, hidden_size=50, num_heads=5, num_kv_heads=1, intermediate_size=37)
GPT2 = Gpt2(num_layers=2, hidden_size=60, num_heads=5, vocab_size=33)
FAMILIES = ("gpt-oss", "llama", "llama-gguf", "gpt2")


def write_base(family: str, directory: Path, dtype: str = "BF16") -> tuple[Path, Modules]:
    """A model, and every module of it that an adapter may change."""
    rng = np.random.default_rng(SEED)
    if family == "gpt-oss":
        path = write_model(directory / "base", MOE, rng)
        queries, keys, hidden = 6 * 20, 2 * 20, MOE.hidden_size
        shapes = {"q": (queries, hidden), "k": (keys, hidden), "v": (keys, hidden)}
        shapes["o"] = (hidden, queries)
        modules = {
            f"model.layers.{layer}.self_attn.{name}_proj": shape
            for layer in range(MOE.num_layers)
            for name, shape in shapes.items()
        }
        return path, modules | {"lm_head": (MOE.vocab_size, hidden)}
    spec: dense_models.Spec = GPT2 if family == "gpt2" else LLAMA
    path = dense_models.write_hf(directory / "base", spec, rng, dtype)
    prefix = "transformer." if family == "gpt2" else ""
    modules = {
        prefix + name.removesuffix(".weight"): weight.shape
        for name, weight in dense_reference.Model.read(path).weights.items()
        if weight.ndim == 2 and ("_proj" in name or ".c_" in name)
    }
    assert len(modules) == 2 * (4 if family == "gpt2" else 7)
    if family == "llama-gguf":
        path = dense_models.write_gguf(directory / "base.gguf", spec, rng, "F16")
    return path, modules | {"lm_head": (spec.vocab_size, spec.hidden_size)}


def open_both(path: Path, adapters: Any, **options: Any) -> tuple[gptoss.Model, gptoss.Model]:
    options = {"precision": "fp32"} | options
    model = gptoss.Model(path, device="vulkan", adapters=adapters, **options)
    return model, gptoss.Model(path, adapters=adapters)


@pytest.mark.parametrize(("rank", "dtype"), [(1, "F32"), (7, "BF16"), (8, "F16"), (64, "BF16")])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tap_is_the_cpus(family: str, rank: int, dtype: str, tmp_path: Path) -> None:
    """Two adapters, the second of half of the modules and of a rank of its own."""
    print(f"seed {SEED}")
    path, modules = write_base(family, tmp_path, dtype)
    some = dict(list(modules.items())[::2])
    adapters = [
        (write_adapter(tmp_path / "1", modules, rank, dtype, seed=1), 0.7),
        (write_adapter(tmp_path / "2", some, 3, "F32", seed=2), -0.4),
    ]
    model, cpu = open_both(path, adapters)
    with model, cpu:
        assert len(model.adapters) == 2
        tokens = random_tokens(model, 40, SEED)
        pair = [open_generator(each, 64, kv_dtype="f32") for each in (model, cpu)]
        start = 0
        for size in (12, 1, 8, 1, 9):  # up to 8 rows are multiplied one by one
            chunk = tokens[start : start + size]
            feed_both(pair, chunk, TOLERANCE["f32"], f"{start}+{size}")
            start += size


@pytest.mark.parametrize("family", FAMILIES)
def test_each_module_alone(family: str, tmp_path: Path) -> None:
    """Of the last layer, with as many rows as make panels and with one."""
    print(f"seed {SEED}")
    path, modules = write_base(family, tmp_path)
    tokens = list(range(12))
    with gptoss.Model(path, device="vulkan", precision="fp32") as model:
        plain = open_generator(model, 20).prefill(tokens).copy()
    for module, shape in list(modules.items())[len(modules) // 2 :]:
        adapter = write_adapter(tmp_path / module, {module: shape}, 8)
        model, cpu = open_both(path, [adapter])
        with model, cpu:
            pair = [open_generator(each, 20, kv_dtype="f32") for each in (model, cpu)]
            feed_both(pair, tokens, TOLERANCE["f32"], module)
            assert difference(pair[0].logits[None], plain[None]) > 1e-2, module
            feed_both(pair, [5], TOLERANCE["f32"], module)


@pytest.mark.parametrize("family", FAMILIES)
def test_many_rows_and_all_logits(family: str, tmp_path: Path) -> None:
    """Logits come 64 rows at a time; a pass of more than 64 rows runs layer by layer. Taken or
    not, taps change no bit."""
    print(f"seed {SEED}")
    path, modules = write_base(family, tmp_path)
    model, cpu = open_both(path, [write_adapter(tmp_path / "adapter", modules, 5)])
    with model, cpu:
        tokens = random_tokens(model, 70, SEED)
        generators = [open_generator(each, 80, kv_dtype="f32") for each in (model, model, cpu)]
        generators[1].capture("*")
        ours, seen, theirs = (each.prefill(tokens, all_logits=True) for each in generators)
        assert_same_bits(seen, ours, "captured")
        # A router's near tie may have gone the other way from a row on.
        rows = np.abs(ours - theirs).max(axis=1) < TOLERANCE["f32"] * np.abs(theirs).max()
        assert rows.mean() > 0.9
        batch = [open_generator(model, 80, kv_dtype="f32") for _ in range(2)]
        gptoss.forward(batch, [tokens[:50], tokens[:31]])
        assert_close(batch[0].logits[None], ours[49:50], 10 * TOLERANCE["f32"], "batch")
        assert_close(batch[1].logits[None], ours[30:31], 10 * TOLERANCE["f32"], "batch")


def test_scale_zero_is_no_adapter(tmp_path: Path) -> None:
    path, modules = write_base("gpt-oss", tmp_path)
    adapter = write_adapter(tmp_path / "adapter", modules)
    found = []
    for adapters in ([], [(adapter, 0)]):
        with gptoss.Model(path, device="vulkan", adapters=adapters) as model:
            generator = open_generator(model, 40)
            generator.prefill(list(range(20)))
            found.append(generator.step(3).copy())
    assert_same_bits(found[1], found[0])


def test_fp16_is_near(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    path, modules = write_base("llama", tmp_path)
    adapter = write_adapter(tmp_path / "adapter", modules, 8)
    try:
        model, cpu = open_both(path, [adapter], precision="fp16")
    except gptoss.UnsupportedError as error:
        pytest.skip(str(error))
    with model, cpu:
        pair = [open_generator(each, 128, kv_dtype="f32") for each in (model, cpu)]
        tokens = random_tokens(model, 110, SEED)
        for first, end in ((0, 70), (70, 71), (71, 110)):
            feed_both(pair, tokens[first:end], 5e-2, f"{first}:{end}")


def test_profile_counts_terms(tmp_path: Path) -> None:
    path, modules = write_base("llama", tmp_path)
    adapter = write_adapter(tmp_path / "adapter", modules, 8)
    flops = []
    for adapters in ([], [adapter]):
        with gptoss.Model(path, device="vulkan", adapters=adapters, profile=True) as model:
            open_generator(model, 20).prefill([1, 2, 3], all_logits=True)
            flops.append(model.profile().flops)
    assert flops[1] - flops[0] == 2 * 3 * 8 * sum(sum(shape) for shape in modules.values())
