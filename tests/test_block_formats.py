"""The block formats of GGUF, Q4_0 to Q6_K: decoded as ggml's own Python decodes them, to the last
bit (every product is exact, so that its rounding of d * q before m is added is none), and models
whose every tensor has one, against the float64 reference on the decoded weights.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_models import BLOCK_TYPES, K_TYPES, GgufModel, Reader, encode, write_types
from models import Spec, hf_config
from numpy.typing import NDArray
from support import assert_same_bits, feed, open_generator, random_tokens, step_through
from test_reference import assert_traces_agree, engine_trace, reference_trace

import gptoss
from gptoss import kernels, write_gguf

Bytes = NDArray[np.uint8]
Float32 = NDArray[np.float32]

# A block of 256 fits every row.
SPEC = Spec(hidden_size=256, intermediate_size=256, num_heads=8, expert_dtype="F32")
ISAS = [isa for isa, available in gptoss._core.isas() if available]
MATRIX = "blk.1.ffn_up_exps.weight"


@pytest.fixture
def rng() -> np.random.Generator:
    seed = int(os.environ.get("GPTOSS_TEST_SEED", 0)) or int.from_bytes(os.urandom(4), "little")
    print(f"GPTOSS_TEST_SEED={seed}")
    return np.random.default_rng(seed)


def is_matrix(tensor: write_gguf.Tensor) -> bool:
    return len(tensor.shape) > 1 and not tensor.name.endswith("bias")


def matrices_as(type_name: str) -> Callable[[write_gguf.Tensor], str]:
    return lambda tensor: type_name if is_matrix(tensor) else "F32"


# ---- decoding ----


def code_places(type_name: str) -> NDArray[np.int64]:
    """The bytes of a block that are not of its f16 scales."""
    block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]][1]
    halves = [place for at in kernels.HALVES[type_name.lower()] for place in (at, at + 1)]
    return np.setdiff1d(np.arange(block_bytes), halves)


def assert_decoded(type_name: str, blocks: Bytes) -> None:
    """blocks: (rows, blocks, bytes), 32 rows; by each instruction set."""
    type_ = gguf.GGMLQuantizationType[type_name]
    layout, num_blocks = type_name.lower(), blocks.shape[1]
    num_columns = num_blocks * kernels.block(layout)
    data = blocks.reshape(len(blocks), -1)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(data, type_)
    matrix = kernels.Matrix(
        layout, 32, num_columns, data.shape[1], 0, data.ravel(), np.zeros(0, np.uint8)
    )
    for isa in ISAS:
        values = kernels.expand_panel(isa, matrix).values  # [lane][group][row]
        decoded = np.ascontiguousarray(values.transpose(2, 1, 0)).reshape(32, -1)
        assert kernels.num_different(decoded, expected) == 0, isa


@pytest.mark.parametrize("type_name", BLOCK_TYPES)
def test_any_bytes(rng: np.random.Generator, type_name: str) -> None:
    """Scales that are infinite or no numbers included."""
    block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]][1]
    assert_decoded(type_name, rng.integers(0, 256, (32, 50, block_bytes), np.uint8))


@pytest.mark.parametrize("type_name", BLOCK_TYPES)
def test_every_byte_at_every_place(rng: np.random.Generator, type_name: str) -> None:
    """Blocks of one byte value, and places of a block with each value."""
    layout = type_name.lower()
    places = code_places(type_name)
    same = kernels.random_blocks(rng, layout, (32, 8))
    same[..., places] = np.arange(256, dtype=np.uint8).reshape(32, 8, 1)
    assert_decoded(type_name, same)
    places = rng.permutation(places)[:48]  # of the longest formats about a third at a time
    each = kernels.random_blocks(rng, layout, (32, 8 * len(places)))
    blocks = each.reshape(256, len(places), -1)
    for index, at in enumerate(places):
        blocks[:, index, at] = np.arange(256)
    assert_decoded(type_name, each)


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_every_scale(rng: np.random.Generator, type_name: str) -> None:
    blocks = kernels.random_blocks(rng, type_name.lower(), (32, 2048))
    halves = rng.permutation(1 << 16).astype(np.uint16).reshape(32, 2048, 1)
    blocks[..., :2] = halves.view(np.uint8)
    assert_decoded(type_name, blocks)


# ---- models ----


@pytest.mark.parametrize("type_name", BLOCK_TYPES)
def test_engine_agrees_with_reference(
    tmp_path: Path, rng: np.random.Generator, type_name: str
) -> None:
    path = write_types(tmp_path / "m.gguf", SPEC, rng, matrices_as(type_name))
    trace = engine_trace(path, 1, 30, "f32")
    expected = reference_trace(GgufModel(path, hf_config(SPEC)), trace, "f32")
    assert_traces_agree(trace, expected, "f32")


@pytest.mark.parametrize("type_name", BLOCK_TYPES)
def test_same_bits_by_any_route(tmp_path: Path, rng: np.random.Generator, type_name: str) -> None:
    """Step by step and in blocks, by every instruction set."""
    path = write_types(tmp_path / "m.gguf", SPEC, rng, matrices_as(type_name))
    with gptoss.Model(path, threads=2) as model:
        tokens = random_tokens(model, 20)
        expected = step_through(open_generator(model, 20), tokens)
    for isa in ISAS:
        with gptoss.Model(path, threads=2, isa=isa) as model:
            logits = feed(open_generator(model, 20), tokens, [3, 17])
            assert_same_bits(logits, expected, isa)


@pytest.mark.parametrize("attempt", range(3))
def test_each_tensor_in_a_format_of_its_own(
    tmp_path: Path, rng: np.random.Generator, attempt: int
) -> None:
    """Gate and up, and their biases, included."""
    plain = ("F32", "F16", "BF16")
    names: set[str] = set()

    def choose(tensor: write_gguf.Tensor) -> str:
        types = (*plain, "Q8_0", "MXFP4", *BLOCK_TYPES) if is_matrix(tensor) else plain
        names.add(name := str(rng.choice(types)))
        return name

    path = write_types(tmp_path / "mixed.gguf", SPEC, rng, choose)
    with gptoss.Model(path, verify=True) as model:
        assert {model.tensor_info(name).format for name in model.tensors} == names
        tokens = random_tokens(model, 20)
        expected = step_through(open_generator(model, 20), tokens)
        assert_same_bits(feed(open_generator(model, 20), tokens, [2, 18]), expected)
    trace = engine_trace(path, attempt, 30, "f32")
    reference = reference_trace(GgufModel(path, hf_config(SPEC)), trace, "f32")
    assert_traces_agree(trace, reference, "f32")


@pytest.mark.parametrize(("gate", "up"), [("MXFP4", "Q4_K"), ("Q6_K", "MXFP4"), ("F16", "Q5_1")])
def test_gate_and_up_in_two_formats(
    tmp_path: Path, rng: np.random.Generator, gate: str, up: str
) -> None:
    """Formats whose inputs are packed alike and others."""
    types = {"ffn_gate_exps.weight": gate, "ffn_up_exps.weight": up, "ffn_up_exps.bias": "BF16"}
    path = write_types(
        tmp_path / "m.gguf", SPEC, rng, lambda tensor: types.get(tensor.name[6:], "F32")
    )
    with gptoss.Model(path, isa="scalar") as model:
        tokens = random_tokens(model, 12)
        expected = step_through(open_generator(model, 12), tokens)
    with gptoss.Model(path) as model:
        assert_same_bits(feed(open_generator(model, 12), tokens, [12]), expected)
    trace = engine_trace(path, 2, 12, "f32")
    reference = reference_trace(GgufModel(path, hf_config(SPEC)), trace, "f32")
    assert_traces_agree(trace, reference, "f32")


@pytest.mark.parametrize("type_name", BLOCK_TYPES)
def test_tensors_and_experts(tmp_path: Path, rng: np.random.Generator, type_name: str) -> None:
    path = write_types(tmp_path / "m.gguf", SPEC, rng, matrices_as(type_name))
    weights = Reader(path).tensors
    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]]
    with gptoss.Model(path) as model:
        info = model.tensor_info(MATRIX)
        assert (info.format, info.dtype) == (type_name, np.uint8)
        assert info.shape == model.tensors[MATRIX].shape == (4, 256, 256 // block, block_bytes)
        assert info.element_shape == (4, 256, 256)
        expert = model.expert(1, 2)
        for part in ("gate", "up", "down"):
            expected = weights[f"blk.1.ffn_{part}_exps.weight"][2]
            assert np.array_equal(getattr(expert, part), expected), part


# ---- what is refused ----


@pytest.mark.parametrize("bits", [b"\x00\x7c", b"\x01\xfe"])
@pytest.mark.parametrize("type_name", BLOCK_TYPES)
def test_verify(tmp_path: Path, rng: np.random.Generator, type_name: str, bits: bytes) -> None:
    """Every scale of a block is looked at, and nothing else."""
    path = write_types(tmp_path / "m.gguf", SPEC, rng, matrices_as(type_name))
    with gptoss.Model(path, verify=True) as model:
        info = model.tensor_info(MATRIX)
    halves, data = kernels.HALVES[type_name.lower()], path.read_bytes()
    block_bytes = info.shape[-1]
    filled = np.frombuffer(data, np.uint8).copy()
    blocks = filled[info.file_offset :][: info.num_bytes].reshape(-1, block_bytes)
    blocks[:, code_places(type_name)] = 0xFF
    path.write_bytes(filled.tobytes())
    with gptoss.Model(path, verify=True):
        pass
    for half in halves:
        block = int(rng.integers(info.num_bytes // block_bytes))
        at = info.file_offset + block * block_bytes + half
        path.write_bytes(data[:at] + bits + data[at + 2 :])
        with pytest.raises(gptoss.FormatError, match=rf"0x\w{{4}}\) at block {block}") as caught:
            gptoss.Model(path, verify=True)
        assert (caught.value.tensor, caught.value.offset) == (MATRIX, at)


@pytest.mark.parametrize("type_name", K_TYPES)
def test_rows_of_part_of_a_block(tmp_path: Path, rng: np.random.Generator, type_name: str) -> None:
    """gpt-oss's 2880 columns are no multiple of 256; a file that says so all the same."""
    path = write_types(tmp_path / "m.gguf", SPEC, rng, matrices_as(type_name))
    data = path.read_bytes()
    at = data.index(b"token_embd.weight") + len("token_embd.weight") + 4
    for columns in (255, 257, 2880, 128, 1):
        path.write_bytes(data[:at] + columns.to_bytes(8, "little") + data[at + 8 :])
        expected = rf"rows of whole blocks of 256 \({type_name}\), found \[97, {columns}\]"
        with pytest.raises(gptoss.FormatError, match=expected) as caught:
            gptoss.Model(path)
        assert caught.value.tensor == "token_embd.weight"


@pytest.mark.parametrize("type_name", ["Q4_1", "Q6_K"])
def test_truncated(tmp_path: Path, rng: np.random.Generator, type_name: str) -> None:
    path = write_types(tmp_path / "m.gguf", SPEC, rng, matrices_as(type_name))
    data = path.read_bytes()
    for _ in range(100):
        path.write_bytes(data[: int(rng.integers(len(data) - 31))])
        with pytest.raises(gptoss.FormatError):
            gptoss.Model(path)


def test_a_vector_of_blocks(tmp_path: Path, rng: np.random.Generator) -> None:
    """Only matrices may be quantised."""
    path = write_types(
        tmp_path / "m.gguf",
        dataclasses.replace(SPEC, num_layers=1),
        rng,
        lambda tensor: "Q4_0" if tensor.name == "output_norm.weight" else "F32",
    )
    with pytest.raises(gptoss.FormatError, match="expected F32, F16 or BF16, found Q4_0"):
        gptoss.Model(path)


def test_encoded_weights_are_near(rng: np.random.Generator) -> None:
    """What these tests write is what the models are about."""
    values = rng.standard_normal((64, 512)).astype(np.float32)
    for type_name in BLOCK_TYPES:
        type_ = gguf.GGMLQuantizationType[type_name]
        decoded = gguf.quants.dequantize(encode(rng, values, type_name), type_)
        assert 0.8 < decoded.std() < 1.25 and abs(decoded.mean()) < 0.3, type_name
