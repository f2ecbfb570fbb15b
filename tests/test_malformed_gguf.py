"""Malformed GGUF files: each is refused with an exception that says what is wrong and where.

None may crash, hang (each test has a minute) or allocate by a size that a file only claims.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_models import Weights
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Spec, hf_config, random_tensors
from support import open_generator

import gptoss
from gptoss import write_gguf

pytestmark = pytest.mark.usefixtures("one_minute", "modest_memory")

SPEC = Spec(num_layers=2, vocab_size=64)
CONFIG = hf_config(SPEC)
WEIGHTS = Weights(random_tensors(SPEC, np.random.default_rng(0)))
PLAN = write_gguf.plan_tensors(CONFIG, "Q8_0")
DATA = {tensor.name: b"".join(write_gguf.encoded(tensor, WEIGHTS)) for tensor in PLAN}

QUERY = "blk.0.attn_q.weight"
GATE = "blk.1.ffn_gate_exps.weight"
NORM = "output_norm.weight"


@dataclass
class Entry:
    """A tensor as its file claims it; dims: fastest first."""

    name: bytes
    dims: list[int]
    type: int
    offset: int


@dataclass
class File:
    """A sound file, to be spoilt."""

    magic: bytes = b"GGUF"
    version: int = 3
    values: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)  # type, encoded value
    more_values: bytes = b""  # appended, and counted
    num_more: int = 0
    entries: list[Entry] = field(default_factory=list)
    num_values: int | None = None
    num_tensors: int | None = None
    alignment: int = 32

    def __post_init__(self) -> None:
        for key, (kind, value) in write_gguf.metadata(CONFIG, "sound").items():
            self.values[key.encode()] = (kind, write_gguf._value(kind, value))
        offset = 0
        for tensor in PLAN:
            dims = list(reversed(tensor.shape))
            kind = write_gguf.TYPES[tensor.type][0]
            self.entries.append(Entry(tensor.name.encode(), dims, kind, offset))
            offset += -(-tensor.num_bytes // 32) * 32

    def entry(self, name: str) -> Entry:
        return next(entry for entry in self.entries if entry.name == name.encode())

    def parts(self) -> list[bytes]:
        """The header, field by field."""
        num_values = len(self.values) + self.num_more
        counts = [
            len(self.entries) if self.num_tensors is None else self.num_tensors,
            num_values if self.num_values is None else self.num_values,
        ]
        parts = [self.magic, struct.pack("<I", self.version)]
        parts += [struct.pack("<Q", count) for count in counts]
        for key, (kind, value) in self.values.items():
            parts += [struct.pack("<Q", len(key)), key, struct.pack("<I", kind), value]
        parts.append(self.more_values)
        for entry in self.entries:
            parts += [struct.pack("<Q", len(entry.name)), entry.name]
            parts.append(struct.pack("<I", len(entry.dims)))
            parts += [struct.pack("<Q", size) for size in entry.dims]
            parts += [struct.pack("<I", entry.type), struct.pack("<Q", entry.offset)]
        return parts

    def write(self, path: Path) -> Path:
        header = b"".join(self.parts())
        header += bytes(-len(header) % self.alignment)
        data = b"".join(DATA[t.name] + bytes(-len(DATA[t.name]) % 32) for t in PLAN)
        path.write_bytes(header + data)
        return path


def refused(
    path: Path,
    *,
    tensor: str | None = None,
    kind: type[gptoss.Error] = gptoss.FormatError,
    match: str = ".",
) -> gptoss.Error:
    """Opens the file, mapped and read. The exception must name file and tensor; returns it."""
    with pytest.raises(kind, match=match) as caught:
        gptoss.Model(path)
    with pytest.raises(kind) as again:
        gptoss.Model(path, mmap=False)
    error: gptoss.Error = caught.value
    assert str(again.value) == str(error)
    assert error.file is not None and Path(error.file).name == path.name, str(error)
    assert path.name in str(error) and "\n" not in str(error)
    assert error.tensor == tensor, str(error)
    assert error.expected and error.found, str(error)
    return error


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def test_the_sound_file_opens(path: Path) -> None:
    with gptoss.Model(File().write(path), verify=True) as model:
        assert len(model.tensors) == len(PLAN)
    spoilt = File(version=2)
    with gptoss.Model(spoilt.write(path)) as model:
        assert len(model.tensors) == len(PLAN)


# ---- the header ----


def test_truncated_at_every_boundary(path: Path) -> None:
    """Between and beside all fields of the header, and inside every tensor's data."""
    file = File()
    whole = file.write(path).read_bytes()
    places, at = {0, 1}, 0
    for part in file.parts():
        at += len(part)
        places |= {at - 1, at, at + 1}
    start = -(-at // 32) * 32
    for entry in file.entries:
        places |= {start + entry.offset, start + entry.offset + 1}
    places.add(start + file.entries[-1].offset + len(DATA[PLAN[-1].name]) - 1)
    assert len(places) > 600
    for place in sorted(places, reverse=True):
        assert place < len(whole)
        os.truncate(path, place)
        with pytest.raises(gptoss.FormatError) as caught:
            gptoss.Model(path)
        assert path.name in str(caught.value), place


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"magic": b"GGML"}, "begins with"),
        ({"magic": b"FUGG"}, "begins with"),
        ({"magic": b"\0\0\0\0"}, "begins with"),
        ({"version": 0}, "version 0"),
        ({"version": 1}, "version 1"),
        ({"version": 4}, "version 4"),
        ({"version": 0x03000000}, "big-endian"),
        ({"version": 2**32 - 1}, "version 4294967295"),
        ({"num_values": 2**63}, "end of the file|number from 0 to 12|nothing|printable"),
        ({"num_values": 2**64 - 1}, "end of the file|number from 0 to 12|nothing|printable"),
        ({"num_values": 5}, "expected"),
        ({"num_values": 0}, "architecture"),
        ({"num_tensors": 2**63}, "end of the file|type|nothing|printable|dimensions"),
        ({"num_tensors": 2**64 - 1}, "end of the file|type|nothing|printable|dimensions"),
        ({"num_tensors": len(PLAN) - 1}, "missing|offset"),
        ({"num_tensors": len(PLAN) + 1}, "expected"),
        ({"num_tensors": 0}, "token_embd"),
    ],
    ids=repr,
)
def test_header(path: Path, change: dict[str, Any], match: str) -> None:
    with pytest.raises((gptoss.FormatError, gptoss.UnsupportedError), match=match) as caught:
        gptoss.Model(dataclasses.replace(File(), **change).write(path))
    assert path.name in str(caught.value) and caught.value.found


def raw(key: bytes, kind: int, value: bytes = b"") -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (struct.pack("<Q", 0) + struct.pack("<II", 4, 7), "key: expected printable ASCII"),
        (struct.pack("<Q", 2**64 - 1), "end of the file"),
        (struct.pack("<Q", 2**63), "end of the file"),
        (raw(b"a\nb", 4, b"\0" * 4), "key: expected printable ASCII, found byte 0x0A"),
        (raw(b"a\xffb", 4, b"\0" * 4), "found byte 0xFF"),
        (raw(b"a\0b", 4, b"\0" * 4), "found byte 0x00"),
        (raw(b"x.y", 13), "key 'x.y': type: expected a number from 0 to 12, found 13"),
        (raw(b"x.y", 2**32 - 1), "key 'x.y': type"),
        (raw(b"x.y", 7, b"\2"), "key 'x.y': value: expected a boolean"),
        (raw(b"x.y", 9, struct.pack("<IQ", 7, 3) + b"\0\1\3"), "a boolean"),
        (raw(b"x.y", 8, struct.pack("<Q", 2**62)), "key 'x.y': text.*end of the file"),
        (raw(b"x.y", 9, struct.pack("<IQ", 9, 1)), "found arrays"),
        (raw(b"x.y", 9, struct.pack("<IQ", 13, 1)), "number from 0 to 12"),
        (raw(b"x.y", 9, struct.pack("<IQ", 4, 2**62)), "end of the file"),
        (raw(b"x.y", 9, struct.pack("<IQ", 10, 2**61)), "end of the file"),
        (raw(b"x.y", 9, struct.pack("<IQ", 12, 2**64 - 1)), "end of the file"),
        (raw(b"x.y", 9, struct.pack("<IQ", 8, 2**64 - 1)), "key 'x.y': text"),
        (raw(b"general.architecture", 8, struct.pack("<Q", 1) + b"x"), "one value of this key"),
        (raw(b"k" * 5000, 13), "key 'kkkk"),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_metadata_value(path: Path, more: bytes, match: str) -> None:
    file = File(more_values=more, num_more=1)
    refused(file.write(path), match=match)


@pytest.mark.parametrize(
    ("kind", "value", "match"),
    [
        (4, struct.pack("<I", 0), "power of two"),
        (4, struct.pack("<I", 48), "power of two"),
        (4, struct.pack("<I", 2**32 - 1), "power of two"),
        (10, struct.pack("<Q", 32), "32 bits"),
        (8, struct.pack("<Q", 2) + b"32", "32 bits"),
        (9, struct.pack("<IQI", 4, 1, 32), "32 bits"),
        (4, struct.pack("<I", 2**31), "offset"),
    ],
)
def test_alignment(path: Path, kind: int, value: bytes, match: str) -> None:
    file = File()
    file.values[b"general.alignment"] = (kind, value)
    with pytest.raises(gptoss.FormatError, match=match):
        gptoss.Model(file.write(path))


@pytest.mark.parametrize("alignment", [1, 8, 16])
def test_a_smaller_alignment_is_sound(path: Path, alignment: int) -> None:
    file = File(alignment=alignment)
    file.values[b"general.alignment"] = (4, struct.pack("<I", alignment))
    sound = File().write(path.with_name("sound.gguf"))
    with gptoss.Model(file.write(path)) as model, gptoss.Model(sound) as plain:
        for name in plain.tensors:
            assert np.array_equal(model.tensors[name], plain.tensors[name])


def test_a_header_that_never_ends_in_a_huge_sparse_file(path: Path) -> None:
    file = File(more_values=raw(b"x", 9, struct.pack("<IQ", 8, 2**60)), num_more=1)
    file.entries = []
    path.write_bytes(b"".join(file.parts()))
    os.truncate(path, 1 << 37)
    with pytest.raises(gptoss.FormatError, match=r"the most a header may have, 2\^28"):
        gptoss.Model(path)


# ---- tensors ----

END = File().entries[-1].offset + len(DATA[PLAN[-1].name])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"dims": [64, 128, 1, 1, 1]}, "at most 4"),
        ({"dims": [1] * 1000}, "at most 4"),
        ({"dims": [63, 128]}, "whole blocks of 32"),
        ({"type": 2, "dims": [63, 128]}, r"whole blocks of 32 \(Q4_0\)"),
        ({"type": 12, "dims": [64, 128]}, r"whole blocks of 256 \(Q4_K\)"),
        ({"type": 14, "dims": [384, 128]}, r"whole blocks of 256 \(Q6_K\), found \[128, 384\]"),
        ({"dims": [2**63, 1]}, r"sizes below 2\^63"),
        ({"dims": [2**64 - 32, 1]}, r"sizes below 2\^63"),
        ({"dims": [2**62, 2**62]}, "fit 64 bits"),
        ({"dims": [32, 2**32, 2**32]}, "fit 64 bits"),
        ({"dims": [2**40, 2**20]}, "bytes of data in the file"),
        ({"dims": []}, "fit 64 bits|whole blocks"),
        ({"dims": [64, 129]}, "overlap|shape"),
        ({"dims": [64, 127]}, r"shape: expected \[128, 64\], found \[127, 64\]"),
        ({"dims": [128, 64]}, r"shape: expected \[128, 64\], found \[64, 128\]"),
        ({"dims": [64, 0]}, "shape"),
        ({"dims": [0, 2**62]}, "shape"),
        ({"dims": [8192]}, "shape"),
        ({"offset": 1}, "a multiple of 32"),
        ({"offset": 2**64 - 1}, "a multiple of 32"),
        ({"offset": 2**64 - 32}, "bytes of data in the file"),
        ({"offset": 2**63}, "bytes of data in the file"),
        ({"offset": END // 32 * 32}, "bytes of data in the file"),
        ({"offset": 0}, "overlap"),
        ({"type": 5}, "number of a known type, found number 5"),
        ({"type": 33}, "known type"),
        ({"type": 1000}, "known type"),
        ({"type": 2**32 - 1}, "known type"),
        ({"type": 24}, "dtype: expected F32, F16, BF16, Q8_0"),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_tensor_entry(path: Path, change: dict[str, Any], match: str) -> None:
    file = File()
    entry = file.entry(QUERY)
    for key, value in change.items():
        setattr(entry, key, value)
    with pytest.raises(gptoss.FormatError, match=match) as caught:
        gptoss.Model(file.write(path))
    assert caught.value.tensor in (t.name for t in PLAN)
    if "overlap" not in match:
        refused(path, tensor=QUERY)


@pytest.mark.parametrize(
    ("number", "name"),
    [(9, "Q8_1"), (15, "Q8_K"), (20, "IQ4_NL"), (23, "IQ4_XS"), (40, "NVFP4"), (4, "Ollama")],
)
def test_formats_that_are_not_read_yet(path: Path, number: int, name: str) -> None:
    file = File()
    file.entry(QUERY).type = number
    error = refused(
        file.write(path), tensor=QUERY, kind=gptoss.UnsupportedError, match="not read yet"
    )
    assert name in str(error)


@pytest.mark.parametrize("name", [b"", b"a\nb", b"\xff", b"nul\0", b"x" * 10_000])
def test_tensor_name(path: Path, name: bytes) -> None:
    file = File()
    file.entry(QUERY).name = name
    with pytest.raises(gptoss.FormatError):
        gptoss.Model(file.write(path))


def test_duplicate_tensor(path: Path) -> None:
    file = File()
    file.entry("blk.1.attn_q.weight").name = QUERY.encode()
    refused(file.write(path), tensor=QUERY, match="one tensor of this name")


@pytest.mark.parametrize("name", [tensor.name for tensor in PLAN])
def test_tensor_missing(path: Path, name: str) -> None:
    file = File()
    file.entry(name).name = b"something.else"
    refused(file.write(path), tensor=name)


@pytest.mark.parametrize("name", [tensor.name for tensor in PLAN if tensor.type == "F32"])
def test_vectors_are_floats(path: Path, name: str) -> None:
    file = File()
    file.entry(name).type = 26
    refused(file.write(path), tensor=name, match="found I32")


# ---- configuration ----


def scalar(kind: int, value: Any) -> tuple[int, bytes]:
    return kind, write_gguf._value(kind, value)


_U32, _I32, _F32, _BOOL, _STR = 4, 5, 6, 7, 8


@pytest.mark.parametrize(
    "key",
    [
        "block_count",
        "context_length",
        "embedding_length",
        "expert_feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "expert_count",
        "expert_used_count",
    ],
)
@pytest.mark.parametrize(
    "value",
    [
        None,
        scalar(_U32, 0),
        scalar(_I32, -1),
        scalar(_U32, 2**32 - 1),
        (10, struct.pack("<Q", 2**64 - 1)),
        (11, struct.pack("<q", -(2**63))),
        scalar(_F32, 2.5),
        scalar(_F32, float("nan")),
        scalar(_F32, float("inf")),
        scalar(_STR, "2"),
        scalar(_STR, "2" * 1000),
        scalar(_BOOL, True),
        scalar(9, (_U32, [2, 2])),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_sizes(path: Path, key: str, value: tuple[int, bytes] | None) -> None:
    file = File()
    name = f"gpt-oss.{key}".encode()
    del file.values[name]
    if value is not None:
        file.values[name] = value
    error = refused(file.write(path), match=f"gpt-oss.{key}: expected an integer from")
    assert (error.found == "nothing") == (value is None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gpt-oss.attention.value_length", scalar(_U32, 64)),
        ("gpt-oss.attention.key_length", scalar(_U32, 31)),
        ("gpt-oss.attention.head_count_kv", scalar(_U32, 3)),
        ("gpt-oss.attention.layer_norm_rms_epsilon", scalar(_F32, 0.0)),
        ("gpt-oss.attention.layer_norm_rms_epsilon", scalar(_F32, float("nan"))),
        ("gpt-oss.attention.sliding_window", scalar(_U32, 0)),
        ("gpt-oss.attention.sliding_window_pattern", scalar(_U32, 4)),
        ("gpt-oss.attention.sliding_window_pattern", scalar(9, (_BOOL, [True, True]))),
        ("gpt-oss.rope.freq_base", scalar(_F32, 0.5)),
        ("gpt-oss.rope.freq_base", scalar(_STR, "150000")),
        ("gpt-oss.rope.dimension_count", scalar(_U32, 16)),
        ("gpt-oss.rope.scaling.type", scalar(_STR, "linear")),
        ("gpt-oss.rope.scaling.type", (8, struct.pack("<Q", 6) + b"yarn\0x")),
        ("gpt-oss.rope.scaling.type", scalar(_U32, 2)),
        ("gpt-oss.rope.scaling.factor", scalar(_F32, -1.0)),
        ("gpt-oss.rope.scaling.attn_factor", scalar(_F32, 0.5)),
        ("gpt-oss.rope.scaling.yarn_beta_fast", scalar(_F32, 0.25)),
        ("gpt-oss.rope.scaling.original_context_length", scalar(_U32, 0)),
        ("gpt-oss.vocab_size", scalar(_U32, 0)),
    ],
    ids=repr,
)
def test_options(path: Path, key: str, value: tuple[int, bytes]) -> None:
    file = File()
    file.values[key.encode()] = value
    refused(file.write(path), match=f"{key}: expected")


def test_scaling_without_its_type(path: Path) -> None:
    file = File()
    del file.values[b"gpt-oss.rope.scaling.type"]
    refused(file.write(path), match=r"rope\.scaling\.factor: expected 1, found 4")


@pytest.mark.parametrize("claimed", [63, 65])
def test_vocabulary_of_another_size(path: Path, claimed: int) -> None:
    file = File()
    file.values[b"gpt-oss.vocab_size"] = scalar(_U32, claimed)
    refused(file.write(path), tensor="token_embd.weight", match="shape")


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (
            scalar(_STR, "qwen2"),
            'unsupported architecture "qwen2"; supported: gpt-oss, llama, gpt2',
        ),
        (scalar(_STR, "gptosS"), "unsupported architecture"),
        (scalar(_STR, "gpt-oss2"), "unsupported architecture"),
        (scalar(_STR, "x" * 100_000), "unsupported architecture a text of 100000 bytes"),
        (scalar(_U32, 7), "unsupported architecture 7"),
        (None, "unsupported architecture nothing"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_architecture(path: Path, value: tuple[int, bytes] | None, match: str) -> None:
    file = File()
    del file.values[b"general.architecture"]
    if value is not None:
        file.values[b"general.architecture"] = value
    file.entry(QUERY).type = 12  # other families come in other formats; the family is named first
    refused(file.write(path), kind=gptoss.UnsupportedError, match=match)


def test_number_4_outside_files_of_ollama(path: Path) -> None:
    """In any other file the number is that of a format that ggml gave up."""
    file = File()
    file.entry(GATE).type = 4
    refused(file.write(path), tensor=GATE, kind=gptoss.UnsupportedError, match="Ollama")


# ---- values ----


@pytest.mark.parametrize("place", [0, 5, -1])
@pytest.mark.parametrize(
    ("name", "bits", "text"),
    [
        (QUERY, b"\x00\x7c", "an infinity"),
        (QUERY, b"\x00\xfc", "an infinity"),
        (QUERY, b"\x01\x7e", "NaN"),
        (GATE, b"\xff", "0xFF"),
        (NORM, struct.pack("<f", float("nan")), "NaN"),
    ],
)
def test_verify(path: Path, name: str, bits: bytes, text: str, place: int) -> None:
    with gptoss.Model(File().write(path)) as model:
        info = model.tensor_info(name)
    stride = {"Q8_0": 34, "MXFP4": 17, "F32": 4}[info.format]
    at = info.file_offset + place % (info.num_bytes // stride) * stride
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(bits)
    with gptoss.Model(path):
        pass
    with pytest.raises(gptoss.FormatError, match=text) as caught:
        gptoss.Model(path, verify=True)
    assert (caught.value.tensor, caught.value.offset) == (name, at)


def test_verify_passes_codes_of_any_value(path: Path) -> None:
    """Only scales can be bad: codes and the largest finite scales are not."""
    with gptoss.Model(File().write(path)) as model:
        infos = [model.tensor_info(name) for name in (QUERY, GATE)]
    data = bytearray(path.read_bytes())
    for info, scale in zip(infos, (b"\xff\x7b", b"\xfe"), strict=True):
        block = info.shape[-1]
        filled = (scale + b"\xff" * (block - len(scale))) * (info.num_bytes // block)
        data[info.file_offset : info.file_offset + info.num_bytes] = filled
    path.write_bytes(data)
    with gptoss.Model(path, verify=True):
        pass


# ---- anything ----

HEADER = b"".join(File().parts())


@settings(max_examples=400)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(HEADER) - 1), st.binary(min_size=1, max_size=9)),
        min_size=1,
        max_size=3,
    )
)
def test_any_bytes_in_the_header(tmp_path_factory: pytest.TempPathFactory, edits: Any) -> None:
    """The file is refused, or what it says is sound and every tensor can be looked at."""
    path = tmp_path_factory.getbasetemp() / "edited.gguf"
    data = bytearray(File().write(path).read_bytes())
    for at, replacement in edits:
        data[at : at + len(replacement)] = replacement[: len(data) - at]
    path.write_bytes(data)
    try:
        model = gptoss.Model(path)
    except gptoss.Error as error:
        assert path.name in str(error)
        assert isinstance(error, gptoss.FormatError | gptoss.UnsupportedError)
        return
    with model:
        for name in model.tensors:
            assert model.tensors[name].nbytes == model.tensor_info(name).num_bytes
        assert model.config.vocab_size == 64
        open_generator(model, 8).prefill([1, 2])


@pytest.mark.parametrize("kind", ["empty", "directory", "pipe", "dangling", "short"])
def test_something_else_by_that_name(path: Path, kind: str) -> None:
    if kind == "empty":
        path.touch()
    elif kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    else:
        path.write_bytes(b"GGUF")
    with pytest.raises((gptoss.FormatError, gptoss.FileError)) as caught:
        gptoss.Model(path)
    assert caught.value.file is not None
