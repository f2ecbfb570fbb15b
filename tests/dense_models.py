"""Random tiny models of the dense families, llama and gpt2, in both kinds of files.

    write_llama(directory, Llama(num_heads=6), numpy.random.default_rng(7), "F16")
    write_gguf(path, spec, numpy.random.default_rng(7), "Q8_0")

The same spec and seed give the same weights by Hugging Face name. GGUF files hold them as llama.cpp
converts them: rows of llama's queries and keys so that neighbours turn together, gpt2's matrices
transposed, Llama 3's scaling as a tensor of divisors.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import gguf_models
import numpy as np
from models import DTYPES, Array, Tensors, write_safetensors


@dataclass(frozen=True)
class Llama:
    num_layers: int = 2
    hidden_size: int = 64
    intermediate_size: int = 96
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int | None = None  # None: not stated
    vocab_size: int = 97
    max_positions: int = 128
    rope_theta: float = 10000.0
    rope: dict[str, Any] | None = field(default=None, hash=False)
    rope_key: str = "rope_scaling"  # or "rope_parameters"
    eps: float = 1e-5
    tied: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_heads

    def config(self) -> dict[str, Any]:
        """config.json as transformers writes it."""
        config: dict[str, Any] = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": self.attention_bias,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_positions,
            "mlp_bias": self.mlp_bias,
            "num_attention_heads": self.num_heads,
            "num_hidden_layers": self.num_layers,
            "num_key_value_heads": self.num_kv_heads,
            "rms_norm_eps": self.eps,
            "tie_word_embeddings": self.tied,
            "vocab_size": self.vocab_size,
        }
        if self.head_dim is not None:
            config["head_dim"] = self.head_dim
        if self.rope_key == "rope_parameters":
            rope = self.rope or {"rope_type": "default"}
            return config | {"rope_parameters": rope | {"rope_theta": self.rope_theta}}
        return config | {"rope_theta": self.rope_theta, "rope_scaling": self.rope}

    def tensors(self, rng: np.random.Generator, dtype: str) -> Tensors:
        """The weights by Hugging Face name."""
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        linear = {
            "self_attn.q_proj": (queries, hidden, 1.3, self.attention_bias),
            "self_attn.k_proj": (keys, hidden, 1.3, self.attention_bias),
            "self_attn.v_proj": (keys, hidden, 1.0, self.attention_bias),
            "self_attn.o_proj": (hidden, queries, 1.0, self.attention_bias),
            "mlp.gate_proj": (inner, hidden, 2.0, self.mlp_bias),
            "mlp.up_proj": (inner, hidden, 1.0, self.mlp_bias),
            "mlp.down_proj": (hidden, inner, 1.0, self.mlp_bias),
        }
        random = _Random(rng, dtype)
        tensors = {"model.embed_tokens.weight": random((self.vocab_size, hidden), 1.0)}
        for layer in range(self.num_layers):
            prefix = f"model.layers.{layer}."
            for name in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{prefix}{name}.weight"] = random((hidden,), 0.2, 1.0)
            for name, (rows, columns, gain, has_bias) in linear.items():
                std = gain / math.sqrt(columns)
                tensors[f"{prefix}{name}.weight"] = random((rows, columns), std)
                if has_bias:
                    tensors[f"{prefix}{name}.bias"] = random((rows,), 0.3)
        tensors["model.norm.weight"] = random((hidden,), 0.2, 1.0)
        if not self.tied:
            tensors["lm_head.weight"] = random((self.vocab_size, hidden), 2 / math.sqrt(hidden))
        return tensors

    def gguf(self, tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
        """Metadata and tensors as llama.cpp's converter makes them."""
        values: dict[str, Any] = {
            "general.architecture": "llama",
            "llama.block_count": self.num_layers,
            "llama.context_length": self.max_positions,
            "llama.embedding_length": self.hidden_size,
            "llama.feed_forward_length": self.intermediate_size,
            "llama.attention.head_count": self.num_heads,
            "llama.attention.head_count_kv": self.num_kv_heads,
            "llama.attention.layer_norm_rms_epsilon": self.eps,
            "llama.rope.freq_base": self.rope_theta,
            "llama.rope.dimension_count": self.head_size,
        }
        if self.head_dim is not None:
            values["llama.attention.key_length"] = self.head_dim
            values["llama.attention.value_length"] = self.head_dim
        renamed = Tensors()
        for name, tensor in tensors.items():
            for heads, which in ((self.num_heads, "q"), (self.num_kv_heads, "k")):
                if f".{which}_proj." in name:
                    halves = tensor.reshape(heads, 2, self.head_size // 2, -1)
                    tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
            renamed[_spelled(name, _LLAMA_NAMES)] = tensor
        kind = (self.rope or {}).get("rope_type")
        if kind == "linear":
            assert self.rope is not None
            values["llama.rope.scaling.type"] = "linear"
            values["llama.rope.scaling.factor"] = self.rope["factor"]
        elif kind == "yarn":
            assert self.rope is not None
            values["llama.rope.scaling.type"] = "yarn"
            for key, gguf_key in _YARN_KEYS.items():
                if key in self.rope:
                    values[f"llama.rope.scaling.{gguf_key}"] = self.rope[key]
        elif kind == "llama3":
            renamed["rope_freqs.weight"] = self.divisors()
        return values, renamed

    def divisors(self) -> Array:
        """What Llama 3's scaling divides each frequency by."""
        assert self.rope is not None
        rope = self.rope
        inverse = self.rope_theta ** (-np.arange(0, self.head_size, 2) / self.head_size)
        turns = rope["original_max_position_embeddings"] * inverse / (2 * math.pi)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        kept = np.clip((turns - low) / (high - low), 0, 1)
        return (1 / ((1 - kept) / rope["factor"] + kept)).astype(np.float32)


@dataclass(frozen=True)
class Gpt2:
    num_layers: int = 2
    hidden_size: int = 64
    intermediate_size: int | None = None  # None: four times the hidden size
    num_heads: int = 4
    vocab_size: int = 97
    max_positions: int = 128
    eps: float = 1e-5
    tied: bool = True
    prefix: str = "transformer."  # or "", as openai's release

    @property
    def inner(self) -> int:
        return self.intermediate_size or 4 * self.hidden_size

    def config(self) -> dict[str, Any]:
        """config.json as transformers writes it."""
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "activation_function": "gelu_new",
            "layer_norm_epsilon": self.eps,
            "n_ctx": self.max_positions,
            "n_embd": self.hidden_size,
            "n_head": self.num_heads,
            "n_inner": self.intermediate_size,
            "n_layer": self.num_layers,
            "n_positions": self.max_positions,
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "tie_word_embeddings": self.tied,
            "vocab_size": self.vocab_size,
        }

    def tensors(self, rng: np.random.Generator, dtype: str) -> Tensors:
        """The weights by Hugging Face name; matrices are [inputs][outputs]."""
        hidden = self.hidden_size
        linear = {
            "attn.c_attn": (3 * hidden, hidden, 1.3),
            "attn.c_proj": (hidden, hidden, 1.0),
            "mlp.c_fc": (self.inner, hidden, 2.0),
            "mlp.c_proj": (hidden, self.inner, 1.0),
        }
        random = _Random(rng, dtype)
        tensors = {
            "wte.weight": random((self.vocab_size, hidden), 1.0),
            "wpe.weight": random((self.max_positions, hidden), 0.5),
        }
        for layer in range(self.num_layers):
            for name in ("ln_1", "ln_2"):
                tensors[f"h.{layer}.{name}.weight"] = random((hidden,), 0.2, 1.0)
                tensors[f"h.{layer}.{name}.bias"] = random((hidden,), 0.2)
            for name, (rows, columns, gain) in linear.items():
                std = gain / math.sqrt(columns)
                tensors[f"h.{layer}.{name}.weight"] = random((columns, rows), std)
                tensors[f"h.{layer}.{name}.bias"] = random((rows,), 0.3)
        tensors["ln_f.weight"] = random((hidden,), 0.2, 1.0)
        tensors["ln_f.bias"] = random((hidden,), 0.2)
        tensors = {self.prefix + name: tensor for name, tensor in tensors.items()}
        if not self.tied:
            tensors["lm_head.weight"] = random((self.vocab_size, hidden), 2 / math.sqrt(hidden))
        return tensors

    def gguf(self, tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
        """Metadata and tensors as llama.cpp's converter makes them."""
        values: dict[str, Any] = {
            "general.architecture": "gpt2",
            "gpt2.block_count": self.num_layers,
            "gpt2.context_length": self.max_positions,
            "gpt2.embedding_length": self.hidden_size,
            "gpt2.feed_forward_length": self.inner,
            "gpt2.attention.head_count": self.num_heads,
            "gpt2.attention.layer_norm_epsilon": self.eps,
        }
        renamed = Tensors()
        for name, tensor in tensors.items():
            is_conv1d = ".c_" in name and name.endswith(".weight")
            name = name.removeprefix(self.prefix)
            renamed[_spelled(name, _GPT2_NAMES)] = tensor.T if is_conv1d else tensor
        return values, renamed


class _Random:
    def __init__(self, rng: np.random.Generator, dtype: str) -> None:
        self._rng, self._dtype = rng, DTYPES[dtype]

    def __call__(self, shape: tuple[int, ...], std: float, mean: float = 0.0) -> Array:
        values = self._rng.standard_normal(shape, np.float32) * np.float32(std) + np.float32(mean)
        return values.astype(self._dtype)


_YARN_KEYS = {
    "factor": "factor",
    "original_max_position_embeddings": "original_context_length",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
}
_LLAMA_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GPT2_NAMES = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "lm_head": "output",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def _spelled(name: str, names: dict[str, str]) -> str:
    """'model.layers.3.mlp.up_proj.bias' or 'h.3.mlp.c_fc.bias' -> 'blk.3.ffn_up.bias'."""
    stem, kind = name.rsplit(".", 1)
    if stem in names:
        return f"{names[stem]}.{kind}"
    layer, rest = stem.removeprefix("model.layers.").removeprefix("h.").split(".", 1)
    return f"blk.{layer}.{names[rest]}.{kind}"


Spec = Llama | Gpt2


def write_hf(directory: Path, spec: Spec, rng: np.random.Generator, dtype: str = "F32") -> Path:
    """config.json and model.safetensors; returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(spec.config(), indent=2))
    write_safetensors(directory / "model.safetensors", spec.tensors(rng, dtype))
    return directory


def write_gguf(path: Path, spec: Spec, rng: np.random.Generator, dtype: str = "F32") -> Path:
    """dtype: of the matrices, F32, F16, BF16 or Q8_0; vectors are F32, as in llama.cpp's files."""
    values, tensors = spec.gguf(spec.tensors(rng, "F32"))
    path.write_bytes(encode_gguf(values, tensors, dtype))
    return path


def write_types(
    directory: Path, spec: Spec, rng: np.random.Generator, choose: Callable[[str], str]
) -> tuple[Path, Path]:
    """Two files: every matrix in the type that `choose` names for it, and the same weights in F32,
    as the gguf package decodes them."""
    values, tensors = spec.gguf(spec.tensors(rng, "F32"))
    kinds = {name: choose(name) for name, tensor in tensors.items() if tensor.ndim > 1}
    decoded, blocks = dict(tensors), dict[str, Array]()
    for name, kind in kinds.items():
        type_ = gguf.GGMLQuantizationType[kind]
        blocks[name] = gguf_models.encode(rng, tensors[name].astype(np.float32), kind)
        decoded[name] = gguf.quants.dequantize(blocks[name], type_)
    packed, plain = directory / "packed.gguf", directory / "plain.gguf"
    packed.write_bytes(encode_gguf(values, tensors, "F32", kinds, blocks))
    plain.write_bytes(encode_gguf(values, decoded, "F32"))
    return packed, plain


# ---- the container ----


def encode_gguf(
    values: dict[str, Any],
    tensors: Tensors,
    dtype: str,
    kinds: dict[str, str] | None = None,
    blocks: Tensors | None = None,
) -> bytes:
    """A GGUF file: int values as uint32, float as float32, str as string. kinds, blocks: types and
    data of tensors that are encoded already."""
    kinds, blocks = kinds or {}, blocks or {}
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(values))
    for key, value in values.items():
        header += _text(key) + _value(value)
    data = b""
    for name, tensor in tensors.items():
        kind = kinds.get(name, dtype if tensor.ndim > 1 else "F32")
        header += _text(name) + struct.pack("<I", tensor.ndim)
        header += struct.pack(f"<{tensor.ndim}Q", *tensor.shape[::-1])
        header += struct.pack("<IQ", gguf.GGMLQuantizationType[kind], len(data))
        encoded = blocks[name].tobytes() if name in blocks else _encoded(tensor, kind)
        data += _padded(encoded)
    return _padded(header) + data


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    kind, layout = (6, "<If") if isinstance(value, float) else (4, "<II")
    return struct.pack(layout, kind, value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 32)


def _encoded(tensor: Array, kind: str) -> bytes:
    values = np.ascontiguousarray(tensor, np.float32)
    if kind != "Q8_0":
        return values.astype(DTYPES[kind]).tobytes()
    blocks = values.reshape(-1, 32)
    scale = (np.abs(blocks).max(axis=1) / 127).astype(np.float16)
    codes = np.rint(blocks / np.where(scale == 0, 1, scale).astype(np.float32)[:, None])
    packed = np.empty(len(blocks), [("d", "<f2"), ("q", "i1", 32)])
    packed["d"], packed["q"] = scale, np.clip(codes, -127, 127)
    return packed.tobytes()
