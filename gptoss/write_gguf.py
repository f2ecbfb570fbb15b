"""Write gpt-oss weights as a GGUF file that llama.cpp opens: its names, its metadata, gate and up
apart, MXFP4 experts repacked without a change of value.

The weights come from any object with Source's one method, piece by piece, so that memory use is
bounded. Without a tokenizer the vocabulary is a stand-in, one token a byte and unused ones, enough
for benchmarks.
"""

from __future__ import annotations

import math
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gptoss.errors import FileError
from gptoss.tokenizer import Tokenizer
from gptoss.write_tokenizer import tokenizer_values

Array = NDArray[Any]

PIECE_ROWS = 4096  # even: rows of gate and up take turns
ALIGNMENT = 32

# ggml's number, elements of a block, bytes of a block.
TYPES = {
    "F32": (0, 1, 4),
    "F16": (1, 1, 2),
    "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24),
    "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84),
    "Q3_K": (11, 256, 110),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "I8": (24, 1, 1),
    "I16": (25, 1, 2),
    "I32": (26, 1, 4),
    "I64": (27, 1, 8),
    "F64": (28, 1, 8),
    "BF16": (30, 1, 2),
    "MXFP4": (39, 32, 17),
}
DENSE_TYPES = ("q8_0", "bf16", "f16", "f32")

_UINT8, _INT8, _UINT16, _INT16, _UINT32, _INT32, _FLOAT32, _BOOL, _STRING = range(9)
_ARRAY, _UINT64, _INT64, _FLOAT64 = range(9, 13)


class Source(Protocol):
    def pieces(self, name: str) -> Iterator[Array]:
        """A tensor by its Hugging Face name, PIECE_ROWS rows at a time: float32 (rows, columns), or
        uint8 (rows, blocks, 16) of "..._blocks", (rows, blocks) of "..._scales". Leading axes count
        as rows, a vector is one row."""
        ...


@dataclass(frozen=True)
class Tensor:
    """shape: slowest axis first. part: which of the source's rows, or with by_column columns;
    "gate" and "up" take turns."""

    name: str
    shape: tuple[int, ...]
    type: str
    source: str
    part: str = "all"
    by_column: bool = False

    @property
    def num_bytes(self) -> int:
        _, block, block_bytes = TYPES[self.type]
        return math.prod(self.shape) // block * block_bytes


# ---- tensors ----

_VECTORS = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_output.bias": "self_attn.o_proj.bias",
    "attn_sinks.weight": "self_attn.sinks",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate_inp.bias": "mlp.router.bias",
}
_PARTS = {"all": slice(None), "gate": slice(0, None, 2), "up": slice(1, None, 2)}


def plan_layer(config: dict[str, Any], layer: int, dense: str, experts: str) -> list[Tensor]:
    prefix, source = f"blk.{layer}.", f"model.layers.{layer}."
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    num_experts, head_dim = config["num_local_experts"], config["head_dim"]
    queries = config["num_attention_heads"] * head_dim
    keys = config["num_key_value_heads"] * head_dim
    lengths = {
        "attn_q.bias": queries,
        "attn_k.bias": keys,
        "attn_v.bias": keys,
        "attn_sinks.weight": config["num_attention_heads"],
        "ffn_gate_inp.bias": num_experts,
    }
    matrices = {
        "attn_q.weight": ((queries, hidden), dense, "self_attn.q_proj.weight"),
        "attn_k.weight": ((keys, hidden), dense, "self_attn.k_proj.weight"),
        "attn_v.weight": ((keys, hidden), dense, "self_attn.v_proj.weight"),
        "attn_output.weight": ((hidden, queries), dense, "self_attn.o_proj.weight"),
        "ffn_gate_inp.weight": ((num_experts, hidden), "F32", "mlp.router.weight"),
    }
    tensors = [
        *(
            Tensor(prefix + name, (lengths.get(name, hidden),), "F32", source + of)
            for name, of in _VECTORS.items()
        ),
        *(
            Tensor(prefix + name, shape, type_name, source + of)
            for name, (shape, type_name, of) in matrices.items()
        ),
    ]
    source += "mlp.experts."
    for part in ("gate", "up"):
        name, shape = f"{prefix}ffn_{part}_exps", (num_experts, inner, hidden)
        tensors += [
            Tensor(name + ".weight", shape, experts, source + "gate_up_proj", part),
            Tensor(name + ".bias", shape[:2], "F32", source + "gate_up_proj_bias", part, True),
        ]
    name, shape = prefix + "ffn_down_exps", (num_experts, hidden, inner)
    return [
        *tensors,
        Tensor(name + ".weight", shape, experts, source + "down_proj"),
        Tensor(name + ".bias", shape[:2], "F32", source + "down_proj_bias"),
    ]


def plan_tensors(config: dict[str, Any], dense: str, experts: str = "MXFP4") -> list[Tensor]:
    """dense: the type of embedding, attention and output matrices. Vectors and the router are
    F32."""
    matrix = (config["vocab_size"], config["hidden_size"])
    return [
        Tensor("token_embd.weight", matrix, dense, "model.embed_tokens.weight"),
        *(
            tensor
            for layer in range(config["num_hidden_layers"])
            for tensor in plan_layer(config, layer, dense, experts)
        ),
        Tensor("output_norm.weight", matrix[1:], "F32", "model.norm.weight"),
        Tensor("output.weight", matrix, dense, "lm_head.weight"),
    ]


def pack_mxfp4(blocks: Array, scales: Array) -> Array:
    """Hugging Face's blocks (..., 16), neighbours sharing a byte, and scales -> (..., 17): the
    scale, then elements j and j + 16 sharing byte j."""
    packed = np.empty((*scales.shape, 17), np.uint8)
    first, second = blocks[..., :8], blocks[..., 8:]
    packed[..., 0] = scales
    packed[..., 1::2] = (first & 15) | (second << 4)
    packed[..., 2::2] = (first >> 4) | (second & 0xF0)
    return packed


def pack_q8_0(values: Array) -> Array:
    """float32 (..., n * 32) -> (..., n) of scale and codes: the largest of a block is +-127."""
    blocks = values.reshape(*values.shape[:-1], -1, 32)
    scale = np.abs(blocks).max(axis=-1) / np.float32(127)
    packed = np.empty(scale.shape, [("scale", "<f2"), ("codes", "i1", 32)])
    packed["scale"] = scale
    packed["codes"] = np.rint(blocks / np.where(scale == 0, np.float32(1), scale)[..., None])
    return packed


def pack(values: Array, type_name: str) -> Array:
    if type_name == "Q8_0":
        return pack_q8_0(values)
    dtypes: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
    return values.astype(dtypes[type_name])


def encoded(tensor: Tensor, source: Source) -> Iterator[bytes]:
    """The tensor's bytes."""
    part = _PARTS[tensor.part]
    if tensor.type == "MXFP4":
        blocks, scales = (source.pieces(f"{tensor.source}_{kind}") for kind in ("blocks", "scales"))
        for codes, exponents in zip(blocks, scales, strict=True):
            yield pack_mxfp4(codes[part], exponents[part]).tobytes()
        return
    for piece in source.pieces(tensor.source):
        rows = piece[:, part] if tensor.by_column else piece[part]
        yield pack(rows, tensor.type).tobytes()


# ---- metadata ----


def byte_tokens() -> list[str]:
    """GPT-2's letters for the 256 bytes: printable ones stand for themselves."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in shown else next(others)) for byte in range(256)]


def vocabulary(size: int) -> dict[str, tuple[int, Any]]:
    """The stand-in; none for sizes that cannot hold it."""
    if size < 257:
        return {"tokenizer.ggml.model": (_STRING, "none")}
    tokens = [*byte_tokens(), "th", *(f"[unused{n}]" for n in range(257, size))]
    kinds = [1 if id <= 256 else 5 for id in range(size)]  # ggml's NORMAL and UNUSED
    return {
        "tokenizer.ggml.model": (_STRING, "gpt2"),
        "tokenizer.ggml.pre": (_STRING, "gpt-4o"),
        "tokenizer.ggml.tokens": (_ARRAY, (_STRING, tokens)),
        "tokenizer.ggml.token_type": (_ARRAY, (_INT32, kinds)),
        "tokenizer.ggml.merges": (_ARRAY, (_STRING, ["t h"])),
        "tokenizer.ggml.bos_token_id": (_UINT32, size - 1),
        "tokenizer.ggml.eos_token_id": (_UINT32, size - 1),
        "tokenizer.ggml.add_bos_token": (_BOOL, False),
    }


def gpt_oss_values(config: dict[str, Any], name: str) -> dict[str, tuple[int, Any]]:
    """config.json as llama.cpp's converter tells it: key -> (type, value)."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    values: dict[str, tuple[int, Any]] = {
        "block_count": (_UINT32, config["num_hidden_layers"]),
        "context_length": (_UINT32, config["max_position_embeddings"]),
        "embedding_length": (_UINT32, config["hidden_size"]),
        "feed_forward_length": (_UINT32, config["intermediate_size"]),
        "expert_feed_forward_length": (_UINT32, config["intermediate_size"]),
        "attention.head_count": (_UINT32, config["num_attention_heads"]),
        "attention.head_count_kv": (_UINT32, config["num_key_value_heads"]),
        "attention.key_length": (_UINT32, config["head_dim"]),
        "attention.value_length": (_UINT32, config["head_dim"]),
        "attention.layer_norm_rms_epsilon": (_FLOAT32, config["rms_norm_eps"]),
        "attention.sliding_window": (_UINT32, config["sliding_window"]),
        "expert_count": (_UINT32, config["num_local_experts"]),
        "expert_used_count": (_UINT32, config["num_experts_per_tok"]),
        "rope.freq_base": (_FLOAT32, rope.get("rope_theta", config.get("rope_theta"))),
    }
    if rope.get("rope_type") == "yarn":
        values |= {
            "rope.scaling.type": (_STRING, "yarn"),
            "rope.scaling.factor": (_FLOAT32, rope["factor"]),
            "rope.scaling.original_context_length": (
                _UINT32,
                rope["original_max_position_embeddings"],
            ),
            "rope.scaling.yarn_beta_fast": (_FLOAT32, rope["beta_fast"]),
            "rope.scaling.yarn_beta_slow": (_FLOAT32, rope["beta_slow"]),
        }
    general = {
        "general.architecture": (_STRING, "gpt-oss"),
        "general.name": (_STRING, name),
        "general.quantization_version": (_UINT32, 2),
        "general.file_type": (_UINT32, 38),  # MXFP4 experts
    }
    return general | {f"gpt-oss.{key}": value for key, value in values.items()}


def metadata(
    config: dict[str, Any], name: str, tokenizer: Tokenizer | None = None
) -> dict[str, tuple[int, Any]]:
    """gpt_oss_values and the tokenizer, or a stand-in."""
    size = config["vocab_size"]
    words = vocabulary(size) if tokenizer is None else tokenizer_values(tokenizer, size)
    return gpt_oss_values(config, name) | words


# ---- the file ----


class Placed(Protocol):
    """What the header tells of a tensor; type is a key of TYPES."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def type(self) -> str: ...
    @property
    def num_bytes(self) -> int: ...


_SCALARS = {
    **{_UINT8: "<B", _INT8: "<b", _UINT16: "<H", _INT16: "<h", _UINT32: "<I", _INT32: "<i"},
    **{_FLOAT32: "<f", _BOOL: "<?", _UINT64: "<Q", _INT64: "<q", _FLOAT64: "<d"},
}


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _value(kind: int, value: Any) -> bytes:
    if kind == _STRING:
        return _string(value)
    if kind == _ARRAY:
        of, items = value
        head = struct.pack("<IQ", of, len(items))
        return head + b"".join(_value(of, item) for item in items)
    return struct.pack(_SCALARS[kind], value)


def padding(num_bytes: int) -> int:
    return -num_bytes % ALIGNMENT


def header(values: Mapping[str, tuple[int, Any]], tensors: Sequence[Placed]) -> bytes:
    """Everything before the first tensor's data."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(values))]
    for key, (kind, value) in values.items():
        parts.append(_string(key) + struct.pack("<I", kind) + _value(kind, value))
    offset = 0
    for tensor in tensors:
        dims = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        place = struct.pack("<IQ", TYPES[tensor.type][0], offset)
        parts.append(_string(tensor.name) + dims + place)
        offset += tensor.num_bytes + padding(tensor.num_bytes)
    text = b"".join(parts)
    return text + bytes(padding(len(text)))


def write_gguf(
    path: Path,
    config: dict[str, Any],
    source: Source,
    dense: str = "q8_0",
    *,
    experts: str = "MXFP4",
    tokenizer: Tokenizer | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> int:
    """Writes the file, complete or not at all, and returns its tensor bytes.

    config: the keys of a Hugging Face config.json. dense: one of DENSE_TYPES. tokenizer: see
    tokenizer_values. progress: called with (done, total) bytes; may raise to stop. FileError if
    path exists already or there is no room.
    """
    if path.exists():
        raise FileError(f"{path} exists already", file=str(path))
    tensors = plan_tensors(config, dense.upper(), experts)
    values = metadata(config, path.stem, tokenizer)
    total, done = sum(tensor.num_bytes for tensor in tensors), 0
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(path.parent).free) < total:
        raise FileError(
            f"the model needs {total / 1e9:.1f} GB, {path.parent} has {free / 1e9:.1f} GB free: "
            "choose another directory, or fewer layers",
            file=str(path.parent),
        )
    try:
        with open(partial, "wb") as file:
            file.write(header(values, tensors))
            for tensor in tensors:
                start = file.tell()
                for chunk in encoded(tensor, source):
                    file.write(chunk)
                    done += len(chunk)
                    if progress is not None:
                        progress(done, total)
                assert file.tell() - start == tensor.num_bytes, tensor.name
                file.write(bytes(padding(tensor.num_bytes)))
        os.rename(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return total


def is_gguf_of(path: Path, config: dict[str, Any], dense: str = "q8_0") -> bool:
    """Whether a file is what write_gguf would write by that name, but for the weights."""
    expected = header(metadata(config, path.stem), plan_tensors(config, dense.upper()))
    try:
        with open(path, "rb") as file:
            return file.read(len(expected)) == expected
    except OSError:
        return False
