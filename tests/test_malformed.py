"""Malformed checkpoints by the hundred: each is refused with an exception that says what is wrong
and where.

None may crash, hang (each test has a minute) or allocate by a size that a file only claims.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from malformed import SOUND, SPEC, refused, write
from models import (
    Tensors,
    hf_config,
    safetensors_header,
    split_shards,
    write_model,
    write_shards,
)

import gptoss

pytestmark = pytest.mark.usefixtures("one_minute", "modest_memory")

QUERY = "model.layers.0.self_attn.q_proj.weight"
BLOCKS = "model.layers.1.mlp.experts.gate_up_proj_blocks"
SCALES = "model.layers.1.mlp.experts.gate_up_proj_scales"


def test_the_sound_model_opens(tmp_path: Path) -> None:
    with gptoss.Model(write(tmp_path), verify=True) as model:
        assert len(model.tensors) == len(SOUND)


# ---- tensors: missing, of another shape, of another dtype ----


@pytest.mark.parametrize("name", SOUND)
def test_tensor_missing(tmp_path: Path, name: str) -> None:
    tensors = dict(SOUND)
    del tensors[name]
    with pytest.raises(gptoss.FormatError, match="missing") as caught:
        gptoss.Model(write(tmp_path, tensors=tensors))
    assert caught.value.tensor is not None
    # Without its blocks an expert matrix is taken to be unquantised, and then that name is missed.
    assert caught.value.tensor in (name, name.removesuffix("_blocks"))
    assert caught.value.expected and caught.value.found


@pytest.mark.parametrize("change", ["row more", "column less", "flat", "one more axis", "empty"])
@pytest.mark.parametrize("name", SOUND)
def test_tensor_shape(tmp_path: Path, name: str, change: str) -> None:
    tensors = dict(SOUND)
    tensor = tensors[name]
    changed = {
        "row more": np.concatenate([tensor, tensor[:1]]),
        "column less": tensor[..., :-1],
        "flat": tensor.reshape(1, -1) if tensor.ndim == 1 else tensor.reshape(-1),
        "one more axis": tensor[None] if tensor.ndim < 4 else tensor[..., :0],
        "empty": tensor[:0],
    }[change]
    error = refused(write(tmp_path, tensors=tensors | {name: changed}), tensor=name)
    assert error.offset is not None and error.expected and error.found
    assert str(list(changed.shape)) == error.found


@pytest.mark.parametrize("dtype", ["I8", "BOOL", "F8_E4M3", "I16", "U16", "I32", "F64", "I64"])
@pytest.mark.parametrize("name", [QUERY, BLOCKS, SCALES, "model.norm.weight", "lm_head.weight"])
def test_tensor_dtype(tmp_path: Path, name: str, dtype: str) -> None:
    """The header claims another dtype for an array of the right shape."""
    widths = {"I8": 1, "BOOL": 1, "F8_E4M3": 1, "F64": 8, "I64": 8, "I32": 4}
    carriers = {1: np.uint8, 2: np.float16, 4: np.float32, 8: np.complex64}
    tensors = dict(SOUND)
    shape = tensors[name].shape
    tensors[name] = np.zeros(shape, carriers[widths.get(dtype, 2)])
    header = claimed_header(tensors, {name: {"dtype": dtype}})
    error = refused(write(tmp_path, tensors=tensors, header=header), tensor=name)
    assert error.found == dtype and error.expected


def claimed_header(tensors: Tensors, changes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A sound header but for some keys of some entries."""
    known = {
        name: t if t.dtype != np.complex64 else t.view(np.float32) for name, t in tensors.items()
    }
    header = safetensors_header(known)
    for name, change in changes.items():
        header[name] = header[name] | {"shape": list(tensors[name].shape)} | change
    return header


# ---- the header of a safetensors file ----

END = sum(tensor.nbytes for tensor in SOUND.values())
BEGIN, STOP = safetensors_header(SOUND)[QUERY]["data_offsets"]
SHAPE = list(SOUND[QUERY].shape)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "F4"},
        {"dtype": "BF17"},
        {"dtype": ""},
        {"dtype": None},
        {"dtype": 7},
        {"dtype": ["BF16"]},
        {"dtype": "F8_E8M0"},
        {"shape": None},
        {"shape": "128, 64"},
        {"shape": {}},
        {"shape": [SHAPE[0]]},
        {"shape": [SHAPE[0], -SHAPE[1]]},
        {"shape": [-SHAPE[0], -SHAPE[1]]},
        {"shape": [SHAPE[0], SHAPE[1] + 0.5]},
        {"shape": [SHAPE[0], str(SHAPE[1])]},
        {"shape": [SHAPE[0], True]},
        {"shape": [SHAPE[0], None]},
        {"shape": [2**53, 2**53]},
        {"shape": [2**32, 2**32]},
        {"shape": [2**63, 2]},
        {"shape": [2**62, 4, 128, 64]},
        {"shape": [1e300, 1]},
        {"shape": [2**64 + SHAPE[0], SHAPE[1]]},
        {"shape": [SHAPE[0], SHAPE[1] + 2**63]},
        {"shape": [1] * 5 + SHAPE},
        {"shape": [1] * 100_000},
        {"data_offsets": None},
        {"data_offsets": []},
        {"data_offsets": [BEGIN]},
        {"data_offsets": [BEGIN, STOP, STOP]},
        {"data_offsets": [STOP, BEGIN]},
        {"data_offsets": [BEGIN, str(STOP)]},
        {"data_offsets": [BEGIN + 0.5, STOP + 0.5]},
        {"data_offsets": [-2, STOP - BEGIN - 2]},
        {"data_offsets": [BEGIN, STOP + 1]},
        {"data_offsets": [BEGIN + 1, STOP]},
        {"data_offsets": [BEGIN, BEGIN]},
        {"data_offsets": [END, END + STOP - BEGIN]},
        {"data_offsets": [2**63, 2**63 + STOP - BEGIN]},
        {"data_offsets": [2**64 - 8, 2**64 - 8 + STOP - BEGIN]},
        {"data_offsets": [2**53, 2**53 + STOP - BEGIN]},
        {"data_offsets": [1e300, 1e300]},
        {"data_offsets": {"begin": BEGIN, "end": STOP}},
        {"shape": [0, 64], "data_offsets": [END + 1, END + 1]},
        {"shape": [0, 2**53], "data_offsets": [BEGIN, BEGIN + 2]},
    ],
    ids=lambda change: repr(change)[:60],
)
def test_header_entry(tmp_path: Path, change: dict[str, Any]) -> None:
    header = claimed_header(SOUND, {QUERY: change})
    error = refused(write(tmp_path, header=header), tensor=QUERY)
    assert error.expected and error.found


@pytest.mark.parametrize("entry", [None, 7, "x", [], [[]], True], ids=repr)
def test_header_entry_is_no_object(tmp_path: Path, entry: Any) -> None:
    header = safetensors_header(SOUND) | {QUERY: entry}
    refused(write(tmp_path, header=header), tensor=QUERY)


@pytest.mark.parametrize("shift", [-2, 2, -1, 1])
def test_overlap_and_hole(tmp_path: Path, shift: int) -> None:
    """Sizes are right and within the file, but one tensor's bytes belong to two, or to none."""
    header = claimed_header(SOUND, {QUERY: {"data_offsets": [BEGIN + shift, STOP + shift]}})
    with pytest.raises(gptoss.FormatError, match=r"overlap|hole") as caught:
        gptoss.Model(write(tmp_path, header=header))
    assert caught.value.tensor in SOUND and caught.value.offset is not None


def test_all_tensors_at_one_place(tmp_path: Path) -> None:
    header = claimed_header(SOUND, {n: {"data_offsets": [0, t.nbytes]} for n, t in SOUND.items()})
    with pytest.raises(gptoss.FormatError, match=r"overlap|hole"):
        gptoss.Model(write(tmp_path, header=header))


def header_text(**entries: Any) -> bytes:
    return json.dumps(safetensors_header(SOUND) | entries).encode()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b"7",
        b"{",
        header_text()[:-1],
        header_text()[:-1] + b",",
        header_text() + b"}",
        header_text() + b"\0\0\0\0\0\0\0\0",
        header_text().replace(b'"BF16"', b'"BF\xff6"', 1),
        header_text().replace(b"q_proj", b"q_\xc3\x28roj", 1),
        header_text().replace(b"[0,", b"[NaN,").replace(b"[0, ", b"[NaN, "),
        header_text().replace(b'"shape": [', b'"shape": [' + b"[" * 5000, 1),
        b'{"a":' * 50_000,
        b"[" * 500_000,
        json.dumps(safetensors_header(SOUND)).encode("utf-16"),
    ],
    ids=lambda text: repr(text[:24]) + f"+{len(text)}",
)
def test_header_text(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(gptoss.FormatError) as caught:
        gptoss.Model(write(tmp_path, header=text))
    assert Path(str(caught.value.file)).name == "model.safetensors"


@pytest.mark.parametrize("name", [QUERY, "lm_head.weight"])
def test_duplicate_name(tmp_path: Path, name: str) -> None:
    header = safetensors_header(SOUND)
    size = header[name]["data_offsets"][1] - header[name]["data_offsets"][0]
    entry = json.dumps(header[name] | {"data_offsets": [END, END + size]})
    text = json.dumps(header).encode()[:-1] + f', "{name}": {entry}}}'.encode()
    tensors = dict(SOUND) | {"copy": SOUND[name]}
    error = refused(write(tmp_path, tensors=tensors, header=text), tensor=name)
    assert error.offset is not None


@pytest.mark.parametrize(
    "length",
    [
        1,
        2**16,
        END,
        END + 2**20,
        100_000_000,
        100_000_001,
        2**31,
        2**32,
        2**63 - 1,
        2**63,
        2**64 - 8,
        2**64 - 1,
    ],
)
def test_header_length(tmp_path: Path, length: int) -> None:
    path = write(tmp_path) / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(struct.pack("<Q", length) + data[8:])
    refused(tmp_path)


def test_header_length_in_a_huge_sparse_file(tmp_path: Path) -> None:
    path = write(tmp_path) / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(struct.pack("<Q", 1 << 36) + data[8:])
    os.truncate(path, 1 << 37)
    error = refused_mapped(tmp_path)
    assert "100000000" in str(error)


def refused_mapped(path: Path) -> gptoss.Error:
    with pytest.raises(gptoss.FormatError) as caught:
        gptoss.Model(path)
    return caught.value


@pytest.mark.parametrize(
    "kept", [*range(1, 10), "header/2", "header-1", "header", "header+1", "half", "all-1"]
)
def test_truncated(tmp_path: Path, kept: int | str) -> None:
    path = write(tmp_path) / "model.safetensors"
    data = path.read_bytes()
    header = 8 + struct.unpack_from("<Q", data)[0]
    places = {
        "header/2": header // 2,
        "header-1": header - 1,
        "header": header,
        "header+1": header + 1,
        "half": len(data) // 2,
        "all-1": len(data) - 1,
    }
    os.truncate(path, places[kept] if isinstance(kept, str) else kept)
    with pytest.raises(gptoss.FormatError) as caught:
        gptoss.Model(tmp_path)
    assert Path(str(caught.value.file)).name == "model.safetensors"


@pytest.mark.parametrize("count", [1, 2, 4096])
def test_bytes_behind_the_last_tensor(tmp_path: Path, count: int) -> None:
    with open(write(tmp_path) / "model.safetensors", "ab") as file:
        file.write(bytes(count))
    error = refused(tmp_path)
    assert error.offset is not None


# ---- directories, shards and their index ----


def write_sharded(directory: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A sound sharded model; change(index) alters its index in place or returns another."""
    write_model(directory, SPEC, np.random.default_rng(0), "hf_sharded")
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    changed = change(index)
    path.write_text(json.dumps(index if changed is None else changed))
    return directory


def set_file(name: Any) -> Callable[[dict[str, Any]], None]:
    return lambda index: index["weight_map"].update({QUERY: name})


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    "name",
    [
        "../model-00000-of-00002.safetensors",
        "../../etc/passwd",
        "/etc/passwd",
        "sub/model.safetensors",
        "./model-00000-of-00002.safetensors",
        "..",
        ".",
        "",
        ".hidden.safetensors",
        "config.json",
        "model.bin",
        "model-00000-of-00002.safetensors/",
        7,
        None,
        [],
        {},
        True,
    ],
    ids=repr,
)
def test_index_names_a_file_elsewhere(tmp_path: Path, name: Any) -> None:
    refused(write_sharded(tmp_path, set_file(name)), file=INDEX, tensor=QUERY)


def test_index_names_a_missing_shard(tmp_path: Path) -> None:
    name = "model-00009-of-00002.safetensors"
    error = refused(
        write_sharded(tmp_path, set_file(name)),
        file=name,
        kind=(gptoss.FileError, gptoss.FormatError),
    )
    assert name in str(error)


@pytest.mark.parametrize("shard", range(3))
def test_shard_deleted(tmp_path: Path, shard: int) -> None:
    name = f"model-{shard:05d}-of-00002.safetensors"
    write_sharded(tmp_path, lambda index: None)
    (tmp_path / name).unlink()
    refused(tmp_path, file=name, kind=(gptoss.FileError, gptoss.FormatError))


def test_index_names_the_wrong_shard(tmp_path: Path) -> None:
    def swap(index: dict[str, Any]) -> None:
        files = sorted(set(index["weight_map"].values()))
        index["weight_map"][QUERY] = files[files.index(index["weight_map"][QUERY]) - 1]

    error = refused(write_sharded(tmp_path, swap), file=INDEX, tensor=QUERY)
    assert error.expected and error.found


def test_index_names_a_tensor_that_is_nowhere(tmp_path: Path) -> None:
    def add(index: dict[str, Any]) -> None:
        index["weight_map"]["ghost"] = index["weight_map"][QUERY]

    refused(write_sharded(tmp_path, add), file=INDEX, tensor="ghost")


@pytest.mark.parametrize(
    "index",
    [[], {}, {"weight_map": None}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": "x"}, 7],
    ids=repr,
)
def test_index_of_another_kind(tmp_path: Path, index: Any) -> None:
    refused(write_sharded(tmp_path, lambda _: index), file=INDEX)


@pytest.mark.parametrize(
    "text", [b"\xff", b"{", b"", b"{}x", b"[" * 100_000], ids=lambda t: repr(t[:9])
)
def test_index_text(tmp_path: Path, text: bytes) -> None:
    write_sharded(tmp_path, lambda _: None)
    (tmp_path / INDEX).write_bytes(text)
    refused(tmp_path, file=INDEX)


def test_one_tensor_in_two_shards(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(hf_config(SPEC)))
    shards = split_shards(dict(SOUND), 2)
    other = shards[1] if QUERY in shards[0] else shards[0]
    other[QUERY] = SOUND[QUERY]
    write_shards(tmp_path, shards, ["a.safetensors", "b.safetensors"])
    with pytest.raises(gptoss.FormatError) as caught:
        gptoss.Model(tmp_path)
    assert caught.value.tensor == QUERY


FILES = ["config.json", "model.safetensors"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", ["empty", "directory", "pipe", "dangling", "loop"])
def test_something_else_in_place_of_a_file(tmp_path: Path, file: str, kind: str) -> None:
    path = write(tmp_path) / file
    path.unlink()
    if kind == "empty":
        path.touch()
    elif kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere" if kind == "dangling" else file)
    with pytest.raises((gptoss.FormatError, gptoss.FileError)) as caught:
        gptoss.Model(tmp_path)
    assert caught.value.file is not None


def test_devices_in_place_of_weights(tmp_path: Path) -> None:
    path = write(tmp_path) / "model.safetensors"
    path.unlink()
    path.symlink_to("/dev/zero")
    refused(tmp_path)


@pytest.mark.parametrize("file", FILES)
def test_file_missing(tmp_path: Path, file: str) -> None:
    (write(tmp_path) / file).unlink()
    with pytest.raises(gptoss.FormatError, match=file):
        gptoss.Model(tmp_path)


def test_paths_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(gptoss.FileError):
        gptoss.Model(tmp_path / "nowhere")
    with pytest.raises(gptoss.FormatError):
        gptoss.Model(tmp_path)
    for name in ("weights.bin", "alone.safetensors"):
        (tmp_path / name).write_bytes(b"x" * 100)
        with pytest.raises(gptoss.FormatError):
            gptoss.Model(tmp_path / name)


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    directory = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    directory.mkdir()
    with gptoss.Model(write(directory)) as model:
        assert model.config.num_layers == 2
    os.truncate(directory / "model.safetensors", 20)
    refused(directory)


# ---- values ----


@pytest.mark.parametrize("place", [0, 17, -1])
def test_nan_scale(tmp_path: Path, place: int) -> None:
    """0xFF is NaN: found by verify, and by the logits of whoever did not look."""
    tensors = dict(SOUND)
    scales = tensors[SCALES].copy()
    scales[:, 0, 0] = 0xFF
    tensors[SCALES] = scales
    with gptoss.Model(write(tmp_path, tensors=tensors)) as model:
        assert np.isnan(model.expert(layer=1, expert=3).gate[0, :32]).all()
        generator = gptoss.Generator(model)
        with pytest.raises(gptoss.NumericError):
            generator.prefill([1, 2, 3])
            generator.sample(gptoss.Sampling(temperature=0))
    scales = SOUND[SCALES].copy()
    scales.reshape(-1)[place] = 0xFF
    tensors[SCALES] = scales
    write(tmp_path, tensors=tensors)
    with pytest.raises(gptoss.FormatError) as caught:
        gptoss.Model(tmp_path, verify=True)
    error = caught.value
    assert error.tensor == SCALES and error.offset is not None and "0xFF" in str(error)
    with open(tmp_path / "model.safetensors", "rb") as file:
        file.seek(error.offset)
        assert file.read(1) == b"\xff"
    header = safetensors_header(tensors)[SCALES]["data_offsets"]
    assert error.offset >= header[0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [QUERY, "model.norm.weight", "model.layers.0.self_attn.sinks"])
def test_verify_finds_what_is_not_finite(tmp_path: Path, name: str, value: float) -> None:
    tensors = dict(SOUND)
    tensors[name] = tensors[name].copy()
    tensors[name].reshape(-1)[-1] = value
    write(tmp_path, tensors=tensors)
    with gptoss.Model(tmp_path):
        pass
    with pytest.raises(gptoss.FormatError) as caught:
        gptoss.Model(tmp_path, verify=True)
    assert caught.value.tensor == name and caught.value.offset is not None
