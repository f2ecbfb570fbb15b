"""`gptoss inspect` of files: containers, parts, metadata, models that the engine does not run."""

# ruff: noqa: F811

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf_models
import numpy as np
import pytest
from gguf_models import Values, raw_tensor, read_raw, write_parts, write_raw
from models import Spec, write_model, write_safetensors
from test_cli import cli  # noqa: F401

import gptoss
from gptoss import write_gguf


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of another family, in a format that is only listed."""
    monkeypatch.setitem(write_gguf.TYPES, "IQ2_XS", (17, 256, 74))
    monkeypatch.setitem(write_gguf.TYPES, "Q2_0", (42, 1, 1))
    values: Values = {
        "general.architecture": (8, "some-family"),
        "general.name": (8, "red \x1b[31m and \udcff"),
        "x.epsilon": (6, 1e-5),
        "x.numbers": (9, (5, list(range(300)))),
        "x.nan": (12, float("nan")),
        "x.none": (9, (4, [])),
        "x.nans": (9, (6, [float("inf"), 0.1])),
        "tokenizer.chat_template": (8, "{{ messages }}\n" * 40),
        "tokenizer.ggml.tokens": (9, (8, ["<|im\nstart|>", "b" * 500] * 3)),
    }
    shapes = {"blk.10.a.weight": (2, 512), "blk.2.a.weight": (2, 512)}
    tensors = [(raw_tensor(name, shape, "IQ2_XS"), bytes(296)) for name, shape in shapes.items()]
    tensors.append((raw_tensor("odd", (7,), "Q2_0"), bytes(32)))
    return write_raw(tmp_path / "other.gguf", values, tensors)


def test_a_family_that_is_not_run(cli: Any, other: Path) -> None:
    code, out, err = cli("inspect", other)
    assert (code, err) == (0, "")
    assert "GGUF version 3" in out and "\x1b" not in out and "red \u241b[31m" in out
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert "1e-05" in lines["x.epsilon"]
    assert "i32[300]  [0, 1, 2, 3, 4, 5, 6, 7, \u2026]" in lines["x.numbers"]
    assert lines["x.none"].rstrip().endswith("u32[0]    []")
    assert "{{ messages }}\u23ce" in lines["tokenizer.chat_template"]
    assert "(600 characters)" in lines["tokenizer.chat_template"]
    assert max(map(len, lines.values())) < 200
    assert "IQ2_XS  2 x 512" in lines["blk.N.a.weight"]
    assert "3 tensors, 2.1 K parameters." in out
    assert "Not run by gptoss: " in out and 'unsupported architecture "some-family"' in out


def test_each_tensor_of_it(cli: Any, other: Path) -> None:
    code, out, _ = cli("inspect", other, "--tensors")
    rows = [line.split() for line in out.splitlines() if "other.gguf" in line and " x " in line]
    assert code == 0 and [row[0] for row in rows] == ["blk.2.a.weight", "blk.10.a.weight"]
    assert rows[0][1:6] == ["IQ2_XS", "2", "x", "512", "296"]
    (odd,) = (line.split() for line in out.splitlines() if line.startswith("odd"))
    assert odd[1:4] == ["Q2_0", "7", "?"]


def test_as_json(cli: Any, other: Path) -> None:
    code, out, _ = cli("inspect", other, "--json")
    facts = json.loads(out, parse_constant=pytest.fail)
    values = {entry["key"]: entry for entry in facts["container"]["metadata"]}
    assert code == 0 and "some-family" in facts["reason"]
    size = other.stat().st_size
    assert facts["container"]["files"] == [{"file": str(other), "bytes": size}]
    assert values["x.epsilon"]["value"] == 1e-5 and values["x.nan"]["value"] == "nan"
    assert values["x.numbers"]["first"] == list(range(8)) and values["x.numbers"]["length"] == 300
    assert values["x.nans"]["first"] == ["inf", 0.1]
    assert values["tokenizer.chat_template"]["value"] == "{{ messages }}\n" * 40
    by_name = {tensor["name"]: tensor for tensor in facts["tensors"]}
    assert by_name["odd"]["bytes"] is None
    data = other.read_bytes()
    for tensor in facts["tensors"]:
        num_bytes = tensor["bytes"] or 7
        assert data[tensor["offset"] :][:num_bytes] == bytes(num_bytes)


def test_check_needs_a_model_that_runs(cli: Any, other: Path) -> None:
    code, out, err = cli("inspect", other, "--check")
    assert (code, out) == (1, "") and "some-family" in err


def test_a_model_that_runs_shows_its_metadata_too(cli: Any, tmp_path: Path) -> None:
    whole = gguf_models.write_model(tmp_path / "m.gguf", Spec(), np.random.default_rng(0))
    paths = write_parts(tmp_path, *read_raw(whole), 3)
    code, out, _ = cli("inspect", paths[1], "--context", "1000")
    assert code == 0
    for text in ("3 parts", "m-00002-of-00003.gguf", "gpt-oss.block_count", "memory at 1,000"):
        assert text in out
    facts = json.loads(cli("inspect", paths[1], "--json")[1])
    assert [Path(file["file"]) for file in facts["container"]["files"]] == paths
    assert {tensor["file"] for tensor in facts["tensors"]} == set(map(str, paths))
    assert facts["config"]["num_layers"] == 2


def test_safetensors_of_any_model(cli: Any, tmp_path: Path) -> None:
    """With another model's configuration, and without any."""
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"h.3.weight": np.zeros((3, 5), np.float32)})
    (tmp_path / "config.json").write_text('{"model_type": "other"}')
    for place in (tmp_path, path):
        code, out, _ = cli("inspect", place, "--tensors")
        assert code == 0 and 'unsupported architecture "other"' in out and "safetensors" in out
        row = next(line.split() for line in out.splitlines() if line.startswith("h.3.weight"))
        assert row[1:6] == ["F32", "3", "x", "5", "60"]
    (tmp_path / "config.json").unlink()
    for place in (tmp_path, path):
        code, out, _ = cli("inspect", place)
        assert code == 0 and "config.json" in out and "h.N.weight" not in out.split("Not run")[1]
    code, out, _ = cli("inspect", "demo")
    assert "Not run" not in out and "GGUF" not in out


@pytest.mark.parametrize("damage", [0, 3, 30, 200])
def test_files_that_say_nothing(cli: Any, other: Path, damage: int) -> None:
    other.write_bytes(other.read_bytes()[:damage])
    code, out, err = cli("inspect", other)
    assert (code, out) == (1, "") and "other.gguf" in err and err.count("\n") == 1


# ---- gptoss.Checkpoint ----


def test_checkpoint(other: Path, tmp_path: Path) -> None:
    checkpoint = gptoss.Checkpoint(other)
    assert (checkpoint.gguf_version, checkpoint.path) == (3, other)
    assert checkpoint.files == ((other, other.stat().st_size),)
    assert list(checkpoint.tensors) == ["blk.10.a.weight", "blk.2.a.weight", "odd"]
    tensor = checkpoint.tensors["blk.2.a.weight"]
    assert (tensor.format, tensor.shape, tensor.num_bytes) == ("IQ2_XS", (2, 512), 296)
    assert checkpoint.metadata["general.architecture"] == "some-family"
    assert repr(checkpoint) == f"<gptoss.Checkpoint {str(other)!r}: GGUF version 3, 3 tensors>"
    directory = write_model(tmp_path / "hf", Spec(), np.random.default_rng(0))
    plain = gptoss.Checkpoint(directory)
    assert plain.gguf_version is None and not plain.metadata
    with gptoss.Model(directory) as model:
        assert list(plain.tensors) == list(model.tensors)
        for name, listed in plain.tensors.items():
            info = model.tensor_info(name)
            assert (listed.shape, listed.num_bytes, listed.format, listed.file_offset) == (
                *(info.shape, info.num_bytes, info.format, info.file_offset),
            )


def test_checkpoint_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(gptoss.FileError):
        gptoss.Checkpoint(tmp_path / "none.gguf")
    with pytest.raises(gptoss.FormatError):
        gptoss.Checkpoint(tmp_path)


def test_every_allocation_may_fail(other: Path) -> None:
    gptoss._core.fail_allocation(0)
    gptoss.Checkpoint(other)
    count = gptoss._core.fail_allocation(0)
    assert count > 8
    for n in range(1, count + 1):
        gptoss._core.fail_allocation(n)
        with pytest.raises(gptoss.OutOfMemoryError):
            gptoss.Checkpoint(other)
    gptoss._core.fail_allocation(0)
