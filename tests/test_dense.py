"""llama and gpt2: one sequence has one set of logits, to the last bit, however it is computed; what
a model without experts says of itself; memory refused on opening.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense_models import Gpt2, Llama, Spec, write_gguf, write_hf, write_types
from gguf_models import BLOCK_TYPES
from support import Array, assert_same_bits, feed, open_generator, random_tokens, step_through

import gptoss
from gptoss import _core

ISAS = [name for name, available in _core.isas() if available]
ROWS = 150
SEED = secrets.randbelow(2**32)
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

# Sizes that leave tails everywhere, in every format.
WIDE = Llama(hidden_size=96, head_dim=32, num_heads=7, num_kv_heads=1, intermediate_size=160)
ODD = Llama(
    num_layers=3,
    hidden_size=50,
    head_dim=6,
    num_heads=9,
    num_kv_heads=3,
    intermediate_size=37,
    vocab_size=33,
    tied=True,
    attention_bias=True,
    mlp_bias=True,
    rope=LLAMA3,
)
SMALL = Gpt2(hidden_size=45, num_heads=5, vocab_size=33, max_positions=ROWS)
BLOCKS = Gpt2(hidden_size=96, num_heads=3, intermediate_size=160, tied=False, max_positions=200)
CASES: dict[str, tuple[Spec, str, str]] = {
    "llama-bf16": (WIDE, "hf", "BF16"),
    "llama-f32": (ODD, "hf", "F32"),
    "llama-q8_0": (WIDE, "gguf", "Q8_0"),
    "llama-gguf-f16": (ODD, "gguf", "F16"),
    "gpt2-bf16": (SMALL, "hf", "BF16"),
    "gpt2-f32": (BLOCKS, "hf", "F32"),
    "gpt2-q8_0": (BLOCKS, "gguf", "Q8_0"),
    "gpt2-gguf-f16": (SMALL, "gguf", "F16"),
}
every_case = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module")
def path_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        spec, kind, dtype = CASES[name]
        if name not in made:
            path, rng = tmp_path_factory.mktemp("dense") / "tiny", np.random.default_rng(SEED)
            write = write_hf if kind == "hf" else write_gguf
            made[name] = write(path.with_suffix(f".{kind}"), spec, rng, dtype)
        return made[name]

    return make


@pytest.fixture(scope="module")
def expected(path_of: Callable[[str], Path]) -> Callable[[str], Array]:
    """All logits by one prefill on one thread."""
    known: dict[str, Array] = {}

    def compute(name: str) -> Array:
        if name not in known:
            with gptoss.Model(path_of(name), threads=1) as model:
                known[name] = run(model)
        return known[name]

    return compute


def run(model: gptoss.Model, **options: Any) -> Array:
    generator = open_generator(model, ROWS, **options)
    return generator.prefill(random_tokens(model, ROWS, SEED), all_logits=True)


PathOf = Callable[[str], Path]
Expected = Callable[[str], Array]


@every_case
def test_calls_and_blocks_of_any_size(name: str, path_of: PathOf, expected: Expected) -> None:
    with gptoss.Model(path_of(name)) as model:
        tokens = random_tokens(model, ROWS, SEED)
        assert_same_bits(step_through(open_generator(model, ROWS), tokens), expected(name), "steps")
        for sizes in ([1, 1, 1, 50], [5, 64, 1, 3, 17], [2, 3, 5, 7, 11, 13, 31]):
            generator = open_generator(model, ROWS)
            assert_same_bits(feed(generator, tokens, sizes), expected(name), f"{sizes=}")
        for block_size in (1, 7, 16, 33, 64, 100):
            assert_same_bits(run(model, block_size=block_size), expected(name), f"{block_size=}")


@every_case
def test_threads_and_instruction_sets(name: str, path_of: PathOf, expected: Expected) -> None:
    for options in [*({"threads": n} for n in (2, 3, 5)), *({"isa": isa} for isa in ISAS)]:
        with gptoss.Model(path_of(name), **options) as model:
            assert_same_bits(run(model), expected(name), f"{options}")
            tokens = random_tokens(model, ROWS, SEED)[:20]
            steps = step_through(open_generator(model, 20), tokens)
            assert_same_bits(steps, expected(name)[:20], f"{options}, steps")


EVERY_TYPE = ("F32", "F16", "BF16", "Q8_0", *BLOCK_TYPES)
LARGE = {
    "llama": Llama(hidden_size=256, intermediate_size=512, num_heads=4, num_kv_heads=2),
    "gpt2": Gpt2(hidden_size=256, num_heads=4, tied=False, max_positions=256),
}


@pytest.mark.parametrize("kinds", [*((kind,) for kind in EVERY_TYPE), EVERY_TYPE], ids="-".join)
@pytest.mark.parametrize("name", LARGE)
def test_matrices_of_any_type(tmp_path: Path, name: str, kinds: tuple[str, ...]) -> None:
    """One type, or one drawn for each matrix: gate and up may differ. The bits are those of the
    weights as the gguf package decodes them."""
    rng = np.random.default_rng(SEED)
    packed, plain = write_types(tmp_path, LARGE[name], rng, lambda _: str(rng.choice(kinds)))
    with gptoss.Model(packed) as model, gptoss.Model(plain) as decoded:
        logits, expected = run(model), run(decoded)
        assert_same_bits(logits, expected, "decoded")
        tokens = random_tokens(model, ROWS, SEED)[:30]
        assert_same_bits(step_through(open_generator(model, 30), tokens), logits[:30], "steps")


@every_case
def test_batch_fork_and_rewind(name: str, path_of: PathOf, expected: Expected) -> None:
    with gptoss.Model(path_of(name)) as model:
        tokens = random_tokens(model, ROWS, SEED)
        parent, other = open_generator(model, ROWS), open_generator(model, ROWS)
        parent.prefill(tokens[:100])
        fork = parent.fork()
        assert_same_bits(fork.prefill(tokens[100:], all_logits=True), expected(name)[100:], "fork")
        fork.rewind(70)
        assert_same_bits(fork.prefill(tokens[70:], all_logits=True), expected(name)[70:], "rewind")
        gptoss.forward([parent, other], [tokens[100:103], tokens[:65]])
        assert_same_bits(np.array(parent.logits), expected(name)[102], "batch")
        assert_same_bits(np.array(other.logits), expected(name)[64], "batch")


@every_case
def test_taps_change_nothing(name: str, path_of: PathOf, expected: Expected) -> None:
    """mlp_output, where it is asked for, takes another way to the residual."""
    with gptoss.Model(path_of(name)) as model:
        generator = open_generator(model, ROWS)
        generator.capture("*")
        tokens = random_tokens(model, ROWS, SEED)
        assert_same_bits(generator.prefill(tokens, all_logits=True), expected(name))
        taps = generator.taps
        layers = model.config.num_layers
        assert len(taps) == 2 + 9 * layers
        assert not any("router" in tap or "expert" in tap or "sink" in tap for tap in taps)
        for layer in range(layers):
            before, after = (
                taps[f"layers.{layer}.{kind}"] for kind in ("attn_residual", "residual")
            )
            assert_same_bits(before + taps[f"layers.{layer}.mlp_output"], after)


def test_config_tells_the_truth(path_of: PathOf) -> None:
    with gptoss.Model(path_of("llama-f32")) as model:
        config = model.config
        assert config.architecture == "llama" and config.rope_scaling == "llama3"
        assert config.attention_bias and config.mlp_bias and config.tied_embeddings
        assert (config.rope_low_frequency_factor, config.rope_high_frequency_factor) == (1.0, 4.0)
        assert (config.rope_factor, config.rope_original_positions) == (8.0, 64)
        assert (config.num_experts, config.experts_per_token, config.sliding_window) == (0, 0, 0)
        assert config.layer_types == ("full_attention",) * 3
        assert (config.rms_norm_eps, config.layer_norm_eps) == (1e-5, 0.0)
        assert not config.rope_neighbours and "llama, 3 layers, 0." in repr(model)
    with gptoss.Model(path_of("llama-gguf-f16")) as model:
        config = model.config
        assert config.rope_scaling == "divisors" and config.rope_neighbours
        assert config.attention_bias and config.mlp_bias and config.tied_embeddings
    with gptoss.Model(path_of("llama-q8_0")) as model:
        config = model.config
        assert (config.head_dim, config.rope_scaling) == (32, "plain")
        assert not (config.attention_bias or config.mlp_bias or config.tied_embeddings)
    for name in ("gpt2-f32", "gpt2-q8_0"):
        with gptoss.Model(path_of(name)) as model:
            config = model.config
            assert config.architecture == "gpt2" and config.rope_scaling == "none"
            assert (config.head_dim, config.intermediate_size, config.num_kv_heads) == (32, 160, 3)
            assert (config.rms_norm_eps, config.layer_norm_eps) == (0.0, 1e-5)
            assert config.rope_theta == 0 and not config.tied_embeddings


def test_what_a_dense_model_cannot(path_of: PathOf) -> None:
    with gptoss.Model(path_of("gpt2-bf16")) as model:
        with pytest.raises(gptoss.UnsupportedError, match="gpt2 family has no experts"):
            model.expert(0, 0)
        with pytest.raises(gptoss.UnsupportedError, match="no experts"):
            model._core.decode_expert(0, 0, "down_bias", np.zeros(45, np.float32))
        with pytest.raises(gptoss.ArgumentError, match=f"are learned, and there are {ROWS} of"):
            gptoss.Generator(model, max_context=ROWS + 1)
        with pytest.raises(gptoss.ArgumentError, match="no activation matches"):
            gptoss.Generator(model).capture("layers.*.router*")


@pytest.mark.parametrize("name", ["llama-bf16", "llama-q8_0", "gpt2-bf16", "gpt2-gguf-f16"])
def test_profile_counts_every_weight(name: str, path_of: PathOf) -> None:
    with gptoss.Model(path_of(name), profile=True) as model:
        generator = open_generator(model, ROWS)
        generator.prefill(random_tokens(model, 9))
        model.reset_profile()
        generator.step(1)
        profile, config = model.profile(), model.config
        infos = [model.tensor_info(tensor) for tensor in model.tensors]
    names = [operation.name for operation in profile]
    assert "mlp_up" in names and not {"route", "expert_gate_up", "expert_down"} & set(names)
    assert profile["mlp_up"].calls == config.num_layers
    assert profile.weight_bytes == sum(read_by_a_step(info, config) for info in infos)
    hidden, queries = config.hidden_size, config.num_heads * config.head_dim
    matrices = 3 if config.architecture == "llama" else 2
    layer = hidden * (2 * queries + 2 * config.num_kv_heads * config.head_dim)
    layer += matrices * hidden * config.intermediate_size
    assert profile.linear_flops == 2 * (config.num_layers * layer + hidden * config.vocab_size)


def read_by_a_step(info: gptoss.TensorInfo, config: gptoss.Config) -> int:
    """Of the tables a row; of an embedding that is the output matrix too, all as well."""
    row_bytes = info.num_bytes // info.element_shape[0]
    if info.name.endswith(("wpe.weight", "position_embd.weight")):
        return row_bytes
    if info.name.endswith(("wte.weight", "embed_tokens.weight", "token_embd.weight")):
        return row_bytes + (info.num_bytes if config.tied_embeddings else 0)
    return info.num_bytes


@pytest.mark.parametrize("name", ["llama-f32", "llama-gguf-f16", "gpt2-bf16", "gpt2-q8_0"])
def test_every_refused_allocation_is_an_exception(name: str, path_of: PathOf) -> None:
    path = path_of(name)

    def work() -> Array:
        with gptoss.Model(path, threads=2, profile=True) as model:
            generator = open_generator(model, 32)
            generator.capture("layers.*.mlp_output")
            return np.array(generator.prefill([1, 2, 3], all_logits=True))

    expected = work()
    for failing in range(1, 10_000):
        _core.fail_allocation(failing)
        try:
            logits = work()
        except gptoss.OutOfMemoryError as error:
            assert str(error)
            continue
        finally:
            counted = _core.fail_allocation(0)
        assert_same_bits(logits, expected)
        if counted < failing:
            break
    assert failing > 20
