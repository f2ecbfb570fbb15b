"""Random tiny gpt-oss models in every layout that a checkpoint may have on disk.

    write_model(directory, Spec(num_heads=6, head_dim=20), numpy.random.default_rng(7),
    layout="original")

The weights are scaled so that activations stay of order one, clamps and sinks matter, and a few
MXFP4 blocks carry the smallest scale there is. The same Spec and seed give the same logical weights
in every layout.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Tensors = dict[str, Array]

LAYOUTS = ("hf", "hf_sharded", "original", "original_sharded")
DTYPES: dict[str, Any] = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}
_FILE_DTYPES = {np.dtype(dtype): name for name, dtype in DTYPES.items()} | {
    np.dtype(np.uint8): "U8"
}


def default_yarn() -> dict[str, Any]:
    return {
        "rope_type": "yarn",
        "factor": 4.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": 32,
        "truncate": False,
    }


@dataclass(frozen=True)
class Spec:
    """Sizes and spellings. MXFP4 needs hidden_size and intermediate_size as multiples of 32."""

    num_layers: int = 2
    hidden_size: int = 64
    intermediate_size: int = 64
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 32
    num_experts: int = 4
    experts_per_token: int = 2
    vocab_size: int = 97
    window: int = 8
    max_positions: int = 128
    layer_types: tuple[str, ...] | None = None
    rope_theta: float = 150000.0
    yarn: dict[str, Any] | None = field(default_factory=default_yarn)
    rope_spelling: str = (
        "rope_scaling"  # or "rope_parameters", or "mixed": parameters, theta outside
    )
    swiglu_limit: float = 7.0
    rms_norm_eps: float = 1e-5
    tied: bool = False
    attention_bias: bool = True
    dense_dtype: str = "BF16"
    expert_dtype: str = "MXFP4"  # or one of DTYPES: unquantised, stored (E, in, out)
    expert_gain: float = 2.0  # of gate_up: how often the clamps bite
    scale_spread: int = 0  # a few MXFP4 scales are up to 2^so much smaller


def random_tensors(spec: Spec, rng: np.random.Generator) -> Tensors:
    """The weights by Hugging Face name."""

    def dense(*shape: int, std: float, mean: float = 0.0, dtype: str = spec.dense_dtype) -> Array:
        values = rng.standard_normal(shape, np.float32) * np.float32(std) + np.float32(mean)
        return values.astype(DTYPES[dtype])

    hidden, tensors = spec.hidden_size, Tensors()
    tensors["model.embed_tokens.weight"] = dense(spec.vocab_size, hidden, std=1.0)
    for layer in range(spec.num_layers):
        prefix = f"model.layers.{layer}."
        attention = prefix + "self_attn."
        tensors[prefix + "input_layernorm.weight"] = dense(hidden, std=0.2, mean=1.0)
        sizes = {"q": spec.num_heads, "k": spec.num_kv_heads, "v": spec.num_kv_heads}
        for name, heads in sizes.items():
            rows = heads * spec.head_dim
            tensors[f"{attention}{name}_proj.weight"] = dense(
                rows, hidden, std=1.3 / math.sqrt(hidden)
            )
            tensors[f"{attention}{name}_proj.bias"] = dense(rows, std=0.2)
        columns = spec.num_heads * spec.head_dim
        tensors[attention + "o_proj.weight"] = dense(hidden, columns, std=1 / math.sqrt(columns))
        tensors[attention + "o_proj.bias"] = dense(hidden, std=0.1)
        tensors[attention + "sinks"] = dense(spec.num_heads, std=1.0)
        tensors[prefix + "post_attention_layernorm.weight"] = dense(hidden, std=0.2, mean=1.0)
        router_std = 1 / math.sqrt(hidden)
        tensors[prefix + "mlp.router.weight"] = dense(spec.num_experts, hidden, std=router_std)
        tensors[prefix + "mlp.router.bias"] = dense(spec.num_experts, std=0.2)
        tensors |= _random_experts(spec, prefix + "mlp.experts.", rng, dense)
    tensors["model.norm.weight"] = dense(hidden, std=0.2, mean=1.0)
    tensors["lm_head.weight"] = dense(spec.vocab_size, hidden, std=2 / math.sqrt(hidden))
    if spec.tied:
        del tensors["lm_head.weight"]
    if not spec.attention_bias:
        tensors = {n: t for n, t in tensors.items() if not n.endswith("_proj.bias")}
    return tensors


def _random_experts(spec: Spec, prefix: str, rng: np.random.Generator, dense: Any) -> Tensors:
    tensors = Tensors()
    shapes = {
        "gate_up_proj": (2 * spec.intermediate_size, spec.hidden_size, spec.expert_gain),
        "down_proj": (spec.hidden_size, spec.intermediate_size, 0.5),
    }
    for name, (rows, columns, gain) in shapes.items():
        std = gain / math.sqrt(columns)
        if spec.expert_dtype == "MXFP4":
            blocks, scales = random_mxfp4(rng, (spec.num_experts, rows, columns), std)
            if spec.scale_spread > 0:
                less = rng.integers(0, spec.scale_spread + 1, scales.shape)
                less[rng.random(scales.shape) < 0.9] = 0
                scales = np.maximum(scales - less, 0).astype(np.uint8)
            tensors[f"{prefix}{name}_blocks"], tensors[f"{prefix}{name}_scales"] = blocks, scales
        else:
            shape = (spec.num_experts, columns, rows)
            tensors[prefix + name] = dense(*shape, std=std, dtype=spec.expert_dtype)
        tensors[f"{prefix}{name}_bias"] = dense(spec.num_experts, rows, std=0.3)
    return tensors


def random_mxfp4(
    rng: np.random.Generator, shape: tuple[int, int, int], std: float
) -> tuple[Array, Array]:
    """Blocks (E, rows, columns / 32, 16) and scales (E, rows, columns / 32), uint8."""
    experts, rows, columns = shape
    blocks = rng.integers(0, 256, (experts, rows, columns // 32, 16), np.uint8)
    exponent = 127 + round(math.log2(std / 2.93))  # 2.93: standard deviation of the sixteen codes
    scales = rng.integers(exponent - 1, exponent + 2, blocks.shape[:3]).astype(np.uint8)
    scales[rng.random(scales.shape) < 0.02] = 0
    return blocks, scales


def hf_config(spec: Spec) -> dict[str, Any]:
    """config.json as transformers writes it."""
    types = spec.layer_types or tuple(
        "full_attention" if layer % 2 else "sliding_attention" for layer in range(spec.num_layers)
    )
    config: dict[str, Any] = {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "attention_bias": spec.attention_bias,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "layer_types": list(types),
        "max_position_embeddings": spec.max_positions,
        "num_attention_heads": spec.num_heads,
        "num_experts_per_tok": spec.experts_per_token,
        "num_hidden_layers": spec.num_layers,
        "num_key_value_heads": spec.num_kv_heads,
        "num_local_experts": spec.num_experts,
        "rms_norm_eps": spec.rms_norm_eps,
        "sliding_window": spec.window,
        "swiglu_limit": spec.swiglu_limit,
        "tie_word_embeddings": spec.tied,
        "vocab_size": spec.vocab_size,
    }
    if spec.expert_dtype == "MXFP4":
        config["quantization_config"] = {"quant_method": "mxfp4"}
    return config | _rope_config(spec)


def _rope_config(spec: Spec) -> dict[str, Any]:
    if spec.rope_spelling == "rope_scaling":
        return {"rope_theta": spec.rope_theta, "rope_scaling": spec.yarn}
    rope = dict(spec.yarn or {"rope_type": "default"})
    if spec.rope_spelling == "mixed":
        return {"rope_theta": spec.rope_theta, "rope_parameters": rope}
    return {"rope_parameters": rope | {"rope_theta": spec.rope_theta}}


def original_config(spec: Spec) -> dict[str, Any]:
    """config.json of openai's original/ directory. It cannot say everything: see supports()."""
    yarn = spec.yarn or default_yarn() | {"factor": 1.0}
    return {
        "num_hidden_layers": spec.num_layers,
        "num_experts": spec.num_experts,
        "experts_per_token": spec.experts_per_token,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "swiglu_limit": spec.swiglu_limit,
        "head_dim": spec.head_dim,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "sliding_window": spec.window,
        "initial_context_length": yarn["original_max_position_embeddings"],
        "rope_theta": spec.rope_theta,
        "rope_scaling_factor": yarn["factor"],
        "rope_ntk_alpha": yarn["beta_slow"],
        "rope_ntk_beta": yarn["beta_fast"],
    }


def supports(spec: Spec, layout: str) -> bool:
    """Whether the layout has words for everything in the spec."""
    return layout.startswith("hf") or (
        spec.layer_types is None
        and spec.rms_norm_eps == 1e-5
        and spec.expert_dtype == "MXFP4"
        and spec.attention_bias
        and not spec.tied
        and not (spec.yarn or {}).get("truncate")
        and "attention_factor" not in (spec.yarn or {})
    )


_ORIGINAL_NAMES = {
    "model.embed_tokens.weight": "embedding.weight",
    "model.norm.weight": "norm.scale",
    "lm_head.weight": "unembedding.weight",
    "input_layernorm.weight": "attn.norm.scale",
    "self_attn.qkv.weight": "attn.qkv.weight",
    "self_attn.qkv.bias": "attn.qkv.bias",
    "self_attn.o_proj.weight": "attn.out.weight",
    "self_attn.o_proj.bias": "attn.out.bias",
    "self_attn.sinks": "attn.sinks",
    "post_attention_layernorm.weight": "mlp.norm.scale",
    "mlp.router.weight": "mlp.gate.weight",
    "mlp.router.bias": "mlp.gate.bias",
    "mlp.experts.gate_up_proj_blocks": "mlp.mlp1_weight.blocks",
    "mlp.experts.gate_up_proj_scales": "mlp.mlp1_weight.scales",
    "mlp.experts.gate_up_proj_bias": "mlp.mlp1_bias",
    "mlp.experts.down_proj_blocks": "mlp.mlp2_weight.blocks",
    "mlp.experts.down_proj_scales": "mlp.mlp2_weight.scales",
    "mlp.experts.down_proj_bias": "mlp.mlp2_bias",
}


def original_tensors(spec: Spec, tensors: Tensors) -> Tensors:
    """The same weights under openai's names, q, k and v fused."""
    renamed = Tensors()
    fused = dict(tensors)
    for layer in range(spec.num_layers):
        prefix = f"model.layers.{layer}.self_attn."
        for kind in ("weight", "bias"):
            parts = [fused.pop(f"{prefix}{name}_proj.{kind}") for name in "qkv"]
            fused[f"{prefix}qkv.{kind}"] = np.concatenate(parts)
    for name, tensor in fused.items():
        if name.startswith("model.layers."):
            _, _, layer_name, rest = name.split(".", 3)
            renamed[f"block.{layer_name}.{_ORIGINAL_NAMES[rest]}"] = tensor
        else:
            renamed[_ORIGINAL_NAMES[name]] = tensor
    return renamed


def safetensors_header(tensors: Tensors) -> dict[str, Any]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": _FILE_DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    return header


def write_safetensors(path: Path, tensors: Tensors, header: Any = None, pad: bool = True) -> None:
    """header: a dict or its bytes, to lie about the tensors. pad=False: data at an odd place."""
    if header is None:
        header = safetensors_header(tensors)
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * ((-len(text)) % 8 if pad else (1 - len(text)) % 8)
    data = b"".join(np.ascontiguousarray(tensor).tobytes() for tensor in tensors.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def split_shards(tensors: Tensors, count: int) -> list[Tensors]:
    """By bytes, in the order of names: the tensors of a layer straddle shards."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    shards: list[Tensors] = [Tensors() for _ in range(count)]
    done = 0
    for name in sorted(tensors):
        shards[min(done * count // total, count - 1)][name] = tensors[name]
        done += tensors[name].nbytes
    return [shard for shard in shards if shard]


def write_shards(directory: Path, shards: list[Tensors], names: list[str]) -> None:
    weight_map: dict[str, str] = {}
    for shard, name in zip(shards, names, strict=True):
        write_safetensors(directory / name, shard)
        weight_map |= dict.fromkeys(shard, name)
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def write_model(
    directory: str | Path, spec: Spec, rng: np.random.Generator, layout: str = "hf"
) -> Path:
    """Writes config.json and the weights; returns the directory."""
    if layout not in LAYOUTS or not supports(spec, layout):
        raise ValueError(f"layout {layout!r} cannot hold {spec}")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(spec, rng)
    if layout.startswith("original"):
        config, tensors = original_config(spec), original_tensors(spec, tensors)
    else:
        config = hf_config(spec)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    if not layout.endswith("_sharded"):
        write_safetensors(directory / "model.safetensors", tensors)
        return directory
    shards = split_shards(tensors, 3)
    if layout == "hf_sharded":  # numbered from 0 and counted one short, as the released files are
        last = len(shards) - 1
        names = [f"model-{n:05d}-of-{last:05d}.safetensors" for n in range(len(shards))]
    else:
        names = [f"model--{n + 1:05d}-of-{len(shards):05d}.safetensors" for n in range(len(shards))]
    write_shards(directory, shards, names)
    return directory
