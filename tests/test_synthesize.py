"""gptoss.synthetic writes what its presets name, and what it writes runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference
import synthesize

import gptoss
from gptoss import synthetic


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
