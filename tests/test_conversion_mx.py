"""gptoss quantize, convert and compare of llama and gpt2 with codes and scales in two planes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mx_models
import numpy as np
import pytest
from dense_models import Gpt2, Llama, Spec, write_hf
from models import Array, Tensors
from mx_models import FORMATS, UNSCALED
from support import assert_same_bits, open_generator, random_tokens
from test_conversion import assert_same_tensors, leftovers, run

import gptoss
from gptoss import mx, weights

SPECS: dict[str, Spec] = {
    "llama": Llama(hidden_size=96, head_dim=32, num_heads=3, num_kv_heads=1, attention_bias=True),
    "llama tied": Llama(tied=True, mlp_bias=True),
    "gpt2": Gpt2(hidden_size=64, num_heads=4, intermediate_size=96),
    "gpt2 untied": Gpt2(hidden_size=32, num_heads=2, intermediate_size=64, tied=False),
    "gpt2 of openai": Gpt2(hidden_size=64, num_heads=4, intermediate_size=96, prefix=""),
}
every_spec = pytest.mark.parametrize("name", SPECS)


@pytest.fixture
def rng() -> np.random.Generator:
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def logits(path: Path) -> Array:
    with gptoss.Model(path, verify=True) as model:
        return open_generator(model, 40).prefill(random_tokens(model, 40), all_logits=True)


def parts(
    spec: Spec, formats: tuple[str, ...], rng: np.random.Generator
) -> tuple[dict[str, Any], Tensors]:
    """config.json and tensors, every matrix, positions too, in one of the formats; made without the
    engine."""
    tensors = spec.tensors(rng, "F32")
    chosen = {
        name: str(rng.choice(formats))
        for name, tensor in tensors.items()
        if mx_models.is_matrix(name, tensor)
    }
    chosen = {name: format for name, format in chosen.items() if format != "F32"}
    planes, _ = mx_models.split(tensors, chosen)
    return spec.config() | {"quantization_config": mx_models.quantization(chosen)}, planes


def mixed(directory: Path, spec: Spec, formats: tuple[str, ...], rng: np.random.Generator) -> Path:
    return mx_models.write(directory, *parts(spec, formats, rng))


def named_by_transformers(directory: Path) -> dict[str, Array]:
    """The tensors, gpt2's with "transformer." in front."""
    with gptoss.Model(directory) as model:
        is_bare = any(name.startswith("wte.") for name in model.tensors)
        return {
            f"transformer.{name}" if is_bare and not name.startswith("lm_head") else name: tensor
            for name, tensor in model.tensors.items()
        }


# ---- convert ----


@every_spec
def test_planes_to_gguf_and_back(tmp_path: Path, name: str, rng: np.random.Generator) -> None:
    """BF16 has all values of MXFP6 and MXFP8, and GGUF has MXFP4: no weight changes."""
    planes = mixed(tmp_path / "planes", SPECS[name], FORMATS, rng)
    report = gptoss.convert(planes, tmp_path / "m.gguf")
    stored = {weight.name: weight.format for weight in weights.Source(planes).weights()}
    for format in UNSCALED:
        count = sum(
            stored[name] == format for name in stored if not name.startswith("position_embd")
        )
        note = f"weights of {format}, which GGUF has no type for, become BF16 ({count} tensors)"
        assert (note in report.notes) == (count > 0)
    assert report.formats.get("MXFP4", 0) == sum(
        format == "MXFP4" for name, format in stored.items() if not name.startswith("position_")
    )
    assert all(error.max_abs == 0 for error in gptoss.compare(planes, tmp_path / "m.gguf"))
    gptoss.convert(tmp_path / "m.gguf", tmp_path / "back")
    assert all(error.max_abs == 0 for error in gptoss.compare(tmp_path / "back", planes))
    expected = logits(planes)
    for path in (tmp_path / "m.gguf", tmp_path / "back"):
        np.testing.assert_allclose(logits(path), expected, atol=2e-3 * np.abs(expected).max())


@every_spec
def test_planes_stay_planes(
    tmp_path: Path, name: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    planes = mixed(tmp_path / "planes", SPECS[name], (*FORMATS, "F32"), rng)
    monkeypatch.setattr(weights, "_PIECE_ELEMENTS", 200)
    gptoss.convert(planes, tmp_path / "copy", max_shard_size="20kB")
    expected, found = named_by_transformers(planes), named_by_transformers(tmp_path / "copy")
    assert expected.keys() == found.keys()
    for tensor, values in found.items():
        if tensor.endswith(("_blocks", "_scales")):
            assert values.tobytes() == expected[tensor].tobytes(), tensor
    assert_same_bits(logits(tmp_path / "copy"), logits(planes))


# ---- quantize ----


@pytest.mark.parametrize("format", FORMATS)
@every_spec
def test_quantize(tmp_path: Path, name: str, format: str, rng: np.random.Generator) -> None:
    """Blocks lie along the inputs, whichever way the matrix was stored."""
    hf = write_hf(tmp_path / "hf", SPECS[name], rng, "BF16")
    report = gptoss.quantize(hf, tmp_path / "out", format, to="hf")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "mx", "format": format}
    plain, made = named_by_transformers(hf), named_by_transformers(tmp_path / "out")
    element, count = mx.ELEMENTS[format], 0
    for tensor, values in plain.items():
        if values.ndim < 2 or "wpe." in tensor:
            assert made.pop(tensor).tobytes() == values.tobytes(), tensor
            continue
        rows = values.T if ".c_" in tensor else values
        codes, scales = mx.encode(np.ascontiguousarray(rows), element, scale="search")
        blocks = made.pop(f"{tensor}_blocks")
        assert blocks.tobytes() == mx.pack(codes, element).tobytes(), tensor
        assert made.pop(f"{tensor}_scales").tobytes() == scales.tobytes(), tensor
        count += 1
    assert not made and report.formats == {"BF16": len(plain) - count, format: count}
    errors = gptoss.compare(hf, tmp_path / "out")
    assert max(error.relative_rms for error in errors) < (0.2 if format == "MXFP4" else 0.1)
    assert sum(error.formats[1] == format for error in errors) == count


@every_spec
def test_quantize_is_the_same_from_gguf(
    tmp_path: Path, name: str, rng: np.random.Generator
) -> None:
    """Rows of queries and keys change places with their scales; embeddings and positions by
    rules."""
    hf = write_hf(tmp_path / "hf", SPECS[name], rng, "F32")
    gptoss.convert(hf, tmp_path / "m.gguf")
    rules = ["*_embd.weight=MXFP8_E5M2", "*attn_[qo]*.weight=MXFP6", "*ffn_down.weight=MXFP4"]
    for source in (hf, tmp_path / "m.gguf"):
        out = tmp_path / f"from {source.stem}"
        report = gptoss.quantize(source, out, "MXFP8", rules=rules, max_shard_size=20_000)
        assert {"MXFP8_E5M2", "MXFP6_E2M3", "MXFP4", "MXFP8_E4M3"} <= set(report.formats)
        assert len(list(out.glob("model-*.safetensors"))) > 1
    assert_same_tensors(tmp_path / "from hf", tmp_path / "from m")
    assert_same_bits(logits(tmp_path / "from hf"), logits(tmp_path / "from m"))


@pytest.mark.parametrize("format", UNSCALED)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_logits_are_those_of_what_it_decodes_to(
    tmp_path: Path, name: str, format: str, rng: np.random.Generator
) -> None:
    hf = write_hf(tmp_path / "hf", SPECS[name], rng, "BF16")
    gptoss.quantize(hf, tmp_path / "planes", format)
    gptoss.quantize(tmp_path / "planes", tmp_path / "plain", "BF16", rules=["*=BF16"], to="hf")
    with gptoss.Model(tmp_path / "plain") as model:
        assert not any(name.endswith("_blocks") for name in model.tensors)
    assert_same_bits(logits(tmp_path / "planes"), logits(tmp_path / "plain"))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_fewer_bits_stay(tmp_path: Path, name: str, rng: np.random.Generator) -> None:
    planes = mixed(tmp_path / "planes", SPECS[name], ("MXFP6_E2M3",), rng)
    report = gptoss.quantize(planes, tmp_path / "again", "MXFP8")
    assert any("stay MXFP6_E2M3" in note for note in report.notes)
    assert_same_bits(logits(tmp_path / "again"), logits(planes))
    report = gptoss.quantize(planes, tmp_path / "q.gguf", "Q8_0")
    assert report.formats["Q8_0"] == sum(
        weight.format == "MXFP6_E2M3" and not weight.name.startswith("position_embd")
        for weight in weights.Source(planes).weights()
    )
    errors = gptoss.compare(planes, tmp_path / "q.gguf")
    assert 0 < max(error.relative_rms for error in errors) < 0.01


@pytest.mark.parametrize("hidden", [33, 48, 80])
def test_widths_that_no_block_divides(
    tmp_path: Path, hidden: int, rng: np.random.Generator
) -> None:
    """The MLP's down projection alone has whole blocks."""
    for spec in (
        Llama(hidden_size=hidden, num_heads=3, num_kv_heads=1, head_dim=6),
        Gpt2(hidden_size=hidden, num_heads=1, intermediate_size=64),
    ):
        hf = write_hf(tmp_path / f"{spec}", spec, rng, "BF16")
        report = gptoss.quantize(hf, tmp_path / "out", "MXFP8", force=True)
        assert report.formats["MXFP8_E4M3"] == spec.num_layers
        note = f"matrices of width {hidden} become BF16, as MXFP8_E4M3 has blocks of 32"
        assert any(text.startswith(note) for text in report.notes)
        logits(tmp_path / "out")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_cannot_be_encoded(tmp_path: Path, name: str, rng: np.random.Generator) -> None:
    spec = SPECS[name]
    tensors = spec.tensors(rng, "F32")
    for bad in (np.inf, -np.inf, np.nan):
        tensor = str(rng.choice([n for n in tensors if tensors[n].ndim == 2 and "wpe" not in n]))
        broken = tensors[tensor].copy()
        broken[tuple(rng.integers(broken.shape))] = bad
        mx_models.write(tmp_path / "hf", spec.config(), type(tensors)({**tensors, tensor: broken}))
        with pytest.raises(gptoss.NumericError, match="MXFP8_E4M3 cannot hold") as caught:
            gptoss.quantize(tmp_path / "hf", tmp_path / "out", "MXFP8")
        assert caught.value.tensor == tensor
        assert leftovers(tmp_path) == ["hf"]


def break_planes(config: dict[str, Any], tensors: Tensors, rng: np.random.Generator) -> None:
    """One plane is gone, of another type, of too few rows or of too small blocks, or config.json
    says another format."""
    name = str(rng.choice([name for name in tensors if name.endswith(("_blocks", "_scales"))]))
    match int(rng.integers(5)):
        case 0:
            del tensors[name]
        case 1:
            tensors[name] = tensors[name].astype(np.float32)
        case 2:
            tensors[name] = tensors[name][: int(rng.integers(1, len(tensors[name])))]
        case 3:
            tensors[name] = np.ascontiguousarray(tensors[name][..., :-1])
        case 4:
            config["quantization_config"] = {"quant_method": "mx", "format": "MXFP4"}


@pytest.mark.parametrize("name", SPECS)
def test_malformed_planes(tmp_path: Path, name: str, rng: np.random.Generator) -> None:
    for _ in range(30):
        config, tensors = parts(SPECS[name], UNSCALED, rng)
        break_planes(config, tensors, rng)
        planes = mx_models.write(tmp_path / "planes", config, tensors)
        for act in (
            lambda planes: gptoss.convert(planes, tmp_path / "m.gguf"),
            lambda planes: gptoss.quantize(planes, tmp_path / "out", "MXFP8"),
            lambda planes: gptoss.compare(planes, planes),
        ):
            with pytest.raises(gptoss.FormatError) as caught:
                act(planes)
            assert caught.value.file and caught.value.tensor
            assert leftovers(tmp_path) == ["planes"]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(5)
    hf, out = write_hf(tmp_path / "hf", SPECS["gpt2"], rng, "BF16"), tmp_path / "out"
    code, text, _ = run(
        capsys, "quantize", hf, out, "--type", "mxfp8", "--max-shard-size", "20kB", "--json"
    )
    assert code == 0 and json.loads(text)["formats"]["MXFP8_E4M3"] == 9
    assert len(list(out.glob("model-*.safetensors"))) > 1
    code, text, _ = run(capsys, "compare", hf, out)
    assert code == 0 and "MXFP8_E4M3" in text
    code, _, error = run(capsys, "quantize", hf, tmp_path / "q.gguf", "--max-shard-size", "1GB")
    assert code != 0 and "a GGUF file is one" in error
    assert leftovers(tmp_path) == ["hf", "out"]
