"""Metadata of GGUF files: every type, read back equal, in place."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf_models
import numpy as np
import pytest
from gguf_models import TYPE_NUMBERS, write_raw
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Spec, write_model

import gptoss
from gptoss import _core
from gptoss.metadata import Metadata

NAMES = {number: name for name, number in TYPE_NUMBERS.items()}
INTEGERS = {0: 8, 2: 16, 4: 32, 10: 64}

# Any bytes: those that are not UTF-8 travel as surrogates.
texts = st.binary(max_size=20).map(lambda data: data.decode("utf-8", "surrogateescape"))
keys = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=30)


def scalars(kind: int) -> st.SearchStrategy[Any]:
    if kind == 8:
        return texts
    if kind == 7:
        return st.booleans()
    if kind in (6, 12):
        return st.floats(width=32 if kind == 6 else 64)
    bits = INTEGERS.get(kind) or INTEGERS[kind - 1]
    return (
        st.integers(0, 2**bits - 1)
        if kind in INTEGERS
        else st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    )


@st.composite
def values(draw: st.DrawFn) -> tuple[int, Any]:
    kind = draw(st.sampled_from(sorted(NAMES)))
    if draw(st.booleans()):
        return kind, draw(scalars(kind))
    return 9, (kind, draw(st.lists(scalars(kind), max_size=9)))


def same(a: Any, b: Any) -> bool:
    return bool(a == b) or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


@settings(max_examples=200)
@given(written=st.dictionaries(keys.filter(lambda key: key != "general.alignment"), values()))
def test_written_and_read_back(
    tmp_path_factory: pytest.TempPathFactory, written: dict[str, tuple[int, Any]]
) -> None:
    path = write_raw(tmp_path_factory.getbasetemp() / "values.gguf", written, [])
    data = path.read_bytes()
    metadata = Metadata(_core.Checkpoint(path))
    assert list(metadata) == sorted(written)
    for key, (kind, value) in written.items():
        info, found = metadata.info(key), metadata[key]
        if kind != 9:
            assert info[:2] == (NAMES[kind], None)
            assert type(found) is {7: bool, 8: str, 6: float, 12: float}.get(kind, int)
            assert same(found, value), key
            continue
        of, items = value
        assert info[:2] == (NAMES[of], len(items))
        if of == 8:
            assert found == items
            continue
        assert isinstance(found, np.ndarray) and not found.flags.writeable and found.flags.aligned
        assert all(same(a, b) for a, b in zip(found.tolist(), items, strict=True)), key
        assert data[info.file_offset :][: found.nbytes] == found.tobytes()
        # In the file's own memory where that is aligned.
        is_copy = bool(items) and info.file_offset % found.itemsize != 0
        assert found.flags.owndata == is_copy


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    raw = b"caf\xc3\xa9 \xff\xfe\xed\xa0\x80\0"
    written = {"a": (8, raw.decode("utf-8", "surrogateescape"))}
    metadata = Metadata(_core.Checkpoint(write_raw(tmp_path / "m.gguf", written, [])))
    text = metadata["a"]
    assert isinstance(text, str) and text.startswith("café ")
    assert text.encode("utf-8", "surrogateescape") == raw


def test_another_writer(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "some-family")
    writer.add_uint8("u8", 200)
    writer.add_int16("i16", -5)
    writer.add_uint64("u64", 2**63)
    writer.add_float64("f64", 1e-300)
    writer.add_bool("bool", True)
    writer.add_string("text", "漢字 👩‍👩‍👧")
    writer.add_array("texts", ["a", "", "\n"])
    writer.add_array("floats", [0.5, 2.0])
    writer.add_array("bools", [True, False])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata = Metadata(_core.Checkpoint(path))
    assert dict(metadata) | {"floats": None, "bools": None} == {
        **{"general.architecture": "some-family", "u8": 200, "i16": -5, "u64": 2**63},
        **{"f64": 1e-300, "bool": True, "text": "漢字 👩‍👩‍👧", "texts": ["a", "", "\n"]},
        **{"floats": None, "bools": None},
    }
    assert np.array_equal(metadata["floats"], [0.5, 2.0])
    assert metadata["bools"].dtype == bool and list(metadata["bools"]) == [True, False]


def test_of_a_model(tmp_path: Path) -> None:
    path = gguf_models.write_model(
        tmp_path / "m.gguf", Spec(vocab_size=300), np.random.default_rng(0)
    )
    with gptoss.Model(path) as model:
        metadata = model.metadata
        assert metadata["general.architecture"] == "gpt-oss"
        assert metadata.info("gpt-oss.block_count").type == "u32"
        assert "gpt-oss.block_count" in metadata and "block_count" not in metadata
        assert metadata.get("nothing") is None
        with pytest.raises(gptoss.NotFoundError, match=r"did you mean 'gpt-oss\.block_count'"):
            metadata["gptoss.block_count"]
        types = metadata["tokenizer.ggml.token_type"]
        assert types.shape == (300,) and types.dtype == np.int32
        with pytest.raises(ValueError):
            types[0] = 7
        assert repr(metadata) == f"<metadata of {len(metadata)} keys>"
    with pytest.raises(gptoss.StateError):
        metadata["general.name"]
    with pytest.raises(gptoss.StateError):
        _ = model.metadata
    assert types[0] == 1  # an array keeps what it shows


def test_arrays_hold_the_file(tmp_path: Path) -> None:
    """As tensors do: closing under a view is an error."""
    values = {"n": (9, (0, [1, 2, 3]))}  # bytes are always aligned
    spec = Spec()
    path = gguf_models.write_model(tmp_path / "m.gguf", spec, np.random.default_rng(0))
    kept, tensors = gguf_models.read_raw(path)
    model = gptoss.Model(write_raw(path, kept | values, tensors))
    view = model.metadata["n"]
    with pytest.raises(gptoss.InUseError, match="1 array of it"):
        model.close()
    assert view.tolist() == [1, 2, 3]
    del view
    model.close()


def test_safetensors_have_none(tmp_path: Path) -> None:
    with gptoss.Model(write_model(tmp_path, Spec(), np.random.default_rng(0))) as model:
        assert len(model.metadata) == 0 and dict(model.metadata) == {}


# ---- files without a model ----


def test_index_out_of_range(tmp_path: Path) -> None:
    checkpoint = _core.Checkpoint(write_raw(tmp_path / "m.gguf", {"a": (7, True)}, []))
    for index in (-1, 1, 2**40):
        with pytest.raises(IndexError):
            checkpoint.metadata_value(index)
    with pytest.raises(TypeError):
        checkpoint.metadata_value("0")  # type: ignore[arg-type]


def test_sizes_of_formats_that_are_only_listed(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    sizes = {
        kind.name: (int(kind), *block)
        for kind, block in gguf.GGML_QUANT_SIZES.items()
        if kind.name != "Q8_1"  # never in files; the package has its old size
    }
    path = tmp_path / "m.gguf"
    with pytest.MonkeyPatch.context() as patch:
        tensors = []
        for name, (number, elements, num_bytes) in sizes.items():
            patch.setitem(gptoss.write_gguf.TYPES, name, (number, elements, num_bytes))
            tensor = gguf_models.raw_tensor(f"t.{name}", (3, 2 * elements), name)
            tensors.append((tensor, bytes(tensor.num_bytes)))
        write_raw(path, {}, tensors)
    listed = {name: row for name, *row in _core.Checkpoint(path).tensors()}
    for tensor, data in tensors:
        form, shape, num_bytes, file, offset = listed[tensor.name]
        assert (form, shape, num_bytes, file) == (tensor.type, tensor.shape, len(data), str(path))
        assert offset % 32 == 0


@pytest.mark.parametrize(
    ("shape", "number", "expected"),
    [
        ((3, 255), 23, ("IQ4_XS", None)),
        ((), 23, ("IQ4_XS", None)),
        ((2**31, 2**31, 256), 23, ("IQ4_XS", None)),
        ((2**62,), 23, ("IQ4_XS", None)),
        ((7,), 42, ("Q2_0", None)),
        ((7,), 999, ("unknown", None)),
        ((2, 256), 23, ("IQ4_XS", 272)),
    ],
)
def test_shapes_of_formats_that_are_only_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: Any, number: int, expected: Any
) -> None:
    monkeypatch.setitem(gptoss.write_gguf.TYPES, "odd", (number, 1, 1))
    tensor = gguf_models.raw_tensor("t", shape, "odd")
    path = write_raw(tmp_path / "m.gguf", {}, [(tensor, bytes(288))])
    ((_, form, _, num_bytes, _, _),) = _core.Checkpoint(path).tensors()
    assert (form, num_bytes) == expected


FUZZED: dict[str, tuple[int, Any]] = {
    **{NAMES[kind]: (kind, 1) for kind in NAMES if kind != 8},
    **{f"a.{NAMES[kind]}": (9, (kind, [1, 0, 1])) for kind in NAMES if kind != 8},
    **{"str": (8, "text"), "a.str": (9, (8, ["a", "", "bc"]))},
    "general.architecture": (8, "gptoss"),
}


@settings(max_examples=400)
@given(
    edits=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=9)), max_size=3
    ),
    cut=st.none() | st.floats(0, 1, exclude_max=True),
)
def test_any_bytes_in_the_header(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[float, bytes]], cut: float | None
) -> None:
    """The file is refused, or all that it says can be looked at."""
    path = tmp_path_factory.getbasetemp() / "fuzzed.gguf"
    tensors = [
        (gguf_models.raw_tensor(name, shape, kind), bytes(34 * 64))
        for name, shape, kind in (("a", (2, 32), "Q8_0"), ("blk.0.attn_qkv.bias", (64,), "F32"))
    ]
    data = bytearray(write_raw(path, FUZZED, tensors).read_bytes())
    for place, replacement in edits:
        at = int(place * (len(data) - 2 * 34 * 64))
        data[at : at + len(replacement)] = replacement
    path.write_bytes(data if cut is None else data[: int(cut * len(data))])
    try:
        checkpoint = gptoss.Checkpoint(path)
    except gptoss.FormatError as error:
        assert path.name in str(error)
        return
    for key in checkpoint.metadata:
        assert checkpoint.metadata.info(key).file_offset <= len(data)
        assert checkpoint.metadata[key] is not None
    for tensor in checkpoint.tensors.values():
        assert tensor.num_bytes is None or tensor.file_offset + tensor.num_bytes <= len(data)


def test_every_allocation_may_fail(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "m.gguf", {"a": (8, "b"), "c": (9, (4, [1]))}, [])
    _core.fail_allocation(0)
    Metadata(_core.Checkpoint(path))["c"]
    count = _core.fail_allocation(0)
    assert count > 5
    for n in range(1, count + 1):
        _core.fail_allocation(n)
        try:
            Metadata(_core.Checkpoint(path))["c"]
        except gptoss.Error:
            pass
        finally:
            _core.fail_allocation(0)
