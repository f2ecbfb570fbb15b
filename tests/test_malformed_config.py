"""Malformed config.json files: the exception names the key, what it holds and what it should."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from malformed import SOUND, SPEC, refused, write
from models import hf_config, original_config, original_tensors

import gptoss

pytestmark = pytest.mark.usefixtures("one_minute", "modest_memory")

REQUIRED_INTEGERS = [
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_local_experts",
    "num_experts_per_tok",
    "max_position_embeddings",
]
NO_INTEGER = ["12", 1.5, -1, 0, 2**31, 2**63, 1e300, True, [], {}, [64]]
NO_NUMBER = ["1", -1.0, 0.0, 1e300, False, [], {}]


@pytest.mark.parametrize("value", [None, *NO_INTEGER], ids=repr)
@pytest.mark.parametrize("key", REQUIRED_INTEGERS)
def test_config_integer(tmp_path: Path, key: str, value: Any) -> None:
    error = refused(write(tmp_path, hf_config(SPEC) | {key: value}), file="config.json")
    assert key in str(error) and error.expected and error.found


@pytest.mark.parametrize("key", [*REQUIRED_INTEGERS, "model_type"])
def test_config_key_missing(tmp_path: Path, key: str) -> None:
    config = hf_config(SPEC)
    del config[key]
    error = refused(write(tmp_path, config), file="config.json")
    assert key in str(error) and error.found == "nothing"


@pytest.mark.parametrize("value", NO_INTEGER, ids=repr)
def test_config_window(tmp_path: Path, value: Any) -> None:
    error = refused(
        write(tmp_path, hf_config(SPEC) | {"sliding_window": value}), file="config.json"
    )
    assert "sliding_window" in str(error)


@pytest.mark.parametrize("value", NO_NUMBER, ids=repr)
@pytest.mark.parametrize("key", ["rms_norm_eps", "swiglu_limit", "swiglu_alpha", "rope_theta"])
def test_config_number(tmp_path: Path, key: str, value: Any) -> None:
    error = refused(write(tmp_path, hf_config(SPEC) | {key: value}), file="config.json")
    assert key in str(error) and error.expected and error.found


@pytest.mark.parametrize("key", ["attention_bias", "tie_word_embeddings"])
@pytest.mark.parametrize("value", [0, 1, "true", [], {}], ids=repr)
def test_config_boolean(tmp_path: Path, key: str, value: Any) -> None:
    error = refused(write(tmp_path, hf_config(SPEC) | {key: value}), file="config.json")
    assert key in str(error)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", 7),
        ("model_type", ["gpt_oss"]),
        ("hidden_act", "gelu"),
        ("hidden_act", 7),
        ("quantization_config", "mxfp4"),
        ("quantization_config", {"quant_method": "gptq"}),
        ("quantization_config", {"quant_method": 4}),
        ("layer_types", "sliding_attention"),
        ("layer_types", []),
        ("layer_types", ["sliding_attention"]),
        ("layer_types", ["sliding_attention"] * 3),
        ("layer_types", ["sliding_attention", "chunked_attention"]),
        ("layer_types", ["sliding_attention", None]),
        ("layer_types", {"0": "sliding_attention"}),
        ("num_hidden_layers", 1025),
        ("num_key_value_heads", 3),
        ("head_dim", 31),
        ("num_experts_per_tok", 5),
        ("rope_scaling", "yarn"),
        ("rope_scaling", [1]),
        ("rope_scaling", 7),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_config_value(tmp_path: Path, key: str, value: Any) -> None:
    error = refused(write(tmp_path, hf_config(SPEC) | {key: value}), file="config.json")
    assert error.expected and error.found


@pytest.mark.parametrize("value", ["mistral", "", "x" * 5000, "\u2603\n\x1b[31m"], ids=repr)
def test_config_of_another_family(tmp_path: Path, value: str) -> None:
    config = hf_config(SPEC) | {"model_type": value}
    error = refused(write(tmp_path, config), file="config.json", kind=gptoss.UnsupportedError)
    assert "; supported: gpt-oss, llama, gpt2" in str(error) and len(str(error)) < 1000
    if value == "mistral":
        assert 'unsupported architecture "mistral"' in str(error)


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, value) for key in ("factor", "beta_fast", "beta_slow") for value in NO_NUMBER),
        *(("original_max_position_embeddings", value) for value in NO_INTEGER),
        *(("rope_type", value) for value in ("llama3", "linear", "dynamic", 7, [], "")),
        *(("truncate", value) for value in (0, "false", [])),
        ("attention_factor", "1"),
        ("attention_factor", -1),
        ("rope_theta", "150000"),
        ("rope_theta", -1),
        ("partial_rotary_factor", 0.5),
        ("beta_fast", 0.5),
        ("full_attention", {"rope_type": "default"}),
    ],
    ids=repr,
)
def test_config_rope(tmp_path: Path, spelling: str, key: str, value: Any) -> None:
    config = hf_config(SPEC)
    rope = config.pop("rope_scaling") | {key: value}
    error = refused(write(tmp_path, config | {spelling: rope}), file="config.json")
    assert spelling in str(error) and error.expected and error.found


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("num_experts", value) for value in NO_INTEGER),
        *(("initial_context_length", value) for value in NO_INTEGER),
        *(
            (key, value)
            for key in ("rope_scaling_factor", "rope_ntk_alpha", "rope_ntk_beta")
            for value in NO_NUMBER
        ),
        ("rope_ntk_beta", 0.5),
        ("initial_context_length", 2**30),
    ],
    ids=repr,
)
def test_original_config(tmp_path: Path, key: str, value: Any) -> None:
    tensors = original_tensors(SPEC, SOUND)
    refused(write(tmp_path, original_config(SPEC) | {key: value}, tensors), file="config.json")


CONFIG_TEXT = json.dumps(hf_config(SPEC)).encode()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b"7",
        b'"gpt_oss"',
        b"{",
        b"{}",
        b"{}{}",
        CONFIG_TEXT + b"x",
        CONFIG_TEXT + b"\0",
        CONFIG_TEXT[:-1],
        CONFIG_TEXT[: len(CONFIG_TEXT) // 2],
        CONFIG_TEXT.replace(b"true", b"True"),
        CONFIG_TEXT.replace(b": 4,", b": NaN,"),
        CONFIG_TEXT.replace(b": 4,", b": Infinity,"),
        CONFIG_TEXT.replace(b": 4,", b": 1e999,"),
        CONFIG_TEXT.replace(b": 4,", b": 0x4,"),
        CONFIG_TEXT.replace(b": 4,", b": 4 // four\n,"),
        CONFIG_TEXT.replace(b'"gpt_oss"', b'"gpt_\xff\xfe"'),
        CONFIG_TEXT.replace(b'"gpt_oss"', b'"gpt_oss'),
        CONFIG_TEXT.replace(b'"gpt_oss"', b'"\\ud800"'),
        CONFIG_TEXT.replace(b'"gpt_oss"', b'"\\u0000"'),
        CONFIG_TEXT.decode().encode("utf-16"),
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"[" * 500_000 + b"]" * 500_000,
        b"\x89PNG\r\n\x1a\n" + bytes(100),
    ],
    ids=lambda text: repr(text[:30]) + f"+{len(text)}",
)
def test_config_text(tmp_path: Path, text: bytes) -> None:
    refused(
        write(tmp_path, b"?" if text == b"" else text),
        file="config.json",
        kind=(gptoss.FormatError, gptoss.UnsupportedError),
    )


def test_config_of_a_gigabyte(tmp_path: Path) -> None:
    """A sparse file: nothing may read or map it whole."""
    directory = write(tmp_path)
    os.truncate(directory / "config.json", 1 << 30)
    refused(directory, file="config.json")


# ---- sizes in config.json that the tensors do not bear out ----


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 3),
        ("num_hidden_layers", 1000),
        ("hidden_size", 32),
        ("hidden_size", 1 << 20),
        ("intermediate_size", 32),
        ("intermediate_size", 1 << 20),
        ("vocab_size", 63),
        ("vocab_size", 1 << 24),
        ("num_attention_heads", 2),
        ("num_attention_heads", 4096),
        ("head_dim", 64),
        ("head_dim", 1024),
        ("num_local_experts", 3),
        ("num_local_experts", 4096),
    ],
)
def test_config_against_tensors(tmp_path: Path, key: str, value: int) -> None:
    directory = write(tmp_path, hf_config(SPEC) | {key: value, "layer_types": None})
    with pytest.raises(gptoss.FormatError) as caught:
        gptoss.Model(directory)
    assert caught.value.tensor in SOUND or "layers.2." in str(caught.value.tensor)
    assert caught.value.expected and caught.value.found
