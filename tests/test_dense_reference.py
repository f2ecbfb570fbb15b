"""llama and gpt2 against a float64 reference on configurations that nobody would pick by hand.

Tolerances: tests/test_reference.py explains them.
"""

from __future__ import annotations

import json
import secrets
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import dense_reference
import numpy as np
import pytest
from dense_models import Gpt2, Llama, Spec, write_gguf, write_hf
from hypothesis import given, note, settings
from hypothesis import strategies as st
from support import Array, conditioning, open_generator, random_tokens

import gptoss

TOLERANCE = {"f32": 5e-5, "f16": 4e-3}


@st.composite
def rope_settings(draw: st.DrawFn) -> dict[str, Any] | None:
    kind = draw(st.sampled_from([None, "linear", "llama3", "yarn"]))
    if kind is None:
        return None
    rope: dict[str, Any] = {"rope_type": kind, "factor": draw(st.sampled_from([1.5, 8.0, 32.0]))}
    if kind == "llama3":
        rope["low_freq_factor"] = draw(st.sampled_from([0.5, 1.0]))
        rope["high_freq_factor"] = draw(st.sampled_from([1.5, 4.0]))
        rope["original_max_position_embeddings"] = draw(st.sampled_from([16, 512, 8192]))
    if kind == "yarn":
        choices = {
            "original_max_position_embeddings": [16, 64, 4096],
            "beta_fast": [4.0, 32.0],
            "beta_slow": [0.5, 2.0],
        }
        for key, values in choices.items():
            if draw(st.booleans()):
                rope[key] = draw(st.sampled_from(values))
    return rope


# Of YaRN only config.json tells these.
UNSAID = ({"truncate": False}, {"attention_factor": 1.5}, {"mscale": 0.7, "mscale_all_dim": 1.3})


@st.composite
def llamas(draw: st.DrawFn) -> Llama:
    num_kv_heads = draw(st.integers(1, 3))
    num_heads = num_kv_heads * draw(st.integers(1, 8))
    head_dim = 2 * draw(st.integers(1, 20))
    is_stated = draw(st.booleans())
    return Llama(
        num_layers=draw(st.integers(1, 3)),
        hidden_size=draw(st.integers(2, 100)) if is_stated else num_heads * head_dim,
        intermediate_size=draw(st.integers(1, 160)),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim if is_stated else None,
        vocab_size=draw(st.integers(1, 131)),
        max_positions=draw(st.sampled_from([16, 128, 4096])),
        rope_theta=draw(st.sampled_from([10.0, 10000.0, 500000.0])),
        rope=draw(rope_settings()),
        rope_key=draw(st.sampled_from(["rope_scaling", "rope_parameters"])),
        eps=draw(st.sampled_from([1e-6, 1e-5, 1e-3])),
        tied=draw(st.booleans()),
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
    )


@st.composite
def gpt2s(draw: st.DrawFn) -> Gpt2:
    num_heads = draw(st.integers(1, 7))
    return Gpt2(
        num_layers=draw(st.integers(1, 3)),
        hidden_size=num_heads * draw(st.integers(1, 19)),
        intermediate_size=draw(st.none() | st.integers(1, 160)),
        num_heads=num_heads,
        vocab_size=draw(st.integers(1, 131)),
        max_positions=draw(st.sampled_from([80, 90, 256])),
        eps=draw(st.sampled_from([1e-6, 1e-5, 1e-3])),
        tied=draw(st.booleans()),
        prefix=draw(st.sampled_from(["", "transformer."])),
    )


def compare(path: Path, model: dense_reference.Model, seed: int, rows: int, kv: str) -> None:
    """Every tap and the logits, of a prefill of three quarters and another of the rest."""
    with gptoss.Model(path) as opened:
        tokens = random_tokens(opened, rows, seed)
        generator = open_generator(opened, rows, kv_dtype=kv)
        generator.capture("*", keep="all")
        cut = max(1, rows * 3 // 4)
        logits = [generator.prefill(tokens[:cut], all_logits=True)]
        if cut < rows:
            logits.append(generator.prefill(tokens[cut:], all_logits=True))
        trace: dict[str, Array] = dict(generator.taps) | {"logits": np.concatenate(logits)}
    expected = dense_reference.forward(model, tokens, kv)
    assert trace.keys() == expected.keys()
    tolerance = TOLERANCE[kv] * conditioning(expected, centred=model.config["model_type"] == "gpt2")
    for name, values in expected.items():
        assert trace[name].shape == values.shape, name
        error = np.abs(trace[name] - values).max() / max(1.0, np.abs(values).max())
        assert error < tolerance, f"{name}: {error:.2e}"


@settings(max_examples=60)
@given(
    spec=llamas() | gpt2s(),
    dtype=st.sampled_from(["F32", "F16", "BF16"]),
    rows=st.integers(1, 80),
    kv=st.sampled_from(["f32", "f16"]),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_hugging_face(
    spec: Spec, dtype: str, rows: int, kv: str, seed: int, data: st.DataObject
) -> None:
    note(json.dumps(spec.config()))
    if isinstance(spec, Llama) and (spec.rope or {}).get("rope_type") == "yarn":
        spec = replace(spec, rope=(spec.rope or {}) | data.draw(st.sampled_from(({}, *UNSAID))))
    with tempfile.TemporaryDirectory() as name:
        directory = write_hf(Path(name), spec, np.random.default_rng(seed), dtype)
        compare(directory, dense_reference.Model.read(directory), seed, rows, kv)


@settings(max_examples=60)
@given(
    spec=llamas() | gpt2s(),
    dtype=st.sampled_from(["F32", "F16", "BF16"]),
    rows=st.integers(1, 80),
    kv=st.sampled_from(["f32", "f16"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_gguf(spec: Spec, dtype: str, rows: int, kv: str, seed: int) -> None:
    note(json.dumps(spec.config()))
    with tempfile.TemporaryDirectory() as name:
        path = write_gguf(Path(name) / "tiny.gguf", spec, np.random.default_rng(seed), dtype)
        compare(path, dense_reference.Model.read(path, spec.config()), seed, rows, kv)


@pytest.mark.parametrize(
    "spec",
    [
        Llama(hidden_size=96, num_heads=6, num_kv_heads=3, head_dim=32, intermediate_size=160),
        Llama(hidden_size=64, num_kv_heads=1, tied=True, attention_bias=True, mlp_bias=True),
        Gpt2(hidden_size=96, num_heads=3),
        Gpt2(hidden_size=32, num_heads=1, intermediate_size=64, tied=False),
    ],
)
def test_gguf_q8_0(spec: Spec, tmp_path: Path) -> None:
    seed = secrets.randbelow(2**32)
    print(f"seed {seed}")
    path = write_gguf(tmp_path / "tiny.gguf", spec, np.random.default_rng(seed), "Q8_0")
    compare(path, dense_reference.Model.read(path, spec.config()), seed, 70, "f32")


@pytest.mark.parametrize(
    "spec",
    [
        Llama(hidden_size=50, head_dim=10, num_heads=6, num_kv_heads=3, tied=True),
        Llama(rope={"rope_type": "linear", "factor": 4.0}, attention_bias=True),
        Llama(rope={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}),
        Llama(
            rope={
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        ),
        Gpt2(hidden_size=45, num_heads=5),
    ],
)
def test_both_kinds_of_files_say_the_same(spec: Spec, tmp_path: Path) -> None:
    """To rounding: neighbours that turn together are added in another order."""
    seed = secrets.randbelow(2**32)
    print(f"seed {seed}")
    directory = write_hf(tmp_path / "hf", spec, np.random.default_rng(seed))
    path = write_gguf(tmp_path / "tiny.gguf", spec, np.random.default_rng(seed))
    logits = []
    for model in (gptoss.Model(directory), gptoss.Model(path)):
        generator = open_generator(model, 100, kv_dtype="f32")
        logits.append(generator.prefill(random_tokens(model, 100, seed), all_logits=True))
        generator.close()
    assert np.abs(logits[0] - logits[1]).max() < 5e-5 * np.abs(logits[0]).max()
