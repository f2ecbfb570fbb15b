"""MXFP4, MXFP6 and MXFP8 as formats of whole models: what they compute, and what quantize, convert,
compare and inspect make of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import demo_eval
import mx_models
import numpy as np
import pytest
from dense_models import Gpt2, Llama
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from models import Spec, Tensors, hf_config, random_tensors, write_model
from mx_models import FORMATS, UNSCALED
from numpy.typing import NDArray
from support import assert_same_bits, feed, open_generator, random_tokens, step_through

import gptoss
from gptoss import _core, mx, quantization
from gptoss.cli import main

Array = NDArray[Any]
ISAS = [name for name, available in _core.isas() if available]
ROWS = 40
SPEC = Spec(dense_dtype="F32", expert_dtype="F32", intermediate_size=96, num_layers=3)
Make = Callable[[np.random.Generator], tuple[dict[str, Any], Tensors]]
FAMILIES: dict[str, Make] = {
    "gpt_oss": lambda rng: (hf_config(SPEC), random_tensors(SPEC, rng)),
    "llama": lambda rng: (
        Llama(tied=True, attention_bias=True).config(),
        Llama(tied=True, attention_bias=True).tensors(rng, "F32"),
    ),
    "gpt2": lambda rng: (Gpt2().config(), Gpt2().tensors(rng, "F32")),
    "gpt2 as released": lambda rng: (
        Gpt2(prefix="").config(),
        Gpt2(prefix="", tied=False).tensors(rng, "F32"),
    ),
}


@pytest.fixture
def rng() -> np.random.Generator:
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bf16 and MXFP4, as gpt-oss is."""
    spec = Spec(hidden_size=64, intermediate_size=96, head_dim=16)
    return write_model(tmp_path_factory.mktemp("small") / "model", spec, np.random.default_rng(5))


def logits(path: Path, **options: Any) -> Array:
    with gptoss.Model(path, **options) as model:
        return open_generator(model, ROWS).prefill(random_tokens(model, ROWS), all_logits=True)


def pair(directory: Path, family: str, formats: Any, rng: np.random.Generator) -> tuple[Path, Path]:
    """A model in planes and one of the float32 weights that it decodes to. formats: one, or a
    choice for every matrix."""
    config, tensors = FAMILIES[family](rng)
    names = [name for name, tensor in tensors.items() if mx_models.is_matrix(name, tensor)]
    chosen = {name: str(rng.choice(formats)) for name in names}
    chosen = {name: format for name, format in chosen.items() if format != "F32"}
    planes, decoded = mx_models.split(tensors, chosen)
    with_formats = config | {"quantization_config": mx_models.quantization(chosen)}
    return (
        mx_models.write(directory / "planes", with_formats, planes),
        mx_models.write(directory / "decoded", config, decoded),
    )


# ---- packing ----


@given(st.data(), st.sampled_from(FORMATS))
def test_packing(data: st.DataObject, format: str) -> None:
    bits, element = mx_models.ELEMENTS[format][0], mx.ELEMENTS[format]
    shape = (data.draw(st.integers(0, 3)), 32 * data.draw(st.integers(0, 4)))
    codes = data.draw(arrays.arrays(np.uint8, shape, elements=st.integers(0, 2**bits - 1)))
    packed = mx.pack(codes, element)
    string = np.unpackbits(codes[..., None], axis=-1, bitorder="little")[..., :bits]
    expected = np.packbits(string.reshape(shape[0], shape[1] * bits), axis=-1, bitorder="little")
    np.testing.assert_array_equal(packed.reshape(expected.shape), expected)
    assert packed.shape == (shape[0], shape[1] // 32, 4 * bits)
    np.testing.assert_array_equal(mx.unpack(packed, element), codes)


def test_packing_refuses() -> None:
    for codes, element in ((np.zeros(33, np.uint8), "e2m3"), (np.zeros(32), "e4m3")):
        with pytest.raises(gptoss.ArgumentError):
            mx.pack(codes, element)
    for shape, element in (((4, 32), "e2m3"), ((24,), "e2m3"), ((4, 24), "e4m3"), ((4, 24), "e9")):
        with pytest.raises(gptoss.ArgumentError):
            mx.unpack(np.zeros(shape, np.uint8), element)


# ---- computing ----


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("format", UNSCALED)
def test_weights_count_as_float32(
    tmp_path: Path, family: str, format: str, rng: np.random.Generator
) -> None:
    planes, decoded = pair(tmp_path, family, [format], rng)
    assert_same_bits(logits(planes, verify=True), logits(decoded), format)


@pytest.mark.parametrize("family", FAMILIES)
def test_formats_may_differ_by_tensor(
    tmp_path: Path, family: str, rng: np.random.Generator
) -> None:
    planes, decoded = pair(tmp_path, family, [*UNSCALED, "F32"], rng)
    expected = logits(decoded)
    for isa in ISAS:
        assert_same_bits(logits(planes, isa=isa, threads=3, mmap=False), expected, isa)
    with gptoss.Model(planes) as model:
        tokens = random_tokens(model, ROWS)
        assert_same_bits(step_through(open_generator(model, ROWS), tokens), expected, "steps")
        generator = open_generator(model, ROWS)
        assert_same_bits(feed(generator, tokens, [1, 3, 2, 9, 4, 30]), expected, "calls")


@pytest.mark.parametrize("family", FAMILIES)
def test_mxfp4_for_every_matrix(tmp_path: Path, family: str, rng: np.random.Generator) -> None:
    """Codes are summed before the scale is applied: equal but for rounding, and to the bit in any
    block."""
    planes, decoded = pair(tmp_path, family, ["MXFP4"], rng)
    found, expected = logits(planes, verify=True), logits(decoded)
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())
    for isa in ISAS:
        assert_same_bits(logits(planes, isa=isa), found, isa)


def test_experts_and_tensors(tmp_path: Path, rng: np.random.Generator) -> None:
    planes, decoded = pair(tmp_path, "gpt_oss", list(FORMATS), rng)
    with gptoss.Model(planes) as model, gptoss.Model(decoded) as other:
        for layer, expert in ((0, 0), (2, 3)):
            for part in ("gate", "up", "down", "gate_bias", "up_bias", "down_bias"):
                found = getattr(model.expert(layer, expert), part)
                np.testing.assert_array_equal(found, getattr(other.expert(layer, expert), part))
        for name, tensor in other.tensors.items():
            if name in model.tensors:
                continue
            info, scales = model.tensor_info(f"{name}_blocks"), model.tensors[f"{name}_scales"]
            assert info.format == "U8" and info.weight_format in FORMATS
            element = mx.ELEMENTS[info.weight_format]
            values = mx.decode(mx.unpack(model.tensors[info.name], element), scales, element)
            turned = mx_models.is_stored_transposed(name)
            np.testing.assert_array_equal(values.swapaxes(-1, -2) if turned else values, tensor)
        blocks = model.expert(1, 2).gate_up_blocks
        name = "model.layers.1.mlp.experts.gate_up_proj_blocks"
        np.testing.assert_array_equal(blocks, model.tensors[name][2])


# ---- quantize ----


@pytest.mark.parametrize("format", FORMATS)
def test_quantize(tmp_path: Path, small: Path, format: str) -> None:
    report = gptoss.quantize(small, tmp_path / "out", format.lower(), to="hf", threads=2)
    others = {} if format == "MXFP4" else {"MXFP4": 4}
    assert report.formats == {"BF16": 23, format: 10 + (0 if others else 4)} | others
    with gptoss.Model(small) as model, gptoss.Model(tmp_path / "out", verify=True) as made:
        for name, tensor in model.tensors.items():
            if name in made.tensors:
                assert made.tensors[name].tobytes() == tensor.tobytes(), name
                continue
            codes, scales = mx.encode(tensor, mx.ELEMENTS[format], scale="search")
            assert made.tensors[f"{name}_scales"].tobytes() == scales.tobytes()
            packed = mx.pack(codes, mx.ELEMENTS[format])
            assert made.tensors[f"{name}_blocks"].tobytes() == packed.tobytes()
            assert made.tensor_info(f"{name}_blocks").weight_format == format
    errors = {error.name: error for error in gptoss.compare(small, tmp_path / "out")}
    assert errors["blk.0.attn_q.weight"].formats == ("BF16", format)
    limit = {"MXFP4": 0.13, "MXFP6_E2M3": 0.04, "MXFP8_E4M3": 0.04}.get(format, 0.07)
    assert 0 < errors["blk.0.attn_q.weight"].relative_rms < limit
    assert errors["blk.0.ffn_up_exps.weight"].max_abs == 0


def test_quantize_by_rules(tmp_path: Path, small: Path) -> None:
    """And what config.json says of it."""
    rules = ["output.weight=MXFP6", "*_exps.weight=MXFP8", "*attn_k.weight=F32", "*.bias=F32"]
    report = gptoss.quantize(small, tmp_path / "out", "MXFP6_E3M2", rules=rules)
    assert report.formats["MXFP8_E4M3"] == 4 and report.formats["MXFP6_E2M3"] == 1
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    experts = [f"model.layers.{n}.mlp.experts.{kind}" for n in (0, 1) for kind in ("down_proj",)]
    assert config["quantization_config"]["quant_method"] == "mx"
    assert config["quantization_config"]["format"] == "MXFP6_E3M2"
    formats = config["quantization_config"]["formats"]
    assert formats["lm_head.weight"] == "MXFP6_E2M3" and len(formats) == 5
    assert all(formats[name] == "MXFP8_E4M3" for name in experts)
    with gptoss.Model(tmp_path / "out", verify=True) as model:
        assert model.tensors["model.layers.0.self_attn.k_proj.weight"].dtype == np.float32
        assert model.tensors["model.layers.1.self_attn.o_proj.bias"].dtype == np.float32
    # E2M1's values are E4M3's.
    errors = gptoss.compare(small, tmp_path / "out")
    assert all(error.max_abs == 0 for error in errors if "_exps" in error.name)


def test_quantize_from_gguf_and_from_planes(tmp_path: Path, small: Path) -> None:
    gptoss.quantize(small, tmp_path / "q8.gguf", "Q8_0")
    first = gptoss.quantize(tmp_path / "q8.gguf", tmp_path / "first", "MXFP8")
    assert first.formats["MXFP8_E4M3"] == 10 and first.formats["MXFP4"] == 4
    assert not any("Q8_0" in note for note in first.notes)
    second = gptoss.quantize(tmp_path / "first", tmp_path / "second", "MXFP6")
    assert second.formats["MXFP6_E2M3"] == 10
    third = gptoss.quantize(tmp_path / "second", tmp_path / "third", "MXFP8")
    assert any("stay MXFP6_E2M3" in note for note in third.notes)
    report = gptoss.quantize(tmp_path / "first", tmp_path / "back.gguf", "Q8_0")
    assert report.formats["Q8_0"] == 10 and report.formats["MXFP4"] == 6
    with gptoss.Model(tmp_path / "back.gguf", verify=True):
        pass


@pytest.mark.parametrize("format", FORMATS)
def test_convert(tmp_path: Path, small: Path, format: str) -> None:
    """Planes stay in their layout; GGUF has no type for MXFP6 and MXFP8, and BF16 all values."""
    gptoss.quantize(small, tmp_path / "planes", format, to="hf")
    gptoss.convert(tmp_path / "planes", tmp_path / "copy")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "planes" / name).read_bytes()
    report = gptoss.convert(tmp_path / "planes", tmp_path / "model.gguf")
    noted = any(f"weights of {format}" in note and "BF16 (10" in note for note in report.notes)
    assert noted == (format != "MXFP4")
    errors = gptoss.compare(tmp_path / "planes", tmp_path / "model.gguf")
    assert all(error.max_abs == 0 for error in errors)


def test_widths_that_no_block_divides(tmp_path: Path, rng: np.random.Generator) -> None:
    spec = Spec(hidden_size=64, intermediate_size=64, num_heads=2, head_dim=20)
    model = write_model(tmp_path / "model", spec, rng)
    report = gptoss.quantize(model, tmp_path / "out", "MXFP8")
    assert report.formats["MXFP8_E4M3"] == 8
    assert any("width 40 become BF16, as MXFP8_E4M3 has blocks of 32" in n for n in report.notes)


@pytest.mark.parametrize(
    ("output", "type", "options", "text"),
    [
        ("out.gguf", "MXFP8", {}, "no type of GGUF holds MXFP8_E4M3.*name a directory"),
        ("out.gguf", "MXFP6", {"to": "hf"}, "no type of GGUF holds MXFP6_E2M3"),
        ("out", "MXFP8", {"to": "gguf"}, "no type of GGUF holds MXFP8_E4M3"),
        ("out.gguf", "Q8_0", {"rules": ["output.*=MXFP8_E5M2"]}, "no type of GGUF.*MXFP8_E5M2"),
        ("out", "Q8_0", {"to": "hf"}, "Q8_0 is a format of GGUF files"),
        ("out", "MXFP8", {"rules": ["output.*=Q6_K"]}, "Q6_K is a format of GGUF files"),
        ("out", "MXFP8", {"to": "onnx"}, "must be 'gguf' or 'hf'"),
        ("out", "MXFP9", {}, "cannot be stored as 'MXFP9'.*MXFP"),
        ("out", "MXFP8", {"rules": ["*_gate_exps.weight=MXFP6"]}, "gate and up.*give both one"),
    ],
)
def test_refusals(
    tmp_path: Path, small: Path, output: str, type: str, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(gptoss.ArgumentError, match=text):
        gptoss.quantize(small, tmp_path / output, type, **options)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_encoded(tmp_path: Path, rng: np.random.Generator) -> None:
    spec = Spec(num_layers=1)
    tensors = random_tensors(spec, rng)
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name][3, 5] = np.inf
    mx_models.write(tmp_path / "model", hf_config(spec), tensors)
    with pytest.raises(gptoss.NumericError, match="MXFP8_E4M3 cannot hold") as caught:
        gptoss.quantize(tmp_path / "model", tmp_path / "out", "MXFP8")
    assert caught.value.tensor == name
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_command_line(tmp_path: Path, small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert main(["quantize", str(small), out, "--type", "mxfp6", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["formats"]["MXFP6_E2M3"] == 10
    assert main(["inspect", out, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert main(["inspect", str(small), "--json"]) == 0
    assert facts["parameters"] == json.loads(capsys.readouterr().out)["parameters"]
    dtypes = {tensor["name"]: tensor["dtype"] for tensor in facts["tensors"]}
    assert dtypes["lm_head.weight_blocks"] == "MXFP6_E2M3"
    assert dtypes["lm_head.weight_scales"] == "uint8"
    assert dtypes["model.layers.0.mlp.experts.down_proj_blocks"] == "MXFP4"
    assert main(["quantize", str(small), out + ".gguf", "--type", "MXFP8"]) != 0
    assert "no type of GGUF" in capsys.readouterr().err


# ---- the demo model ----


@pytest.mark.parametrize("format", [*quantization.PLANES_ALONE, "MXFP4"])
def test_demo(tmp_path: Path, shared: Path, format: str) -> None:
    """All matrices but the routers in one format: near the demo in its predictions, and right where
    it is."""
    rules = [f"*_exps.weight={format}"]
    gptoss.quantize("demo", tmp_path / "out", format, rules=rules, to="hf")
    judge = demo_eval.Judge(shared, "f32", threads=2)
    recorded, tasks = demo_eval.load_recorded(shared), demo_eval.load_items(shared, 2)
    items = [item for task in ("add", "facts", "logic") for item in tasks[task]]
    tokens = [token for item in items for token in demo_eval.prompt_ids(judge.model, item)]
    with gptoss.Model(tmp_path / "out", tokenizer=judge.model.tokenizer) as model:
        score = gptoss.score(model, tokens, reference=judge.model)
        limit = {"MXFP4": 0.2, "MXFP6_E2M3": 0.05, "MXFP8_E4M3": 0.05}.get(format, 0.1)
        assert score.kl is not None and 0 < score.kl.mean() < limit
        judge.model = model
        known = [item for item in items if recorded[item["task"]][item["index"]]]
        assert sum(map(judge, known)) >= len(known) - 1 >= 4
