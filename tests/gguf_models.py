"""GGUF files for tests: written from the tensors of tests/models.py or of a directory, and read
back by a reader of their own, which knows nothing of the engine.

    write_model(path, SPEC, numpy.random.default_rng(7), dense="q8_0")
    GgufModel(path).config, reference.forward(GgufModel(path), tokens)
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import reference
from models import Spec, Tensors, hf_config, random_tensors
from numpy.typing import NDArray

import gptoss
from gptoss import write_gguf
from gptoss.kernels import HALVES
from gptoss.tokenizer import Tokenizer

Array = NDArray[Any]
Shape = tuple[int, ...]


def supports(spec: Spec) -> bool:
    """Whether llama.cpp's metadata has words for everything in the spec."""
    yarn = spec.yarn or {}
    blocks = spec.hidden_size % 32 == 0 and spec.intermediate_size % 32 == 0
    return (
        spec.layer_types is None
        and spec.swiglu_limit == 7.0
        and spec.attention_bias
        and not spec.tied
        and not yarn.get("truncate")
        and "attention_factor" not in yarn
        and (spec.expert_dtype != "MXFP4" or blocks)
    )


class Weights:
    """A write_gguf.Source over tensors in memory, by Hugging Face name."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors

    def pieces(self, name: str) -> Iterator[Array]:
        tensor = self._tensors[name]
        if name.endswith("_proj"):  # unquantised experts (E, in, out)
            tensor = tensor.swapaxes(1, 2)
        if tensor.dtype != np.uint8:
            tensor = tensor.astype(np.float32)
        rows = tensor.reshape(-1, *tensor.shape[-2 if name.endswith("_blocks") else -1 :])
        for first in range(0, len(rows), write_gguf.PIECE_ROWS):
            yield rows[first : first + write_gguf.PIECE_ROWS]


def write_model(
    path: Path, spec: Spec, rng: np.random.Generator, dense: str = "f32", **changes: Any
) -> Path:
    """The same logical weights as models.write_model gives for the spec and the generator."""
    weights = Weights(random_tensors(spec, rng))
    write_gguf.write_gguf(
        path, hf_config(spec) | changes, weights, dense, experts=spec.expert_dtype
    )
    return path


def convert(directory: Path, path: Path, dense: str) -> Path:
    """A directory in the Hugging Face layout, as GGUF."""
    config = json.loads((directory / "config.json").read_text())
    tensors: Tensors = {}
    for file in directory.glob("*.safetensors"):
        tensors |= reference.read_safetensors(file)
    tokenizer = Tokenizer(directory) if (directory / "tokenizer.json").exists() else None
    write_gguf.write_gguf(path, config, Weights(tensors), dense, tokenizer=tokenizer)
    return path


# ---- files as other programs write them ----

Values = dict[str, tuple[int, Any]]


def raw_tensor(name: str, shape: tuple[int, ...], kind: str) -> write_gguf.Tensor:
    return write_gguf.Tensor(name, shape, kind, "")


def write_raw(path: Path, values: Values, tensors: list[tuple[write_gguf.Tensor, bytes]]) -> Path:
    """A file of these metadata and tensors."""
    data = write_gguf.header(values, [tensor for tensor, _ in tensors])
    path.write_bytes(data + b"".join(d + bytes(-len(d) % 32) for _, d in tensors))
    return path


def read_raw(path: Path) -> tuple[Values, list[tuple[write_gguf.Tensor, bytes]]]:
    """What write_raw takes, of a file of write_gguf.write_gguf."""
    with gptoss.Model(path) as model:
        tensors = []
        for name in model.tensors:
            info = model.tensor_info(name)
            tensor = raw_tensor(name, info.element_shape, info.format)
            tensors.append((tensor, model.tensors[name].tobytes()))
        values = {}
        for key in model.metadata:
            kind, length, _ = model.metadata.info(key)
            value: Any = model.metadata[key]
            of = TYPE_NUMBERS[kind]
            values[key] = (of, value) if length is None else (9, (of, list(value)))
    return values, tensors


TYPE_NUMBERS = {
    **{"u8": 0, "i8": 1, "u16": 2, "i16": 3, "u32": 4, "i32": 5, "f32": 6, "bool": 7, "str": 8},
    **{"u64": 10, "i64": 11, "f64": 12},
}


def write_parts(
    directory: Path, values: Values, tensors: list[tuple[write_gguf.Tensor, bytes]], count: int
) -> list[Path]:
    """A split file m-0000i-of-0000N.gguf as llama-gguf-split makes it: the first part has the
    metadata."""
    step = -(-len(tensors) // count)
    paths = []
    for part in range(count):
        split: Values = {
            "split.no": (2, part),
            "split.count": (2, count),
            "split.tensors.count": (5, len(tensors)),
        }
        path = directory / f"m-{part + 1:05d}-of-{count:05d}.gguf"
        chosen = tensors[part * step : (part + 1) * step]
        paths.append(write_raw(path, (values if part == 0 else {}) | split, chosen))
    return paths


# ---- any type for any tensor, by the gguf package ----

K_TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
BLOCK_TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", *K_TYPES)


def random_k_blocks(rng: np.random.Generator, type_name: str, shape: Shape, std: float) -> Array:
    """(..., bytes) of random codes and scales whose weights have about that deviation; gguf does
    not quantise to these types."""
    type_ = gguf.GGMLQuantizationType[type_name]
    block, block_bytes = gguf.GGML_QUANT_SIZES[type_]
    blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // block, block_bytes), np.uint8)

    def with_scale(scale: float) -> Array:
        middle = {"Q2_K": 1.5, "Q4_K": 7.5, "Q5_K": 15.5}.get(type_name, 0.0)
        for at, half in zip(HALVES[type_name.lower()], (scale, scale * middle), strict=False):
            blocks[..., at : at + 2] = np.array([half], np.float16).view(np.uint8)
        return blocks.reshape(*shape[:-1], -1)

    return with_scale(std / gguf.quants.dequantize(with_scale(1.0), type_).std())


def encode(rng: np.random.Generator, values: Array, type_name: str) -> Array:
    """The values as a type, or for k types others of the same deviation."""
    if type_name in K_TYPES:
        return random_k_blocks(rng, type_name, values.shape, float(values.std()))
    return gguf.quants.quantize(values, gguf.GGMLQuantizationType[type_name])


def write_types(
    path: Path, spec: Spec, rng: np.random.Generator, choose: Callable[[write_gguf.Tensor], str]
) -> Path:
    """A model whose every tensor has the type that `choose` names. The spec's experts are not
    MXFP4."""
    weights, config = Weights(random_tensors(spec, rng)), hf_config(spec)
    writer = gguf.GGUFWriter(path, "gpt-oss")
    for key, (kind, value) in write_gguf.metadata(config, path.stem).items():
        is_array = kind == gguf.GGUFValueType.ARRAY
        of, value = value if is_array else (None, value)
        if key != "general.architecture":
            of = None if of is None else gguf.GGUFValueType(of)
            writer.add_key_value(key, value, gguf.GGUFValueType(kind), of)
    for tensor in write_gguf.plan_tensors(config, "F32", "F32"):
        data = b"".join(write_gguf.encoded(tensor, weights))
        values = np.frombuffer(data, np.float32).reshape(tensor.shape)
        type_name = choose(tensor)
        writer.add_tensor(
            tensor.name,
            encode(rng, values, type_name),
            raw_dtype=gguf.GGMLQuantizationType[type_name],
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# ---- reading ----

_SCALARS = dict(enumerate(["B", "b", "H", "h", "I", "i", "f", "?", "", "", "Q", "q", "d"]))
_PLAIN: dict[int, Any] = {0: np.float32, 1: np.float16, 30: ml_dtypes.bfloat16}


class Reader:
    """Metadata and decoded tensors (float64) of a GGUF file."""

    def __init__(self, path: Path) -> None:
        self._data, self._at = path.read_bytes(), 4
        _, num_tensors, num_values = self._take("IQQ")
        self.metadata: dict[str, Any] = {}
        for _ in range(num_values):
            key = self._string()
            self.metadata[key] = self._value(*self._take("I"))
        places: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(num_tensors):
            name = self._string()
            (num_dims,) = self._take("I")
            dims = self._take(f"{num_dims}Q")
            places[name] = (dims[::-1], *self._take("IQ"))
        start = -(-self._at // 32) * 32
        self.tensors = {
            name: self._decode(shape, kind, start + offset)
            for name, (shape, kind, offset) in places.items()
        }

    def _take(self, format: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + format, self._data, self._at)
        self._at += struct.calcsize("<" + format)
        return values

    def _string(self) -> str:
        (length,) = self._take("Q")
        return bytes(self._take(f"{length}s")[0]).decode()

    def _value(self, kind: int) -> Any:
        if kind == 8:
            return self._string()
        if kind == 9:
            of, count = self._take("IQ")
            return [self._value(of) for _ in range(count)]
        return self._take(_SCALARS[kind])[0]

    def _decode(self, shape: tuple[int, ...], kind: int, at: int) -> Array:
        count = int(np.prod(shape))
        if kind in _PLAIN:
            flat = np.frombuffer(self._data, _PLAIN[kind], count, at).astype(np.float64)
        elif kind == 8:
            blocks = np.frombuffer(self._data, [("d", "<f2"), ("q", "i1", 32)], count // 32, at)
            flat = blocks["d"].astype(np.float64)[:, None] * blocks["q"]
        elif kind != 39:
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            bytes_ = np.frombuffer(self._data, np.uint8, count // block * block_bytes, at)
            flat = gguf.quants.dequantize(bytes_, gguf.GGMLQuantizationType(kind))
            flat = flat.astype(np.float64)
        else:
            bytes_ = np.frombuffer(self._data, np.uint8, count // 32 * 17, at).reshape(-1, 17)
            codes = np.concatenate([bytes_[:, 1:] & 15, bytes_[:, 1:] >> 4], axis=1)
            pairs = codes[:, ::2] | codes[:, 1::2] << 4  # as Hugging Face has them
            flat = reference.decode_mxfp4(pairs[:, None], bytes_[:, :1])
        decoded: Array = flat.reshape(shape)
        return decoded


_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.router",
}


class GgufModel(reference.Model):
    """What reference.forward needs, from a GGUF file."""

    def __init__(self, path: Path, raw_config: dict[str, Any]) -> None:
        """raw_config: of the same model's config.json."""
        self.raw_config = raw_config
        self.config = reference.Config.read(raw_config)
        self.reader = Reader(path)
        self._is_original = False
        self._stored: dict[str, Array] = {}
        self._experts: dict[int, reference.Experts] = {}
        for name, tensor in self.reader.tensors.items():
            *block, rest, kind = name.split(".")
            prefix = f"model.layers.{block[1]}." if block else ""
            if rest in _NAMES:
                self._stored[f"{prefix}{_NAMES[rest]}.{kind}"] = tensor
            elif rest == "attn_sinks":
                self._stored[prefix + "self_attn.sinks"] = tensor

    def experts(self, layer: int) -> reference.Experts:
        tensors, prefix = self.reader.tensors, f"blk.{layer}.ffn_"

        def interleaved(kind: str) -> Array:
            gate, up = (tensors[f"{prefix}{name}_exps.{kind}"] for name in ("gate", "up"))
            rows = np.stack([gate, up], axis=2)
            return rows.reshape(len(gate), 2 * gate.shape[1], *gate.shape[2:])

        return reference.Experts(
            gate_up=interleaved("weight"),
            gate_up_bias=interleaved("bias"),
            down=tensors[prefix + "down_exps.weight"],
            down_bias=tensors[prefix + "down_exps.bias"],
        )
