"""The engine against a float64 reference on configurations that nobody would pick by hand.

Sums of float32 values differ from float64 ones by about 1e-7 of the terms' size times the square
root of their number; softmax, norms and a few layers multiply that. Every activation must lie
within TOLERANCE of its reference, as a part of the largest reference value of that activation, or
more where a norm meets a row that nearly cancels (support.conditioning). With a binary16 cache a
key or value that lies at the middle between two binary16 numbers may round the other way, by 2^-11
of itself.

Routes: where the engine's expert differs from the reference's the two logits must be a near tie
(ROUTE_MARGIN); the reference is then made to follow the engine's choice, so that everything behind
it is still compared.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import event, given, note, settings
from hypothesis import strategies as st
from models import (
    LAYOUTS,
    Spec,
    hf_config,
    random_tensors,
    supports,
    write_model,
    write_safetensors,
)
from support import Array, conditioning, open_generator, random_tokens

import gptoss

TOLERANCE = {"f32": 5e-5, "f16": 4e-3}
ROUTE_MARGIN = {"f32": 1e-4, "f16": 2e-2}


@st.composite
def yarn_settings(draw: st.DrawFn) -> dict[str, Any]:
    beta_slow = draw(st.sampled_from([0.5, 1.0, 2.0]))
    yarn: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": draw(st.sampled_from([1.0, 2.0, 8.0, 32.0, 40.5])),
        "beta_fast": draw(st.sampled_from([4.0, 32.0])),
        "beta_slow": beta_slow,
        "original_max_position_embeddings": draw(st.sampled_from([4, 16, 512, 4096])),
    }
    truncate = draw(st.sampled_from([None, False, True]))
    if truncate is not None:
        yarn["truncate"] = truncate
    if draw(st.integers(0, 3)) == 0:
        yarn["attention_factor"] = draw(st.sampled_from([0.5, 1.0, 1.25]))
    return yarn


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    expert_dtype = draw(st.sampled_from(["MXFP4", "MXFP4", "MXFP4", "BF16", "F16", "F32"]))
    if expert_dtype == "MXFP4":
        hidden, intermediate = 32 * draw(st.integers(1, 6)), 32 * draw(st.integers(1, 6))
    else:
        hidden, intermediate = draw(st.integers(2, 160)), draw(st.integers(1, 160))
    num_layers = draw(st.integers(1, 3))
    num_kv_heads = draw(st.integers(1, 3))
    num_experts = draw(st.integers(1, 9))
    kinds = st.sampled_from(["sliding_attention", "full_attention"])
    return Spec(
        num_layers=num_layers,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_heads=num_kv_heads * draw(st.integers(1, 5)),
        num_kv_heads=num_kv_heads,
        head_dim=2 * draw(st.integers(1, 40)),
        num_experts=num_experts,
        experts_per_token=draw(st.integers(1, num_experts)),
        vocab_size=draw(st.integers(1, 131)),
        window=draw(st.integers(1, 24)),
        max_positions=draw(st.sampled_from([16, 128, 4096])),
        layer_types=draw(
            st.none() | st.lists(kinds, min_size=num_layers, max_size=num_layers).map(tuple)
        ),
        rope_theta=draw(st.sampled_from([10.0, 10000.0, 150000.0])),
        yarn=draw(st.none() | yarn_settings()),
        rope_spelling=draw(st.sampled_from(["rope_scaling", "rope_parameters", "mixed"])),
        swiglu_limit=draw(st.sampled_from([0.5, 2.0, 7.0])),
        rms_norm_eps=draw(st.sampled_from([1e-6, 1e-5, 1e-3])),
        tied=draw(st.booleans()),
        attention_bias=draw(st.integers(0, 4)) > 0,
        dense_dtype=draw(st.sampled_from(["BF16", "BF16", "F16", "F32"])),
        expert_dtype=expert_dtype,
    )


def engine_trace(directory: Any, tokens_seed: int, rows: int, kv_dtype: str) -> dict[str, Array]:
    """Tokens, logits and every tap, of a prefill of three quarters and another of the rest."""
    with gptoss.Model(directory) as model:
        tokens = random_tokens(model, rows, tokens_seed)
        generator = open_generator(model, rows, kv_dtype=kv_dtype)
        generator.capture("*", keep="all")
        cut = max(1, rows * 3 // 4)
        logits = [generator.prefill(tokens[:cut], all_logits=True)]
        if cut < rows:
            logits.append(generator.prefill(tokens[cut:], all_logits=True))
        taps = dict(generator.taps)
    return taps | {"tokens": np.array(tokens), "logits": np.concatenate(logits)}


def checked_route(
    trace: dict[str, Array], expected: dict[str, Array], layer: int, margin: float
) -> Array:
    """The engine's experts (rows, k), known to be the reference's best ones but for near ties."""
    chosen = trace[f"layers.{layer}.router_experts"]
    logits = expected[f"layers.{layer}.router_logits"]
    best = np.sort(logits, axis=-1)[:, ::-1][:, : chosen.shape[1]]
    taken = np.take_along_axis(logits, chosen, axis=-1)
    assert np.abs(taken - best).max() < margin, f"layer {layer} takes the wrong experts"
    assert all(len(set(row)) == len(row) for row in chosen.tolist()), f"layer {layer}"
    return chosen


def reference_trace(
    model: reference.Model, trace: dict[str, Array], kv_dtype: str
) -> dict[str, Array]:
    """The reference's activations, along the engine's routes once these are known to be right.

    A forced route changes the logits of the layers behind it, so the routes are settled one layer
    after the other.
    """
    routes: dict[int, Array] = {}
    while True:
        expected = reference.forward(model, trace["tokens"], kv_dtype=kv_dtype, routes=routes)
        differing = [
            layer
            for layer in range(model.config.num_layers)
            if not np.array_equal(
                trace[f"layers.{layer}.router_experts"], expected[f"layers.{layer}.router_experts"]
            )
        ]
        if not differing:
            return expected
        event("near tie of experts")
        layer = differing[0]
        routes[layer] = checked_route(trace, expected, layer, ROUTE_MARGIN[kv_dtype])


def assert_traces_agree(trace: dict[str, Array], expected: dict[str, Array], kv_dtype: str) -> None:
    assert set(trace) - {"tokens"} == set(expected)
    tolerance = TOLERANCE[kv_dtype] * conditioning(expected)
    for name, values in expected.items():
        scale = max(1.0, float(np.abs(values).max()))
        error = float(np.abs(trace[name] - values).max()) / scale
        assert trace[name].shape == values.shape, name
        assert error < tolerance, f"{name} is off by {error:.3g} of {scale:.3g}"


@settings(max_examples=150)
@given(
    spec=specs(),
    layout=st.sampled_from(LAYOUTS),
    kv_dtype=st.sampled_from(["f32", "f16"]),
    rows=st.integers(1, 60),
    seed=st.integers(0, 2**32 - 1),
)
def test_engine_agrees_with_reference(
    spec: Spec, layout: str, kv_dtype: str, rows: int, seed: int
) -> None:
    if not supports(spec, layout):
        layout = "hf"
    note(f"{layout=} {seed=}")
    with tempfile.TemporaryDirectory() as directory:
        write_model(directory, spec, np.random.default_rng(seed), layout)
        trace = engine_trace(directory, seed, rows, kv_dtype)
        expected = reference_trace(reference.Model(directory), trace, kv_dtype)
    assert_traces_agree(trace, expected, kv_dtype)


@pytest.mark.parametrize(
    ("theta", "positions", "truncate"),
    [
        (10.0, 512, False),  # the upper end of the ramp is cut at head_dim - 1
        (1000.0, 150, False),  # the lower end is cut at 0
        (150000.0, 3, False),  # the lower end, cut, lies above the upper one
        (150000.0, 3, True),  # both ends are 0
        (150000.0, 4096, True),
    ],
)
def test_yarn_at_its_limits(
    theta: float, positions: int, truncate: bool, make_directory: Any
) -> None:
    yarn = {
        "rope_type": "yarn",
        "factor": 8.0,
        "beta_fast": 32.0,
        "beta_slow": 0.5,
        "original_max_position_embeddings": positions,
        "truncate": truncate,
    }
    directory = make_directory(Spec(rope_theta=theta, yarn=yarn))
    trace = engine_trace(directory, 1, 100, "f32")
    expected = reference_trace(reference.Model(directory), trace, "f32")
    assert_traces_agree(trace, expected, "f32")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_long_sequence_of_an_odd_model(layout: str, make_directory: Any) -> None:
    """Past the window, past the model's positions, over several blocks and attention tiles."""
    spec = Spec(
        num_layers=4,
        hidden_size=96,
        intermediate_size=160,
        num_heads=6,
        num_kv_heads=3,
        head_dim=20,
        num_experts=5,
        experts_per_token=3,
        vocab_size=517,
        window=37,
    )
    directory = make_directory(spec, seed=11, layout=layout)
    trace = engine_trace(directory, 5, 900, "f32")
    expected = reference_trace(reference.Model(directory), trace, "f32")
    assert_traces_agree(trace, expected, "f32")


def test_equal_router_logits_go_to_the_lowest_experts(tmp_path: Path) -> None:
    """Experts 1 and 3 lead with the same logit, the others follow with the same one."""
    spec = Spec(num_experts=6, experts_per_token=4)
    tensors = random_tensors(spec, np.random.default_rng(0))
    for layer in range(spec.num_layers):
        router = f"model.layers.{layer}.mlp.router."
        tensors[router + "weight"] = np.zeros_like(tensors[router + "weight"])
        tensors[router + "bias"] = np.array([1, 2, 1, 2, 1, 1], tensors[router + "bias"].dtype)
    (tmp_path / "config.json").write_text(json.dumps(hf_config(spec)))
    write_safetensors(tmp_path / "model.safetensors", tensors)
    trace = engine_trace(tmp_path, 0, 12, "f32")
    for layer in range(spec.num_layers):
        assert (trace[f"layers.{layer}.router_experts"] == [1, 3, 0, 2]).all()
    assert_traces_agree(trace, reference.forward(reference.Model(tmp_path), trace["tokens"]), "f32")
