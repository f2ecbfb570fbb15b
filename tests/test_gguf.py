"""gpt-oss as GGUF: the same weights as in the Hugging Face layout, within what the formats allow.

Weights that both layouts hold exactly (F32, BF16, MXFP4) give logits that differ by the order of
sums alone: SAME_WEIGHTS, as a part of the largest logit. With Q8_0 and F16 the engine is compared
with the float64 reference on the dequantised weights, by the tolerance of every other layout.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf_models
import numpy as np
import pytest
import reference
from gguf_models import GgufModel, Reader, Weights, convert
from hypothesis import given, note, settings
from hypothesis import strategies as st
from models import Spec, hf_config, random_tensors, write_model
from support import assert_same_bits, feed, open_generator, random_tokens, step_through
from test_reference import assert_traces_agree, engine_trace, reference_trace, specs

import gptoss
from gptoss import write_gguf

SAME_WEIGHTS = 2e-5
DEMO = gptoss.Model("demo").path


@pytest.fixture(scope="module")
def demo_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with dense Q8_0, its tokenizer in it."""
    return convert(DEMO, tmp_path_factory.mktemp("demo-gguf") / "demo.gguf", "q8_0")


@pytest.fixture
def demo_model(demo_gguf: Path) -> Iterator[gptoss.Model]:
    with gptoss.Model(demo_gguf) as model:
        yield model


# ---- the forward pass ----


@pytest.mark.parametrize("dense", ["f32", "bf16"])
def test_demo_agrees_with_its_other_layout(tmp_path: Path, dense: str) -> None:
    path = convert(DEMO, tmp_path / "demo.gguf", dense)
    with gptoss.Model(DEMO) as hf, gptoss.Model(path) as model:
        assert model.config == dataclasses.replace(hf.config)
        tokens = random_tokens(hf, 200)
        expected = open_generator(hf, 200, kv_dtype="f32").prefill(tokens, all_logits=True)
        logits = open_generator(model, 200, kv_dtype="f32").prefill(tokens, all_logits=True)
    assert np.abs(logits - expected).max() < SAME_WEIGHTS * np.abs(expected).max()


def test_demo_with_q8_0_still_speaks(demo_model: gptoss.Model) -> None:
    """Rounding to 8 bits moves logits a little; it must not move them far."""
    with gptoss.Model(DEMO) as hf:
        tokens = hf.tokenizer.encode("Once upon a time there was a little dog.")
        expected = gptoss.Generator(hf, max_context=64).prefill(tokens, all_logits=True)
    logits = gptoss.Generator(demo_model, max_context=64).prefill(tokens, all_logits=True)
    assert 0 < np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()
    text = "".join(
        out.text
        for out in gptoss.Generator(demo_model, max_context=64).generate(
            "Once upon a time", max_tokens=12, sampling=gptoss.Sampling(temperature=0)
        )
    )
    assert len(text) > 12


@st.composite
def gguf_specs(draw: st.DrawFn) -> tuple[Spec, str]:
    """A spec that GGUF has words for, and a dense format that fits its rows."""
    spec = dataclasses.replace(
        draw(specs()), layer_types=None, swiglu_limit=7.0, attention_bias=True, tied=False
    )
    if spec.yarn is not None:
        words = {"truncate": False}
        yarn = {key: value for key, value in spec.yarn.items() if key != "attention_factor"}
        spec = dataclasses.replace(spec, yarn=yarn | words)
    dense = draw(st.sampled_from(["q8_0", "q8_0", "f16", "bf16", "f32"]))
    if dense == "q8_0":
        hidden = -(-spec.hidden_size // 32) * 32
        heads = 16 * spec.num_kv_heads if spec.head_dim % 32 else spec.num_heads
        spec = dataclasses.replace(spec, hidden_size=hidden, num_heads=heads)
    return spec, dense


@settings(max_examples=80)
@given(
    spec_and_dense=gguf_specs(),
    kv_dtype=st.sampled_from(["f32", "f16"]),
    rows=st.integers(1, 50),
    seed=st.integers(0, 2**32 - 1),
)
def test_engine_agrees_with_reference(
    spec_and_dense: tuple[Spec, str], kv_dtype: str, rows: int, seed: int
) -> None:
    spec, dense = spec_and_dense
    assert gguf_models.supports(spec)
    note(f"{dense=} {seed=}")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.gguf"
        gguf_models.write_model(path, spec, np.random.default_rng(seed), dense)
        trace = engine_trace(path, seed, rows, kv_dtype)
        expected = reference_trace(GgufModel(path, hf_config(spec)), trace, kv_dtype)
    assert_traces_agree(trace, expected, kv_dtype)


@pytest.mark.parametrize("seed", range(4))
def test_each_tensor_in_a_format_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    plan = write_gguf.plan_tensors

    def mixed(*arguments: Any) -> list[write_gguf.Tensor]:
        chosen: dict[str, str] = {}
        for tensor in plan(*arguments):
            is_matrix = len(tensor.shape) > 1 and not tensor.name.endswith("bias")
            types = ["F32", "F16", "BF16", *(["Q8_0"] if is_matrix else [])]
            chosen[tensor.name] = str(rng.choice(types)) if tensor.type != "MXFP4" else "MXFP4"
        return [dataclasses.replace(t, type=chosen[t.name]) for t in plan(*arguments)]

    monkeypatch.setattr(write_gguf, "plan_tensors", mixed)
    spec = Spec(num_layers=3)
    path = gguf_models.write_model(tmp_path / "mixed.gguf", spec, rng)
    with gptoss.Model(path, verify=True) as model:
        assert len({model.tensor_info(name).format for name in model.tensors}) == 5
    trace = engine_trace(path, seed, 40, "f32")
    expected = reference_trace(GgufModel(path, hf_config(spec)), trace, "f32")
    assert_traces_agree(trace, expected, "f32")


@pytest.mark.parametrize("experts", ["MXFP4", "BF16"])
def test_same_bits_by_any_route(tmp_path: Path, experts: str) -> None:
    """Prefill, steps, threads and instruction sets."""
    spec = Spec(num_layers=3, hidden_size=96, intermediate_size=160, expert_dtype=experts)
    path = gguf_models.write_model(tmp_path / "m.gguf", spec, np.random.default_rng(3), "q8_0")
    with gptoss.Model(path, threads=1, isa="scalar") as model:
        tokens = random_tokens(model, 70, 1)
        expected = step_through(open_generator(model, 70), tokens)
    isas = [isa for isa, available in gptoss._core.isas() if available]
    for isa in isas:
        for threads in (1, 3):
            with gptoss.Model(path, threads=threads, isa=isa) as model:
                logits = feed(open_generator(model, 70), tokens, [1, 33, 36])
                assert_same_bits(logits, expected, f"{isa}, {threads} threads")


# ---- what is shown of the file ----


@pytest.mark.parametrize("dense", ["q8_0", "bf16", "f16", "f32"])
def test_tensors_and_experts(tmp_path: Path, dense: str) -> None:
    spec = Spec()
    path = gguf_models.write_model(tmp_path / "m.gguf", spec, np.random.default_rng(5), dense)
    reader = Reader(path)
    expected = GgufModel(path, hf_config(spec)).experts(1)
    data = path.read_bytes()
    with gptoss.Model(path) as model:
        assert list(model.tensors) == sorted(reader.tensors)
        for name, values in reader.tensors.items():
            info, array = model.tensor_info(name), model.tensors[name]
            assert (array.shape, array.dtype) == (info.shape, info.dtype)
            assert info.element_shape == values.shape
            assert array.tobytes() == data[info.file_offset :][: info.num_bytes]
            assert not array.flags.writeable
        info = model.tensor_info("token_embd.weight")
        assert info.format == dense.upper()
        assert info.shape == ((97, 2, 34) if dense == "q8_0" else (97, 64))
        assert model.tensors["blk.0.ffn_up_exps.weight"].shape == (4, 64, 2, 17)
        for index in range(spec.num_experts):
            expert = model.expert(1, index)
            assert np.array_equal(expert.gate, expected.gate_up[index, ::2])
            assert np.array_equal(expert.up, expected.gate_up[index, 1::2])
            assert np.array_equal(expert.down, expected.down[index])
            assert np.array_equal(expert.gate_bias, expected.gate_up_bias[index, ::2])
            assert np.array_equal(expert.up_bias, expected.gate_up_bias[index, 1::2])
            assert np.array_equal(expert.down_bias, expected.down_bias[index])
        with pytest.raises(gptoss.UnsupportedError, match=r"blk\.1\.ffn_gate_exps\.weight'\]\[2\]"):
            _ = model.expert(1, 2).gate_up_blocks


def test_configuration(tmp_path: Path) -> None:
    yarn = {
        "rope_type": "yarn",
        "factor": 8.0,
        "beta_fast": 24.0,
        "beta_slow": 0.5,
        "original_max_position_embeddings": 48,
        "truncate": False,
    }
    for spec in (Spec(yarn=yarn, window=5, rms_norm_eps=1e-6), Spec(yarn=None, rope_theta=1e4)):
        directory = write_model(tmp_path / f"{spec.window}", spec, np.random.default_rng(0))
        path = tmp_path / f"{spec.window}.gguf"
        gguf_models.write_model(path, spec, np.random.default_rng(0))
        with gptoss.Model(directory) as hf, gptoss.Model(path) as model:
            assert hf.config == model.config


def test_defaults_of_keys_that_older_converters_leave_out(tmp_path: Path) -> None:
    spec = Spec(yarn=hf_config(Spec())["rope_scaling"])
    config = hf_config(spec)
    values = write_gguf.metadata(config, "old")
    for key in ("yarn_beta_fast", "yarn_beta_slow"):
        del values[f"gpt-oss.rope.scaling.{key}"]
    del values["gpt-oss.attention.value_length"], values["gpt-oss.feed_forward_length"]
    path = rewritten(tmp_path / "old.gguf", values, spec)
    with gptoss.Model(path) as model:
        assert (model.config.rope_beta_fast, model.config.rope_beta_slow) == (32.0, 1.0)
        assert model.config.rope_truncate is False
        assert model.config.vocab_size == spec.vocab_size


def rewritten(path: Path, values: dict[str, tuple[int, Any]], spec: Spec) -> Path:
    """A sound file but for its metadata."""
    weights = Weights(random_tensors(spec, np.random.default_rng(0)))
    tensors = write_gguf.plan_tensors(hf_config(spec), "F32")
    data = write_gguf.header(values, tensors)
    for tensor in tensors:
        data += b"".join(write_gguf.encoded(tensor, weights))
        data += bytes(-len(data) % 32)
    path.write_bytes(data)
    return path


def test_a_directory_with_one_file(tmp_path: Path) -> None:
    spec = Spec()
    gguf_models.write_model(tmp_path / "a.gguf", spec, np.random.default_rng(0))
    with gptoss.Model(tmp_path) as model:
        assert "blk.0.attn_q.weight" in model.tensors
    # Repositories of GGUF files may carry the original's config.json.
    (tmp_path / "config.json").write_text(json.dumps(hf_config(spec)))
    with gptoss.Model(tmp_path) as model:
        assert "blk.0.attn_q.weight" in model.tensors
    (tmp_path / "b.gguf").write_bytes((tmp_path / "a.gguf").read_bytes())
    with pytest.raises(gptoss.FormatError, match=r"2 \.gguf files; give the path of one, as"):
        gptoss.Model(tmp_path)
    with gptoss.Model(tmp_path / "b.gguf", mmap=False) as model:
        assert model.memory()["read"] == (tmp_path / "b.gguf").stat().st_size


def test_a_checkpoint_beside_a_gguf_file_is_preferred(tmp_path: Path) -> None:
    write_model(tmp_path, Spec(), np.random.default_rng(0))
    gguf_models.write_model(tmp_path / "a.gguf", Spec(), np.random.default_rng(0))
    with gptoss.Model(tmp_path) as model:
        assert "lm_head.weight" in model.tensors


def test_without_a_tokenizer_text_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = gguf_models.write_model(tmp_path / "a.gguf", Spec(), np.random.default_rng(0))
    with gptoss.Model(path) as model:
        assert model.tokenizer is None
        generator = gptoss.Generator(model)
        with pytest.raises(gptoss.ArgumentError, match="no vocabulary in the GGUF file"):
            generator.generate("text")
        with pytest.raises(gptoss.UnsupportedError, match="no vocabulary in the GGUF file"):
            gptoss.Chat(model)
        assert len(list(generator.generate([1, 2], max_tokens=3))) == 3


# ---- the writer, by another reader ----


@pytest.mark.parametrize("dense", ["q8_0", "bf16", "f16", "f32"])
def test_another_reader_sees_the_same(tmp_path: Path, dense: str) -> None:
    gguf = pytest.importorskip("gguf")
    spec = Spec(num_layers=1, yarn=None)
    path = gguf_models.write_model(tmp_path / "m.gguf", spec, np.random.default_rng(2), dense)
    ours, theirs = Reader(path), gguf.GGUFReader(path)
    assert {key for key in theirs.fields if not key.startswith("GGUF.")} == set(ours.metadata)
    for key, value in ours.metadata.items():
        assert theirs.fields[key].contents() == value, key
    assert len(theirs.tensors) == len(ours.tensors)
    for tensor in theirs.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert values.shape == ours.tensors[tensor.name].shape
        assert np.array_equal(values, ours.tensors[tensor.name].astype(np.float32)), tensor.name


def test_experts_are_repacked_without_a_change(tmp_path: Path) -> None:
    spec = Spec()
    directory = write_model(tmp_path / "hf", spec, np.random.default_rng(9))
    path = gguf_models.write_model(tmp_path / "m.gguf", spec, np.random.default_rng(9), "bf16")
    expected, converted = reference.Model(directory), GgufModel(path, hf_config(spec))
    for layer in range(spec.num_layers):
        for field in dataclasses.fields(reference.Experts):
            a, b = (getattr(m.experts(layer), field.name) for m in (expected, converted))
            assert np.array_equal(a, b)
    assert np.array_equal(expected["lm_head.weight"], converted["lm_head.weight"])


def test_q8_0_is_within_half_a_step() -> None:
    rng = np.random.default_rng(4)
    values = rng.standard_normal((50, 96), np.float32) * 10.0 ** rng.integers(-3, 3, (50, 1))
    values = values.astype(np.float32)
    values[7] = 0
    packed = write_gguf.pack_q8_0(values)
    decoded = packed["scale"].astype(np.float64)[..., None] * packed["codes"]
    blocks = values.reshape(50, 3, 32)
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    # Half a step, and the rounding of the scale to binary16 (2^-11, or 2^-25 below its range).
    assert (np.abs(decoded - blocks) <= largest * (0.5 / 127 + 2**-11) + 127 * 2**-25).all()
    assert (packed["codes"][7] == 0).all()
