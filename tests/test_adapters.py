"""Low-rank adapters: against merged weights in float64, the same bits however they are computed,
and what their files may have wrong."""

from __future__ import annotations

import io
import json
import math
import secrets
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dense_models
import dense_reference
import numpy as np
import pytest
import reference
from gguf_models import write_model as write_gguf_model
from models import DTYPES, Spec, safetensors_header, write_model, write_safetensors
from support import assert_same_bits, feed, open_generator, random_tokens, step_through

import gptoss
from gptoss import _core
from gptoss.cli import main, options

SEED = secrets.randbelow(2**32)
SPEC = Spec(num_layers=2, num_heads=6, num_kv_heads=3, head_dim=20, vocab_size=101)
QUERIES, KEYS, HIDDEN = 120, 60, 64
SHAPES = {  # outputs, inputs
    "self_attn.q_proj": (QUERIES, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, QUERIES),
}
MODULES = {f"model.layers.{i}.{name}": shape for i in range(2) for name, shape in SHAPES.items()}
MODULES["lm_head"] = (SPEC.vocab_size, HIDDEN)


@pytest.fixture(scope="module")
def plain(directory: Path) -> Iterator[gptoss.Model]:
    with gptoss.Model(directory) as opened:
        yield opened


def write_adapter(
    directory: Path,
    modules: dict[str, tuple[int, int]],
    rank: int = 8,
    dtype: str = "F32",
    ranks: dict[str, int] | None = None,
    seed: int = 0,
    **config: Any,
) -> Path:
    """An adapter that PEFT could have saved; its updates are as large as the weights."""
    rng = np.random.default_rng((SEED, seed))
    tensors: dict[str, Any] = {}
    for module, (outputs, inputs) in modules.items():
        r = (ranks or {}).get(module, rank)
        for name, shape, std in (("A", (r, inputs), 1 / math.sqrt(inputs)), ("B", (outputs, r), 1)):
            values = rng.standard_normal(shape, np.float32) * np.float32(std / math.sqrt(r))
            tensors[f"base_model.model.{module}.lora_{name}.weight"] = values.astype(DTYPES[dtype])
    directory.mkdir(parents=True, exist_ok=True)
    targets = sorted({module.rpartition(".")[2] for module in modules})
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": targets,
    }
    (directory / "adapter_config.json").write_text(json.dumps(settings | config))
    write_safetensors(directory / "adapter_model.safetensors", tensors)
    return directory


def update(directory: Path, module: str, factor: float) -> np.ndarray:
    """factor * B A in float64."""
    tensors = reference.read_safetensors(directory / "adapter_model.safetensors")
    a, b = (
        tensors[f"base_model.model.{module}.lora_{name}.weight"].astype(np.float64) for name in "AB"
    )
    return factor * (b @ a)


def reference_logits(
    directory: Path, tokens: list[int], updates: dict[str, np.ndarray]
) -> np.ndarray:
    model = reference.Model(directory)
    for module, change in updates.items():
        model._stored[module + ".weight"] = model[module + ".weight"] + change
    return reference.forward(model, tokens, kv_dtype="f32")["logits"]


def logits_of(model: gptoss.Model, tokens: list[int], **options: Any) -> np.ndarray:
    return open_generator(model, len(tokens), **options).prefill(tokens, all_logits=True)


def assert_near(found: np.ndarray, expected: np.ndarray) -> None:
    """A route that is a near tie may go the other way in a few rows."""
    scale = np.abs(expected).max()
    rows = np.abs(found - expected).max(axis=1) < 2e-4 * scale
    assert rows.mean() > 0.9, f"{rows.mean():.0%} of the rows agree"


# ---- numbers ----


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("rank", [1, 8, 17])
def test_against_merged_weights(
    directory: Path, plain: gptoss.Model, tmp_path: Path, dtype: str, rank: int
) -> None:
    tokens = random_tokens(plain, 40, SEED)
    write_adapter(tmp_path, MODULES, rank, dtype, lora_alpha=3 * rank)
    updates = {module: update(tmp_path, module, 0.5 * 3) for module in MODULES}
    with gptoss.Model(directory, adapters=[(tmp_path, 0.5)]) as model:
        assert set(model.adapters[0].modules.values()) == {1.5}
        found = logits_of(model, tokens, kv_dtype="f32")
    assert_near(found, reference_logits(directory, tokens, updates))
    unchanged = logits_of(plain, tokens, kv_dtype="f32")
    assert np.abs(found - unchanged).max() > 0.1 * np.abs(unchanged).max()


@pytest.mark.parametrize("module", MODULES)
def test_each_module_alone(
    directory: Path, plain: gptoss.Model, tmp_path: Path, module: str
) -> None:
    tokens = random_tokens(plain, 20, SEED)
    write_adapter(tmp_path, {module: MODULES[module]})
    with gptoss.Model(directory, adapters=[tmp_path]) as model:
        found = logits_of(model, tokens, kv_dtype="f32")
    expected = reference_logits(directory, tokens, {module: update(tmp_path, module, 1.0)})
    assert_near(found, expected)
    assert not np.array_equal(found, logits_of(plain, tokens, kv_dtype="f32"))


def test_patterns_and_rslora(directory: Path, plain: gptoss.Model, tmp_path: Path) -> None:
    """The first pattern that fits the end of a name counts, "." for any character."""
    ranks = {module: 3 if "q_proj" in module else 8 for module in MODULES}
    ranks["model.layers.1.self_attn.v_proj"] = 5
    write_adapter(
        tmp_path,
        MODULES,
        ranks=ranks,
        lora_alpha=4,
        use_rslora=True,
        rank_pattern={"q_proj": 3, r"layers\.1\.self_attn\.v_proj": 5},
        alpha_pattern={"model.layers.0.self_attn.k_proj": 16, r".*\.k_proj": 2},
    )
    alphas = dict.fromkeys(MODULES, 4.0)
    alphas["model.layers.0.self_attn.k_proj"], alphas["model.layers.1.self_attn.k_proj"] = 16, 2
    factors = {module: alphas[module] / math.sqrt(ranks[module]) for module in MODULES}
    tokens = random_tokens(plain, 30, SEED)
    with gptoss.Model(directory, adapters=[tmp_path]) as model:
        assert model.adapters[0].modules == pytest.approx(factors)
        found = logits_of(model, tokens, kv_dtype="f32")
    updates = {module: update(tmp_path, module, factors[module]) for module in MODULES}
    assert_near(found, reference_logits(directory, tokens, updates))


def test_several_adapters_add_up(directory: Path, plain: gptoss.Model, tmp_path: Path) -> None:
    some = {module: shape for module, shape in MODULES.items() if "layers.0" in module}
    first = write_adapter(tmp_path / "1", MODULES, 4, seed=1)
    second = write_adapter(tmp_path / "2", some, 2, "BF16", seed=2)
    updates = {module: update(first, module, 0.7) for module in MODULES}
    for module in some:
        updates[module] = updates[module] + update(second, module, -0.4)
    tokens = random_tokens(plain, 30, SEED)
    with gptoss.Model(directory, adapters=[(first, 0.7), (second, -0.4)]) as model:
        found = logits_of(model, tokens, kv_dtype="f32")
        mapped = model.memory()["mapped"] - plain.memory()["mapped"]
    files = [path / "adapter_model.safetensors" for path in (first, second)]
    assert mapped == sum(file.stat().st_size for file in files)
    assert_near(found, reference_logits(directory, tokens, updates))


def lane_dot(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    """weights (outputs, inputs) times x (tokens, inputs): the float32 dot product of
    docs/numerics.md for unscaled layouts. A fused multiply-add of float32 is computed exactly."""
    weights, x = weights.astype(np.longdouble), x.astype(np.longdouble)
    lanes = np.zeros((len(x), len(weights), 16), np.float32)
    for i in range(weights.shape[1]):
        product = x[:, None, i] * weights[None, :, i]
        lanes[..., i % 16] = (product + lanes[..., i % 16]).astype(np.float32)
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
    return lanes[..., 0]


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_the_order_of_the_sums(
    directory: Path, plain: gptoss.Model, tmp_path: Path, dtype: str
) -> None:
    """fma(factor, B (A x), W x + b), adapter by adapter, to the bit."""
    module = "model.layers.0.self_attn.v_proj"
    adapters = [
        (write_adapter(tmp_path / str(i), {module: MODULES[module]}, 5 + i, dtype, seed=i), scale)
        for i, scale in enumerate((0.3, 1.7))
    ]
    tokens = random_tokens(plain, 30, SEED)
    with gptoss.Model(directory, adapters=adapters) as model:
        taps = []
        for each in (plain, model):
            generator = gptoss.Generator(each)
            generator.capture("layers.0.attn_norm", "layers.0.v")
            generator.prefill(tokens)
            taps.append((generator.taps["layers.0.attn_norm"], generator.taps["layers.0.v"]))
    (normed, values), (same, found) = taps
    assert_same_bits(normed, same)
    expected = values.reshape(len(tokens), -1)
    for path, scale in adapters:
        tensors = reference.read_safetensors(path / "adapter_model.safetensors")
        a, b = (tensors[f"base_model.model.{module}.lora_{name}.weight"] for name in "AB")
        added = lane_dot(b, lane_dot(a, normed)).astype(np.longdouble)
        expected = (np.longdouble(np.float32(scale)) * added + expected).astype(np.float32)
    assert_same_bits(found.reshape(len(tokens), -1), expected)


def test_scale_zero_is_no_adapter(directory: Path, plain: gptoss.Model, tmp_path: Path) -> None:
    write_adapter(tmp_path, MODULES)
    tokens = random_tokens(plain, 40, SEED)
    with gptoss.Model(directory, adapters=[(tmp_path, 0)]) as model:
        np.testing.assert_array_equal(logits_of(model, tokens), logits_of(plain, tokens))


# ---- the same bits ----


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter"), MODULES, 11, "BF16")


@pytest.mark.parametrize("isa", [name for name, available in _core.isas() if available])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_bits(directory: Path, adapter: Path, isa: str, threads: int) -> None:
    with gptoss.Model(directory, adapters=[adapter]) as model:
        tokens = random_tokens(model, 70, SEED)
        whole = logits_of(model, tokens)
    with gptoss.Model(directory, isa=isa, threads=threads, adapters=[adapter]) as model:
        assert_same_bits(logits_of(model, tokens, block_size=13), whole, "blocks")
        assert_same_bits(step_through(open_generator(model, 70), tokens), whole, "steps")
        assert_same_bits(feed(open_generator(model, 70), tokens, [3, 1, 9, 30]), whole, "calls")
        generators = [gptoss.Generator(model) for _ in range(2)]
        gptoss.forward(generators, [tokens[:50], tokens[:31]])
        assert_same_bits(generators[0].logits, whole[49], "batch")
        assert_same_bits(generators[1].logits, whole[30], "batch")


def test_mmap_and_profile_are_the_same_bits(directory: Path, adapter: Path) -> None:
    with gptoss.Model(directory, adapters=[adapter]) as model:
        tokens = random_tokens(model, 20, SEED)
        whole = logits_of(model, tokens)
    with gptoss.Model(directory, adapters=[adapter], mmap=False, profile=True) as model:
        assert_same_bits(logits_of(model, tokens), whole)
        assert model.memory()["mapped"] == 0
        more = model.profile()
    with gptoss.Model(directory, profile=True) as model:
        logits_of(model, tokens)
        less = model.profile()
    sizes = [11 * (outputs + inputs) for outputs, inputs in MODULES.values()]
    assert more.flops - less.flops == 2 * len(tokens) * sum(sizes)
    # Of experts those are read that were chosen, which the adapter changes.
    dense_bytes = [
        sum(op.weight_bytes for op in profile if not op.name.startswith("expert"))
        for profile in (more.operations, less.operations)
    ]
    assert dense_bytes[0] - dense_bytes[1] == 2 * sum(sizes)


def test_other_layouts(adapter: Path, tmp_path: Path) -> None:
    """openai's fused projections, and GGUF's names."""
    spec = replace(SPEC, num_heads=4, num_kv_heads=2, head_dim=32)
    shapes = {name: (128 if "q_" in name else 64, 64) for name in SHAPES}
    shapes["self_attn.o_proj"] = (64, 128)
    pairs = [(i, name, shape) for i in range(2) for name, shape in shapes.items()]
    modules = {f"model.layers.{i}.{name}": shape for i, name, shape in pairs}
    write_adapter(tmp_path / "adapter", modules)
    paths = [
        write_model(tmp_path / layout, spec, np.random.default_rng(0), layout)
        for layout in ("hf", "original")
    ]
    paths.append(write_gguf_model(tmp_path / "f32.gguf", spec, np.random.default_rng(0), "f32"))
    found = []
    for path in paths:
        with gptoss.Model(path, adapters=[tmp_path / "adapter"]) as model:
            found.append(logits_of(model, random_tokens(model, 30, SEED), kv_dtype="f32"))
    assert_same_bits(found[1], found[0])
    assert_near(found[2], found[0])


# ---- dense families ----


def dense_logits(
    model: dense_reference.Model, tokens: list[int], updates: dict[str, np.ndarray]
) -> np.ndarray:
    weights = dict(model.weights)
    for module, change in updates.items():
        name = module.removeprefix("transformer.") + ".weight"
        weights[name] = weights[name] + change
    return dense_reference.forward(replace(model, weights=weights), tokens)["logits"]


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_dense_families(tmp_path: Path, family: str, dtype: str) -> None:
    """gpt2's c_attn is queries, keys and values in one."""
    spec = dense_models.Llama() if family == "llama" else dense_models.Gpt2()
    base = dense_models.write_hf(tmp_path, spec, np.random.default_rng(SEED), "F32")
    reference_model = dense_reference.Model.read(base)
    prefix = "" if family == "llama" else "transformer."
    modules = {
        prefix + name.removesuffix(".weight"): weight.shape
        for name, weight in reference_model.weights.items()
        if weight.ndim == 2 and ("_proj" in name or ".c_" in name)
    }
    assert len(modules) == spec.num_layers * (7 if family == "llama" else 4)
    adapter = write_adapter(tmp_path / "adapter", modules, 6, dtype)
    with gptoss.Model(base, adapters=[(adapter, 0.8)]) as model:
        tokens = random_tokens(model, 40, SEED)
        found = logits_of(model, tokens, kv_dtype="f32")
        steps = step_through(open_generator(model, 40, kv_dtype="f32"), tokens)
    assert_same_bits(steps, found)
    updates = {module: update(adapter, module, 0.8) for module in modules}
    expected = dense_logits(reference_model, tokens, updates)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize(
    "spec",
    [
        dense_models.Llama(),
        dense_models.Llama(num_heads=6, num_kv_heads=3, head_dim=10, attention_bias=True),
        dense_models.Llama(num_heads=5, num_kv_heads=1, head_dim=2),
        dense_models.Gpt2(),
    ],
)
def test_gguf_of_dense_families(tmp_path: Path, spec: dense_models.Spec, dtype: str) -> None:
    """The adapter of the Hugging Face model: GGUF has the rows of llama's queries and keys in
    another order, which shows nowhere else. At position 0 nothing turns, so that bits agree."""
    base = dense_models.write_hf(tmp_path / "hf", spec, np.random.default_rng(SEED))
    path = dense_models.write_gguf(tmp_path / "x.gguf", spec, np.random.default_rng(SEED))
    weights = dense_reference.Model.read(base).weights
    prefix = "" if isinstance(spec, dense_models.Llama) else "transformer."
    modules = {
        prefix + name.removesuffix(".weight"): weight.shape
        for name, weight in weights.items()
        if weight.ndim == 2 and ("_proj" in name or ".c_" in name)
    }
    adapter = write_adapter(tmp_path / "adapter", modules, 6, dtype)
    logits, taps = [], []
    for each in (base, path):
        with gptoss.Model(each, adapters=[(adapter, 0.8)]) as model:
            tokens = random_tokens(model, 40, SEED)
            logits.append(logits_of(model, tokens, kv_dtype="f32"))
            generator = gptoss.Generator(model)
            generator.capture("layers.0.[qkv]")
            generator.step(tokens[0])
            taps.append({name: np.array(tap) for name, tap in generator.taps.items()})
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-4 * np.abs(logits[0]).max())
    for name, tap in taps[0].items():
        if prefix == "" and name != "layers.0.v":
            tap = tap.reshape(*tap.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(tap.shape)
        assert_same_bits(taps[1][name], tap, name)


def test_every_allocation_refused_with_rows_in_another_order(tmp_path: Path) -> None:
    spec = dense_models.Llama()
    path = dense_models.write_gguf(tmp_path / "x.gguf", spec, np.random.default_rng(0))
    names = [f"model.layers.{i}.self_attn.{name}_proj" for i in range(2) for name in "qo"]
    adapter = write_adapter(tmp_path, {name: (64, 64) for name in names})
    with gptoss.Model(path) as plain:
        heap = plain.memory()["heap"]
    for n in range(1, 1000):
        _core.fail_allocation(n)
        try:
            model = gptoss.Model(path, threads=1, adapters=[adapter])
        except gptoss.OutOfMemoryError as error:
            assert str(error)
            continue
        finally:
            _core.fail_allocation(0)
        with model:
            assert model.memory()["heap"] > heap + 2 * 64 * 8 * 4  # the copies
        break
    assert 10 < n < 999


# ---- refusals ----

QUERY = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("config", "kind", "words"),
    [
        ({"use_dora": True}, gptoss.UnsupportedError, "use_dora: true is not supported"),
        ({"modules_to_save": ["lm_head"]}, gptoss.UnsupportedError, "modules_to_save"),
        ({"bias": "all"}, gptoss.UnsupportedError, 'bias: "all" is not supported, only "none"'),
        ({"lora_bias": True}, gptoss.UnsupportedError, "lora_bias"),
        ({"peft_type": "IA3"}, gptoss.UnsupportedError, "peft_type"),
        ({"peft_type": None}, gptoss.UnsupportedError, "peft_type"),
        ({"target_parameters": ["mlp.experts"]}, gptoss.UnsupportedError, "target_parameters"),
        ({"layer_replication": [[0, 1]]}, gptoss.UnsupportedError, "layer_replication"),
        ({"r": 9}, gptoss.FormatError, "expected rank 9"),
        ({"r": 0}, gptoss.FormatError, "r: expected a number above 0, found 0"),
        ({"r": "8"}, gptoss.FormatError, "r: expected a number"),
        ({"lora_alpha": None}, gptoss.FormatError, "lora_alpha"),
        ({"lora_alpha": float("nan")}, gptoss.FormatError, "lora_alpha"),
        ({"lora_alpha": 1e300}, gptoss.ArgumentError, "beyond float32"),
        ({"use_rslora": 3}, gptoss.FormatError, "use_rslora"),
        ({"rank_pattern": [1]}, gptoss.FormatError, "rank_pattern"),
        ({"rank_pattern": {"q_proj": 5}}, gptoss.FormatError, "expected rank 5"),
        ({"alpha_pattern": {"(": 5}}, gptoss.FormatError, "regular expressions"),
        ({"alpha_pattern": {"(a+)+x": 5}}, gptoss.FormatError, "repetitions"),
        ({"alpha_pattern": {"a*.*.*x": 5}}, gptoss.FormatError, "repetitions"),
        ({"alpha_pattern": {"q_proj": -1}}, gptoss.FormatError, "alpha_pattern.q_proj"),
    ],
)
def test_configurations_that_are_refused(
    directory: Path, tmp_path: Path, config: dict[str, Any], kind: type, words: str
) -> None:
    write_adapter(tmp_path, {QUERY: MODULES[QUERY]}, **config)
    with pytest.raises(kind) as caught:
        gptoss.Model(directory, adapters=[tmp_path])
    assert words in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        ("model.layers.0.mlp.router", (4, 64)),
        ("model.layers.0.mlp.experts", (64, 64)),
        ("model.layers.0.mlp.experts.base_layer", (64, 64)),
        ("model.layers.2.self_attn.q_proj", (120, 64)),
        ("model.layers.-1.self_attn.q_proj", (120, 64)),
        ("model.layers.99999999999999999999.self_attn.q_proj", (120, 64)),
        ("model.layers.0.self_attn.q_proj.more", (120, 64)),
        ("model.layers.0self_attn.q_proj", (120, 64)),
        ("model.layers.", (120, 64)),
        ("model.embed_tokens", (101, 64)),
        ("transformer.h.0.attn.c_attn", (240, 64)),
    ],
)
def test_modules_that_are_refused(
    directory: Path, tmp_path: Path, module: str, shape: tuple[int, int]
) -> None:
    write_adapter(tmp_path, {QUERY: MODULES[QUERY], module: shape})
    with pytest.raises(gptoss.UnsupportedError) as caught:
        gptoss.Model(directory, adapters=[tmp_path])
    assert f"module '{module}'" in str(caught.value) and "q_proj, k_proj" in str(caught.value)
    assert caught.value.tensor == module


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"A": (8, 65)}, "F32, F16 or BF16 of [rank, 64], found F32 of [8, 65]"),
        ({"B": (119, 8)}, "of [120, 8], found F32 of [119, 8]"),
        ({"B": (120, 7)}, "of [120, 8], found F32 of [120, 7]"),
        ({"A": None}, "lora_A.weight': expected F32, F16 or BF16 of [rank, 64], found nothing"),
        ({"B": None}, "lora_B.weight': expected F32, F16 or BF16 of [120, 8], found nothing"),
        ({"A": (8, 64, 1)}, "expected two sizes"),
        ({"magnitude": (120,)}, "is not supported"),
    ],
)
def test_shapes_that_do_not_fit(
    directory: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    write_adapter(tmp_path, {QUERY: MODULES[QUERY]})
    shapes = {"A": (8, 64), "B": (120, 8)} | change
    tensors = {
        f"base_model.model.{QUERY}.lora_{name}.weight": np.zeros(shape, np.float32)
        for name, shape in shapes.items()
        if shape is not None
    }
    write_safetensors(tmp_path / "adapter_model.safetensors", tensors)
    with pytest.raises(gptoss.Error) as caught:
        gptoss.Model(directory, adapters=[tmp_path])
    assert words in str(caught.value)
    assert isinstance(caught.value, gptoss.FormatError | gptoss.UnsupportedError)


def test_dtypes_that_do_not_fit(directory: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path, {QUERY: MODULES[QUERY]})
    tensors = {
        f"base_model.model.{QUERY}.lora_A.weight": np.zeros((8, 64), np.uint8),
        f"base_model.model.{QUERY}.lora_B.weight": np.zeros((120, 8), np.float32),
    }
    write_safetensors(tmp_path / "adapter_model.safetensors", tensors)
    with pytest.raises(gptoss.FormatError, match=r"found U8 of \[8, 64\]"):
        gptoss.Model(directory, adapters=[tmp_path])


def test_a_name_that_stands_twice(directory: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path, {QUERY: MODULES[QUERY]})
    file = tmp_path / "adapter_model.safetensors"
    tensors = reference.read_safetensors(file)
    name_a, name_b = tensors
    extra = {"base_model.model.X" + name_a[len("base_model.model.X") :]: tensors[name_a]}
    header = json.dumps(safetensors_header(tensors | extra)).replace(next(iter(extra)), name_a)
    write_safetensors(file, tensors | extra, header.encode())
    with pytest.raises(gptoss.FormatError, match="one tensor of this name"):
        gptoss.Model(directory, adapters=[tmp_path])
    assert name_b in header


@pytest.mark.parametrize(
    ("adapters", "kind", "words"),
    [
        ("x", gptoss.ArgumentError, "must be a list"),
        (3, gptoss.ArgumentError, "must be a list"),
        ([3], gptoss.ArgumentError, "a directory"),
        ([("x", "y")], gptoss.ArgumentError, "not a number"),
        ([("x", math.nan)], gptoss.ArgumentError, "not a number"),
        ([("x", 1, 2)], gptoss.ArgumentError, "a directory"),
        (["no-such-directory"], gptoss.FileError, "there is no adapter_config.json"),
    ],
)
def test_arguments_that_are_refused(directory: Path, adapters: Any, kind: type, words: str) -> None:
    with pytest.raises(kind) as caught:
        gptoss.Model(directory, adapters=adapters)
    assert words in str(caught.value)


def test_missing_files(directory: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path, {QUERY: MODULES[QUERY]})
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(gptoss.FileError, match="safe_serialization=True"):
        gptoss.Model(directory, adapters=[tmp_path])
    write_safetensors(tmp_path / "adapter_model.safetensors", {})
    with pytest.raises(gptoss.FormatError, match="no tensors"):
        gptoss.Model(directory, adapters=[tmp_path])
    (tmp_path / "adapter_config.json").write_text("[1]")
    with pytest.raises(gptoss.FormatError, match="expected an object"):
        gptoss.Model(directory, adapters=[tmp_path])


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_damaged_files(directory: Path, tmp_path: Path, file: str) -> None:
    """Cut off, or with bytes of the first kilobytes changed: an exception of gptoss, or a model."""
    rng = np.random.default_rng(SEED)
    write_adapter(tmp_path, {QUERY: MODULES[QUERY]})
    data = (tmp_path / file).read_bytes()
    num_refused = 0
    for attempt in range(300):
        damaged = bytearray(data)
        if attempt % 3 == 0:
            damaged = damaged[: rng.integers(0, len(data))]
        else:
            for place in rng.integers(0, min(len(data), 500), rng.integers(1, 5)):
                damaged[place] = rng.integers(0, 256)
        (tmp_path / file).write_bytes(damaged)
        try:
            gptoss.Model(directory, adapters=[tmp_path]).close()
        except gptoss.Error as error:
            assert str(tmp_path) in str(error)
            num_refused += 1
    assert num_refused > 150


def test_every_allocation_refused(directory: Path, adapter: Path) -> None:
    """Opening and computing: OutOfMemoryError each time, then success."""
    refused, n = 0, 1
    while True:
        _core.fail_allocation(n)
        try:
            with gptoss.Model(directory, threads=1, adapters=[adapter]) as model:
                gptoss.Generator(model).prefill([1, 2, 3])
            break
        except gptoss.OutOfMemoryError:
            refused += 1
        finally:
            _core.fail_allocation(0)
        n += 1
    assert refused > 20


# ---- the command line ----


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_option() -> None:
    given = ["a", "b=0.5", "c=d", "e=f=-2", "g="]
    expected = [("a", 1.0), ("b", 0.5), ("c=d", 1.0), ("e=f", -2.0), ("g=", 1.0)]
    assert options.adapters(given) == expected
    assert options.adapters(None) == []


@pytest.mark.parametrize("verb", ["generate", "perplexity", "chat"])
def test_verbs_take_adapters(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    demo: gptoss.Model,
    tmp_path: Path,
    verb: str,
) -> None:
    write_adapter(tmp_path, {"lm_head": demo.tensors["lm_head.weight"].shape})
    (tmp_path / "text").write_text("Once upon a time there was a small cat. " * 20)

    def answer(*adapter: str) -> str:
        text = io.TextIOWrapper(io.BytesIO(b"Hello"), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", text)
        arguments = {
            "generate": ["Once upon a time", "--temperature", "0", "--max-tokens", "12"],
            "perplexity": [tmp_path / "text", "--context", "64"],
            "chat": ["--temperature", "0", "--max-tokens", "12"],
        }[verb]
        code, out, err = run(capsys, verb, *arguments, *adapter)
        assert code == 0, err
        return out

    base = answer()
    assert answer("--adapter", f"{tmp_path}=0") == base
    assert answer("--adapter", f"{tmp_path}=1000") != base  # it drowns what the model says
    code, _, err = run(capsys, "generate", "x", "--adapter", "nowhere=2")
    assert code == 1 and "nowhere/adapter_config.json: there is no" in err
