"""gptoss.synthetic writes what its presets name, and what it writes runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference
import synthesize
from gguf_models import GgufModel

import gptoss
from gptoss import synthetic, write_gguf


@pytest.mark.parametrize(
    ("preset", "num_tensors", "num_bytes", "num_shards"),
    [("gpt-oss-20b", 459, 13_761_264_768, 3), ("gpt-oss-120b", 687, 65_248_815_744, 15)],
)
def test_plan_equals_the_release(
    preset: str, num_tensors: int, num_bytes: int, num_shards: int
) -> None:
    shards = synthetic.plan_shards(synthetic.PRESETS[preset])
    tensors = [tensor for shard in shards.values() for tensor in shard]
    assert len({tensor.name for tensor in tensors}) == len(tensors) == num_tensors
    assert sum(tensor.num_bytes for tensor in tensors) == num_bytes
    last = num_shards - 1
    assert list(shards) == [f"model-{i:05d}-of-{last:05d}.safetensors" for i in range(num_shards)]


def test_one_layer_straddles_two_shards() -> None:
    shards = list(synthetic.plan_shards(synthetic.PRESETS["gpt-oss-20b"]).values())
    names = [{tensor.name for tensor in shard} for shard in shards]
    experts = "model.layers.6.mlp.experts.gate_up_proj"
    assert f"{experts}_bias" in names[1] and f"{experts}_blocks" in names[2]


def test_mini_model_runs(tmp_path: Path) -> None:
    directory = tmp_path / "mini"
    command = [sys.executable, synthesize.__file__, "--preset", "mini", str(directory)]
    subprocess.run(command, check=True, capture_output=True)
    tokens = np.arange(0, 1024, 7)
    with gptoss.Model(directory) as model:
        logits = gptoss.Generator(model, kv_dtype="f32").prefill(tokens, all_logits=True)
    expected = reference.forward(reference.Model(directory), tokens)["logits"]
    assert 0.1 < expected.std() < 10
    assert np.abs(logits - expected).max() < 1e-3
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 1 and "exists already" in again.stderr


def test_the_bytes_follow_from_the_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        synthetic.synthesize(synthetic.PRESETS["mini"], seed, tmp_path / name)
    shards = {
        name: (tmp_path / name / "model-00000-of-00004.safetensors").read_bytes() for name in "abc"
    }
    assert shards["a"] == shards["b"] != shards["c"]
    assert not list(tmp_path.glob("*.partial"))


# ---- GGUF ----

MINI = synthetic.PRESETS["mini"]


@pytest.mark.parametrize(
    ("preset", "counts", "q8_0_gigabytes"),
    [("gpt-oss-20b", (289, 98, 72), 12.1), ("gpt-oss-120b", (433, 146, 108), 63.4)],
)
def test_gguf_plan_equals_the_release(
    preset: str, counts: tuple[int, int, int], q8_0_gigabytes: float
) -> None:
    """Tensors of F32, Q8_0 and MXFP4 in the files of ggml-org, and their sizes."""
    tensors = write_gguf.plan_tensors(synthetic.config(synthetic.PRESETS[preset]), "Q8_0")
    types = [tensor.type for tensor in tensors]
    assert tuple(map(types.count, ("F32", "Q8_0", "MXFP4"))) == counts
    assert len({tensor.name for tensor in tensors}) == len(tensors)
    assert round(sum(tensor.num_bytes for tensor in tensors) / 1e9, 1) == q8_0_gigabytes


@pytest.mark.parametrize("dense", ["q8_0", "bf16", "f16", "f32"])
def test_both_layouts_hold_the_same_weights(tmp_path: Path, dense: str) -> None:
    synthetic.synthesize(MINI, 3, tmp_path / "hf")
    path = tmp_path / "mini.gguf"
    synthetic.synthesize_gguf(MINI, 3, path, dense)
    expected = reference.Model(tmp_path / "hf")
    model = GgufModel(path, expected.raw_config)
    for layer in (0, MINI.num_layers - 1):
        a, b = expected.experts(layer), model.experts(layer)
        assert np.array_equal(a.gate_up, b.gate_up) and np.array_equal(a.down, b.down)
        assert np.array_equal(a.gate_up_bias, b.gate_up_bias)
    for name in ("model.norm.weight", "model.layers.1.self_attn.sinks"):
        assert np.array_equal(expected[name], model[name])
    for name in ("model.embed_tokens.weight", "model.layers.2.self_attn.v_proj.weight"):
        error = np.abs(expected[name] - model[name]).max() / np.abs(expected[name]).max()
        assert error <= {"q8_0": 0.5 / 127 + 2**-11, "f16": 2**-11}.get(dense, 0.0)
    assert not list(tmp_path.glob("*.partial"))


def test_gguf_runs_from_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "mini.gguf"
    command = [sys.executable, synthesize.__file__, "--layers", "2", "--layout", "gguf", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    tokens = np.arange(0, 1024, 9)
    with gptoss.Model(path, verify=True) as model:
        assert model.config.num_layers == 2 and model.config.max_positions == 131072
        logits = gptoss.Generator(model, kv_dtype="f32").prefill(tokens, all_logits=True)
    config = synthetic.config(MINI) | {"num_hidden_layers": 2, "layer_types": None}
    expected = reference.forward(GgufModel(path, config), tokens)["logits"]
    assert 0.1 < expected.std() < 10
    assert np.abs(logits - expected).max() < 1e-3
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 1 and "exists already" in again.stderr


@pytest.mark.parametrize(
    "arguments", [["--dense", "f16", "x"], ["--layout", "gguf", "x"], ["--layers", "0", "x"]]
)
def test_options_that_do_not_fit(arguments: list[str]) -> None:
    command = [sys.executable, synthesize.__file__, *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and "error:" in result.stderr


def test_nothing_is_left_of_an_interrupted_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(values: object, type_name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(write_gguf, "pack", stop)
    with pytest.raises(KeyboardInterrupt):
        synthetic.synthesize_gguf(MINI, 0, tmp_path / "mini.gguf")
    assert not list(tmp_path.iterdir())
