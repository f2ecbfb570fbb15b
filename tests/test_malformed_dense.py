"""Malformed models of the dense families: the exception names the key or the tensor, what it holds
and what it should. Other settings that would change the computation are refused by name.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense_models import Gpt2, Llama, Spec, encode_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from malformed import refused
from models import Tensors, write_safetensors

import gptoss

pytestmark = pytest.mark.usefixtures("one_minute", "modest_memory")

LLAMA = Llama(attention_bias=True, mlp_bias=True)
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SCALED = Llama(rope=LLAMA3)
YARN = Llama(rope={"rope_type": "yarn", "factor": 2.0, "beta_fast": 32.0, "beta_slow": 1.0})
NO_YARN = [
    *((key, v) for key in ("factor", "yarn_beta_fast", "yarn_beta_slow") for v in ("2", 0.0, -1.0)),
    *(("original_context_length", value) for value in (0, 1.5, "64", 2**31)),
    *((key, 0.5) for key in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor")),
    ("yarn_beta_fast", 1.0),
]
GPT2 = Gpt2()
SPECS = (LLAMA, SCALED, YARN, GPT2)
SOUND = {spec: spec.tensors(np.random.default_rng(0), "F32") for spec in SPECS}
NO_INTEGER = ["12", 1.5, -1, 0, 2**31, 2**63, 1e300, True, [], {}, [64]]
NO_NUMBER = ["1", -1.0, 0.0, 1e300, False, [], {}]


def write(directory: Path, spec: Spec, tensors: Tensors | None = None, **changes: Any) -> Path:
    (directory / "config.json").write_text(json.dumps(spec.config() | changes))
    write_safetensors(directory / "model.safetensors", tensors or SOUND[spec])
    return directory


def write_gguf(path: Path, spec: Spec, tensors: Tensors | None = None, **changes: Any) -> Path:
    """changes: of metadata, keys without the architecture, "." spelled "__"; None: left out."""
    values, sound = spec.gguf(SOUND[spec])
    prefix = values["general.architecture"] + "."
    values |= {prefix + key.replace("__", "."): value for key, value in changes.items()}
    values = {key: value for key, value in values.items() if value is not None}
    path.write_bytes(encode_gguf(values, sound if tensors is None else tensors, "F32"))
    return path


def test_sound_ones_open(tmp_path: Path) -> None:
    for number, spec in enumerate(SOUND):
        (tmp_path / str(number)).mkdir()
        gptoss.Model(write(tmp_path / str(number), spec)).close()
        gptoss.Model(write_gguf(tmp_path / f"{number}.gguf", spec)).close()


# ---- config.json ----

SIZES = {
    LLAMA: [
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "vocab_size",
        "num_attention_heads",
        "max_position_embeddings",
    ],
    GPT2: ["n_layer", "n_embd", "vocab_size", "n_head", "n_positions"],
}
OPTIONAL = {LLAMA: ["num_key_value_heads", "head_dim"], GPT2: ["n_inner"]}


@pytest.mark.parametrize("value", [None, *NO_INTEGER], ids=repr)
@pytest.mark.parametrize(
    ("spec", "key"), [(spec, key) for spec, keys in SIZES.items() for key in keys]
)
def test_size(tmp_path: Path, spec: Spec, key: str, value: Any) -> None:
    error = refused(write(tmp_path, spec, **{key: value}), file="config.json")
    assert key in str(error) and error.expected and error.found


@pytest.mark.parametrize("value", NO_INTEGER, ids=repr)
@pytest.mark.parametrize(
    ("spec", "key"), [(spec, key) for spec, keys in OPTIONAL.items() for key in keys]
)
def test_optional_size(tmp_path: Path, spec: Spec, key: str, value: Any) -> None:
    error = refused(write(tmp_path, spec, **{key: value}), file="config.json")
    assert key in str(error) and error.expected and error.found


@pytest.mark.parametrize(
    ("spec", "key", "value"),
    [
        *((LLAMA, "rms_norm_eps", value) for value in NO_NUMBER),
        *((LLAMA, "rope_theta", value) for value in NO_NUMBER),
        *((GPT2, "layer_norm_epsilon", value) for value in NO_NUMBER),
        *((LLAMA, "attention_bias", value) for value in (0, "true", [])),
        *((LLAMA, "mlp_bias", value) for value in (1, "true", {})),
        *((LLAMA, "tie_word_embeddings", value) for value in (1, "no")),
        (GPT2, "tie_word_embeddings", 0),
        *((LLAMA, "hidden_act", value) for value in ("gelu", "relu", "swish", 7, [])),
        *((GPT2, "activation_function", value) for value in ("gelu", "relu", "tanh", 7, [])),
        (GPT2, "scale_attn_weights", False),
        (GPT2, "scale_attn_weights", 1),
        (GPT2, "scale_attn_by_inverse_layer_idx", True),
        (GPT2, "add_cross_attention", True),
        (LLAMA, "quantization_config", {"quant_method": "gptq"}),
        (GPT2, "quantization_config", {"quant_method": "bitsandbytes"}),
        (LLAMA, "partial_rotary_factor", 0.5),
        (LLAMA, "num_key_value_heads", 3),
        (LLAMA, "head_dim", 15),
        (LLAMA, "num_attention_heads", 6),
        (GPT2, "n_head", 5),
        (Llama(hidden_size=20, head_dim=None), "num_attention_heads", 4),
        (LLAMA, "rope_scaling", "linear"),
        (LLAMA, "rope_scaling", [1]),
        (LLAMA, "rope_parameters", 7),
    ],
    ids=lambda value: value.__class__.__name__ if isinstance(value, Spec) else repr(value)[:40],
)
def test_value(tmp_path: Path, spec: Spec, key: str, value: Any) -> None:
    tensors = SOUND[LLAMA if isinstance(spec, Llama) else GPT2]
    error = refused(write(tmp_path, spec, tensors, **{key: value}), file="config.json")
    assert key in str(error) and error.expected and error.found


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("rope_type", value) for value in ("YaRN", "dynamic", "longrope", 7, [], "")),
        *(
            (key, value)
            for key in ("factor", "low_freq_factor", "high_freq_factor")
            for value in (None, *NO_NUMBER)
        ),
        *(("original_max_position_embeddings", value) for value in (None, *NO_INTEGER)),
        ("high_freq_factor", 1.0),
        ("high_freq_factor", 0.5),
        ("rope_theta", "10000"),
        ("partial_rotary_factor", 0.5),
        ("full_attention", {"rope_type": "default"}),
    ],
    ids=repr,
)
def test_rope(tmp_path: Path, spelling: str, key: str, value: Any) -> None:
    changes = {"rope_scaling": None, spelling: LLAMA3 | {key: value}}
    error = refused(write(tmp_path, LLAMA, **changes), file="config.json")
    assert f"{spelling}.{key}" in str(error) and error.expected and error.found


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, value) for key in ("factor", "beta_fast", "beta_slow") for value in NO_NUMBER),
        *(("original_max_position_embeddings", value) for value in NO_INTEGER),
        *(("attention_factor", value) for value in NO_NUMBER),
        *(("truncate", value) for value in (0, "false", [])),
        ("beta_fast", 0.5),
        ("beta_slow", 32),
        ("mscale", "1"),
    ],
    ids=repr,
)
def test_yarn(tmp_path: Path, spelling: str, key: str, value: Any) -> None:
    changes = {"rope_scaling": None, spelling: {"rope_type": "yarn", "factor": 2.0, key: value}}
    error = refused(write(tmp_path, LLAMA, **changes), file="config.json")
    assert f"{spelling}." in str(error) and error.expected and error.found


@pytest.mark.parametrize(
    "rope", [{"factor": 2.0}, {"rope_type": "linear"}, {"type": "linear", "factor": None}]
)
def test_scaling_without_its_type_or_factor(tmp_path: Path, rope: dict[str, Any]) -> None:
    error = refused(write(tmp_path, LLAMA, rope_scaling=rope), file="config.json")
    assert "rope_scaling." in str(error) and error.found == "nothing"


@settings(max_examples=100)
@given(
    spec=st.sampled_from([LLAMA, SCALED, GPT2]),
    data=st.data(),
    value=st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=2)
    | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
def test_any_value_of_any_key(
    tmp_path_factory: pytest.TempPathFactory, spec: Spec, data: st.DataObject, value: Any
) -> None:
    """Opened, or refused with an exception of our own; never a crash."""
    key = data.draw(st.sampled_from(sorted(spec.config())))
    path = tmp_path_factory.mktemp("any")
    try:
        gptoss.Model(write(path, spec, **{key: value})).close()
    except (gptoss.FormatError, gptoss.UnsupportedError) as error:
        assert error.file is not None


# ---- tensors ----


def tensor_names() -> list[tuple[Spec, str]]:
    return [(spec, name) for spec in (LLAMA, GPT2) for name in SOUND[spec] if ".1." not in name]


@pytest.mark.parametrize(("spec", "name"), tensor_names(), ids=lambda value: str(value)[:60])
def test_tensor(tmp_path: Path, spec: Spec, name: str) -> None:
    """Missing, of another shape, of another dtype."""
    tensors = {other: tensor for other, tensor in SOUND[spec].items() if other != name}
    if name != "transformer.wte.weight":  # what says that the names have a prefix
        error = refused(write(tmp_path, spec, tensors), file=tmp_path, tensor=name)
        assert "missing" in str(error) and error.expected
    sound = SOUND[spec][name]
    for shape in ((*sound.shape[:-1], sound.shape[-1] + 1), (*sound.shape, 1), (sound.size + 1,)):
        tensors[name] = np.zeros(shape, np.float32)
        error = refused(write(tmp_path, spec, tensors), tensor=name)
        assert "shape" in str(error) and error.expected and error.found
    tensors[name] = np.zeros(sound.shape, np.uint8)
    error = refused(write(tmp_path, spec, tensors), tensor=name)
    assert "dtype" in str(error) and error.found == "U8"


@pytest.mark.parametrize("spec", [LLAMA, SCALED, GPT2], ids=["llama", "llama3", "gpt2"])
def test_gguf_tensor(tmp_path: Path, spec: Spec) -> None:
    sound = spec.gguf(SOUND[spec])[1]
    decided = {"output.weight", "blk.0.attn_q.bias", "blk.0.ffn_gate.bias", "rope_freqs.weight"}
    for name, tensor in sound.items():
        path = tmp_path / "tiny.gguf"
        tensors = {other: t for other, t in sound.items() if other != name}
        if name not in decided:  # by these the file says what the model has
            error = refused(write_gguf(path, spec, tensors), file=path, tensor=name)
            assert "missing" in str(error) or name == "token_embd.weight"
        shape = (*tensor.shape[:-1], tensor.shape[-1] + 1)
        tensors[name] = np.zeros(shape, np.float32)
        if name == "token_embd.weight":
            continue  # its first dimension is the vocabulary
        error = refused(write_gguf(path, spec, tensors), file=path, tensor=name)
        assert "shape" in str(error) and error.expected and error.found


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, -np.inf, -0.0], ids=repr)
def test_divisors(tmp_path: Path, value: float) -> None:
    tensors = SCALED.gguf(SOUND[SCALED])[1]
    tensors["rope_freqs.weight"][3] = value
    path = write_gguf(tmp_path / "tiny.gguf", SCALED, tensors)
    error = refused(path, file=path, tensor="rope_freqs.weight")
    assert error.expected == "a finite number above 0" and error.offset is not None
    assert struct.pack("<f", value) == path.read_bytes()[error.offset : error.offset + 4]


# ---- metadata of GGUF files ----


@pytest.mark.parametrize(
    ("spec", "key", "value"),
    [
        *(
            (spec, key, value)
            for spec in (LLAMA, GPT2)
            for key in (
                "block_count",
                "context_length",
                "embedding_length",
                "feed_forward_length",
                "attention.head_count",
            )
            for value in (None, 0, 1.5, "64", 2**31)
        ),
        (LLAMA, "attention.head_count_kv", 3),
        (LLAMA, "attention.head_count_kv", 0),
        (LLAMA, "attention.head_count", 6),
        (LLAMA, "attention.key_length", 15),
        (LLAMA, "attention.value_length", 8),
        (LLAMA, "attention.layer_norm_rms_epsilon", -1.0),
        (LLAMA, "expert_count", 8),
        (LLAMA, "rope.dimension_count", 8),
        (LLAMA, "rope.freq_base", 0.5),
        (LLAMA, "rope.scaling.type", "longrope"),
        (LLAMA, "rope.scaling.type", 1),
        *((YARN, f"rope.scaling.{key}", value) for key, value in NO_YARN),
        (LLAMA, "rope.scaling.factor", -1.0),
        (LLAMA, "rope.scaling.factor", "2"),
        (LLAMA, "rope.scale_linear", 0.0),
        (LLAMA, "rope.scaling.attn_factor", 0.5),
        (GPT2, "attention.head_count", 5),
        (GPT2, "attention.head_count_kv", 2),
        (GPT2, "attention.layer_norm_epsilon", 0.0),
    ],
    ids=lambda value: value.__class__.__name__ if isinstance(value, Spec) else repr(value)[:40],
)
def test_gguf_value(tmp_path: Path, spec: Spec, key: str, value: Any) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", spec, **{key: value})
    error = refused(path, file=path)
    assert key in str(error) and error.expected and error.found


def test_yarn_has_frequencies_of_its_own(tmp_path: Path) -> None:
    changes = {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0}
    path = write_gguf(tmp_path / "a.gguf", SCALED, **changes)
    error = refused(path, file=path, tensor="rope_freqs.weight")
    assert "no such tensor beside YaRN" in str(error)


def test_a_factor_without_a_type_divides(tmp_path: Path) -> None:
    """As in llama.cpp; old files call it scale_linear."""
    for key in ("rope.scaling.factor", "rope.scale_linear"):
        with gptoss.Model(write_gguf(tmp_path / "a.gguf", LLAMA, **{key: 4.0})) as model:
            assert (model.config.rope_scaling, model.config.rope_factor) == ("linear", 4.0)
    changes = {"rope.scaling.factor": 4.0, "rope.scaling.type": "none"}
    with gptoss.Model(write_gguf(tmp_path / "a.gguf", LLAMA, **changes)) as model:
        assert (model.config.rope_scaling, model.config.rope_factor) == ("plain", 1.0)
