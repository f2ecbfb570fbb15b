"""Weights in two planes that are not what config.json says, and what verify finds in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mx_models
import numpy as np
import pytest
from dense_models import Gpt2, Llama
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from malformed import refused
from models import Spec, Tensors, hf_config, random_tensors, safetensors_header
from mx_models import FORMATS

import gptoss

SPEC = Spec(num_layers=1, vocab_size=64, dense_dtype="F32", expert_dtype="F32")
DENSE = random_tensors(SPEC, np.random.default_rng(0))
MATRICES = [name for name, tensor in DENSE.items() if mx_models.is_matrix(name, tensor)]
CHOSEN = {name: FORMATS[1 + i % 4] for i, name in enumerate(MATRICES)}
SOUND, _ = mx_models.split(DENSE, CHOSEN)
QUERY, DOWN = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.experts.down_proj"
BYTES = {"MXFP4": 16, "MXFP6_E2M3": 24, "MXFP6_E3M2": 24, "MXFP8_E4M3": 32, "MXFP8_E5M2": 32}


def write(directory: Path, quantization: Any = None, tensors: Tensors | None = None) -> Path:
    quantization = mx_models.quantization(CHOSEN) if quantization is None else quantization
    config = hf_config(SPEC) | {"quantization_config": quantization}
    return mx_models.write(directory, config, tensors or SOUND)


def test_sound(tmp_path: Path) -> None:
    with gptoss.Model(write(tmp_path), verify=True) as model:
        for name, format in CHOSEN.items():
            assert model.tensor_info(f"{name}_blocks").weight_format == format


# ---- quantization_config ----


@pytest.mark.parametrize("spec", [SPEC, Llama(), Gpt2()], ids=lambda spec: type(spec).__name__)
@pytest.mark.parametrize(
    "value",
    [
        *(["mx"], "mx", 7, True, {"quant_method": "MX"}, {"quant_method": ["mx"]}),
        *({"quant_method": "mx"}, {"quant_method": "mx", "format": None}),
        *({"quant_method": "mx", "format": f} for f in ("MXFP8", "mxfp4", "Q8_0", "U8", "", 4, [])),
        *({"quant_method": "mx", "format": f} for f in ("F32", "MXFP4_GGUF", "MXFP6_E2M3 ", {})),
        *({"quant_method": "mx", "format": "MXFP4", "formats": f} for f in ("MXFP4", ["a"], 1)),
        *(
            {"quant_method": "mx", "format": "MXFP4", "formats": {QUERY: f}}
            for f in ("MXFP7", None, 8, {}, "\u001b[31m", "x" * 4000)
        ),
        *(
            {"quant_method": "mx", "format": "MXFP4", "formats": {name: "MXFP4"}}
            for name in ("", "\u001b[31m", "a\nb", "\u00e9", "\u0000")
        ),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_quantization_config(tmp_path: Path, spec: Any, value: Any) -> None:
    config, tensors = hf_config(SPEC), SOUND
    if spec is not SPEC:
        config, tensors = spec.config(), spec.tensors(np.random.default_rng(0), "F32")
    path = mx_models.write(tmp_path, config | {"quantization_config": value}, tensors)
    error = refused(path, file="config.json")
    assert "quantization_config" in str(error) and error.expected and error.found
    assert "\x1b" not in str(error) and len(str(error)) < 1000


KEYS = ["quant_method", "format", "formats", *CHOSEN]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([*FORMATS, ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=st.fixed_dictionaries({"quant_method": st.just("mx"), "format": JSON, "formats": JSON})
    | JSON
)
def test_any_quantization_config(tmp_path: Path, value: Any) -> None:
    try:
        gptoss.Model(write(tmp_path, value)).close()
    except gptoss.FormatError as error:
        assert error.file and error.expected and error.found


@pytest.mark.parametrize(
    "name", ["nothing", QUERY + "_blocks", "model.norm.weight", QUERY[:-1], QUERY * 20, "_blocks"]
)
def test_format_of_nothing(tmp_path: Path, name: str) -> None:
    quantization = mx_models.quantization(CHOSEN)
    quantization["formats"] = quantization["formats"] | {name: "MXFP4"}
    error = refused(write(tmp_path, quantization), file="config.json", tensor=name[:191])
    assert "NAME_blocks" in str(error) and error.found == "none of this name"


def test_many_names_are_no_burden(tmp_path: Path) -> None:
    quantization = mx_models.quantization(CHOSEN)
    quantization["formats"] |= {f"{i}": "MXFP4" for i in range(50_000)}
    refused(write(tmp_path, quantization), file="config.json", tensor="0")


@pytest.mark.parametrize("name", CHOSEN)
@pytest.mark.parametrize("said", FORMATS)
def test_another_format_than_there_is(tmp_path: Path, name: str, said: str) -> None:
    """Formats of as many bytes pass for each other; all others are found out."""
    quantization = {
        "quant_method": "mx",
        "format": next(iter(CHOSEN.values())),
        "formats": CHOSEN | {name: said},
    }
    path = write(tmp_path, quantization)
    if BYTES[said] == BYTES[CHOSEN[name]]:
        with gptoss.Model(path) as model:
            assert model.tensor_info(f"{name}_blocks").weight_format == said
        return
    error = refused(path, tensor=f"{name}_blocks")
    assert said in str(error.expected) and f"{BYTES[said]}]" in str(error.expected)
    assert f"{BYTES[CHOSEN[name]]}]" in str(error.found)


def test_planes_without_a_word_are_mxfp4(tmp_path: Path) -> None:
    for quantization in ({"quant_method": "mxfp4"}, {}):
        error = refused(write(tmp_path, quantization), tensor="model.embed_tokens.weight_blocks")
        assert "MXFP4" in str(error.expected)


# ---- tensors ----

CHANGES = {
    "flat": lambda tensor: tensor.reshape(-1),
    "row less": lambda tensor: tensor[:-1],
    "row more": lambda tensor: np.concatenate([tensor, tensor[:1]]),
    "block less": lambda tensor: tensor[..., :-1],
    "one more axis": lambda tensor: tensor[None],
    "turned": lambda tensor: tensor.swapaxes(0, 1),
    "wider": lambda tensor: tensor.astype(np.float32),
    "empty": lambda tensor: tensor[:0],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", [name for name in SOUND if name.endswith(("_blocks", "_scales"))])
def test_plane(tmp_path: Path, name: str, change: str) -> None:
    changed = CHANGES[change](SOUND[name])
    if changed.shape == SOUND[name].shape and changed.dtype == SOUND[name].dtype:
        pytest.skip("a square")
    quantization = mx_models.quantization(CHOSEN)
    if change == "wider" and name.endswith("_blocks"):  # no codes, so nothing to name a format of
        quantization["formats"].pop(name.removesuffix("_blocks"), None)
    error = refused(write(tmp_path, quantization, SOUND | {name: changed}), tensor=name)
    assert error.expected and error.found
    assert error.offset is not None or changed.ndim > 4


@pytest.mark.parametrize("name", CHOSEN)
def test_missing_plane(tmp_path: Path, name: str) -> None:
    quantization = mx_models.quantization(CHOSEN)
    without = Tensors({key: tensor for key, tensor in SOUND.items() if key != f"{name}_scales"})
    refused(write(tmp_path, quantization, without), file=tmp_path, tensor=f"{name}_scales")
    quantization["formats"].pop(name, None)
    without = Tensors({key: tensor for key, tensor in SOUND.items() if key != f"{name}_blocks"})
    expected = f"{name}_blocks" if ".experts." in name else name
    refused(write(tmp_path, quantization, without), file=tmp_path, tensor=expected)


def test_a_width_of_no_whole_blocks(tmp_path: Path) -> None:
    spec = Llama(hidden_size=48)
    tensors = spec.tensors(np.random.default_rng(0), "F32")
    tensors["model.embed_tokens.weight_blocks"] = np.zeros((97, 1, 32), np.uint8)
    del tensors["model.embed_tokens.weight"]
    quantization = {"quant_method": "mx", "format": "MXFP8_E5M2"}
    path = mx_models.write(tmp_path, spec.config() | {"quantization_config": quantization}, tensors)
    error = refused(path, file="config.json", tensor="model.embed_tokens.weight_blocks")
    assert "an input size in whole blocks of 32, as MXFP8_E5M2 has" in str(error)


# ---- values ----


def find(path: Path) -> gptoss.Error:
    with gptoss.Model(path):
        pass
    with pytest.raises(gptoss.FormatError) as caught:
        gptoss.Model(path, verify=True)
    return caught.value


@pytest.mark.parametrize("place", [0, 5, -1])
@pytest.mark.parametrize("name", CHOSEN)
def test_verify_finds_scales(tmp_path: Path, name: str, place: int) -> None:
    scales = SOUND[f"{name}_scales"].copy()
    scales.reshape(-1)[place] = 0xFF
    tensors = SOUND | {f"{name}_scales": scales}
    error = find(write(tmp_path, tensors=tensors))
    begin = safetensors_header(tensors)[f"{name}_scales"]["data_offsets"][0]
    assert error.tensor == f"{name}_scales" and error.offset is not None and error.offset > begin
    assert "MX scales below 0xFF" in str(error)


@pytest.mark.parametrize("place", [0, 777, -1])
@pytest.mark.parametrize(
    ("format", "code", "is_bad"),
    [
        *(("MXFP8_E4M3", code, True) for code in (0x7F, 0xFF)),
        *(("MXFP8_E4M3", code, False) for code in (0x7E, 0xFE, 0x7C)),
        *(("MXFP8_E5M2", code, True) for code in (0x7C, 0x7D, 0xFC, 0xFF)),
        *(("MXFP8_E5M2", code, False) for code in (0x7B, 0xFB)),
        *(("MXFP6_E2M3", code, False) for code in (0x7F, 0xFF)),
        *(("MXFP6_E3M2", code, False) for code in (0x7C, 0xFF)),
        *(("MXFP4", code, False) for code in (0x7F, 0xFF)),
    ],
)
def test_verify_finds_codes(
    tmp_path: Path, format: str, code: int, is_bad: bool, place: int
) -> None:
    for name in (QUERY, DOWN):
        tensors, _ = mx_models.split(DENSE, {name: format})
        tensors[f"{name}_blocks"].reshape(-1)[place] = code
        path = write(tmp_path, {"quant_method": "mx", "format": format}, tensors)
        if is_bad:
            assert find(path).tensor == f"{name}_blocks"
        else:
            with gptoss.Model(path, verify=True):
                pass


def test_nan_reaches_the_logits(tmp_path: Path) -> None:
    scales = SOUND[f"{DOWN}_scales"].copy()
    scales[...] = 0xFF
    with gptoss.Model(write(tmp_path, tensors=SOUND | {f"{DOWN}_scales": scales})) as model:
        assert np.isnan(model.expert(0, 0).down).all()
        with pytest.raises(gptoss.NumericError):
            gptoss.Generator(model).prefill([1, 2, 3])
