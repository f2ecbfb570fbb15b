"""The gpt-oss forward pass in float64 NumPy, written from the model's equations.

It shares no code with the engine: its own reader, its own MXFP4 decoder, its own YaRN. Activations
carry the names of the engine's taps, so that a test compares the two by looping over names.

    model = reference.Model(directory)
    trace = reference.forward(model, tokens)
    trace["logits"]                 # (rows, vocab_size)
    trace["layers.0.router_logits"] # (rows, num_experts)
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_DTYPES: dict[str, Any] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "U8": np.uint8,
}
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])

_ORIGINAL_GLOBALS = {
    "model.embed_tokens.weight": "embedding.weight",
    "model.norm.weight": "norm.scale",
    "lm_head.weight": "unembedding.weight",
}
_ORIGINAL_LAYER = {
    "input_layernorm.weight": "attn.norm.scale",
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


def read_safetensors(path: Path) -> dict[str, Array]:
    """Every tensor of a file, in its stored dtype."""
    data = path.read_bytes()
    (header_bytes,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + header_bytes])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + header_bytes + offset for offset in entry["data_offsets"])
        values = np.frombuffer(data[begin:end], _DTYPES[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def decode_mxfp4(blocks: Array, scales: Array) -> Array:
    """blocks (..., n, 16), low nibble first; scales (..., n); uint8 -> (..., n * 32) float64."""
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 32)
    scale = np.where(scales == 255, np.nan, np.exp2(scales.astype(np.float64) - 127))
    values: Array = _E2M1[codes] * scale[..., None]
    return values.reshape(*blocks.shape[:-2], -1)


@dataclass(frozen=True)
class Config:
    """What the forward pass needs to know, from either spelling of config.json."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    experts_per_token: int
    window: int
    is_sliding: tuple[bool, ...]
    eps: float
    swiglu_limit: float
    swiglu_alpha: float
    tied: bool
    theta: float
    yarn: dict[str, Any] | None

    @staticmethod
    def read(raw: dict[str, Any]) -> Config:
        layers = raw["num_hidden_layers"]
        types = raw.get("layer_types") or [
            "sliding_attention" if layer % 2 == 0 else "full_attention" for layer in range(layers)
        ]
        theta, yarn = _read_rope(raw)
        return Config(
            num_layers=layers,
            num_heads=raw["num_attention_heads"],
            num_kv_heads=raw["num_key_value_heads"],
            head_dim=raw["head_dim"],
            experts_per_token=raw.get("num_experts_per_tok") or raw["experts_per_token"],
            window=raw["sliding_window"],
            is_sliding=tuple(kind == "sliding_attention" for kind in types),
            eps=raw.get("rms_norm_eps", 1e-5),
            swiglu_limit=raw.get("swiglu_limit", 7.0),
            swiglu_alpha=raw.get("swiglu_alpha", 1.702),
            tied=raw.get("tie_word_embeddings", False),
            theta=theta,
            yarn=yarn,
        )


def _read_rope(raw: dict[str, Any]) -> tuple[float, dict[str, Any] | None]:
    if "rope_scaling_factor" in raw:  # openai's original/config.json
        yarn = {
            "rope_type": "yarn",
            "factor": raw["rope_scaling_factor"],
            "beta_fast": raw["rope_ntk_beta"],
            "beta_slow": raw["rope_ntk_alpha"],
            "original_max_position_embeddings": raw["initial_context_length"],
        }
        return raw["rope_theta"], yarn if yarn["factor"] > 1 else None
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = rope.get("rope_theta", raw.get("rope_theta", 150000.0))
    return theta, rope if rope.get("rope_type", rope.get("type")) == "yarn" else None


def inverse_frequencies(config: Config) -> tuple[Array, float]:
    """(head_dim / 2,) float64, and the factor on cosine and sine, as transformers computes them."""
    if config.yarn is None:
        return config.theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim), 1.0
    return yarn_frequencies(config.head_dim, config.theta, config.yarn)


def yarn_frequencies(dim: int, theta: float, yarn: dict[str, Any]) -> tuple[Array, float]:
    """As inverse_frequencies."""
    extrapolated = theta ** (-np.arange(0, dim, 2) / dim)
    positions = yarn["original_max_position_embeddings"]

    def correction(rotations: float) -> float:
        return dim * math.log(positions / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = correction(yarn.get("beta_fast", 32)), correction(yarn.get("beta_slow", 1))
    if yarn.get("truncate", False):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
    inverse = ramp * extrapolated / yarn["factor"] + (1 - ramp) * extrapolated
    return inverse, _concentration(yarn)


def _concentration(yarn: dict[str, Any]) -> float:
    def mscale(factor: float, scale: float = 1.0) -> float:
        return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0

    if yarn.get("attention_factor") is not None:
        return float(yarn["attention_factor"])
    if yarn.get("mscale") and yarn.get("mscale_all_dim"):
        return mscale(yarn["factor"], yarn["mscale"]) / mscale(
            yarn["factor"], yarn["mscale_all_dim"]
        )
    return mscale(yarn["factor"])


@dataclass(frozen=True)
class Experts:
    """gate_up (E, 2 * inner, hidden), rows gate and up in turn; down (E, hidden, inner)."""

    gate_up: Array
    gate_up_bias: Array
    down: Array
    down_bias: Array


class Model:
    """A directory in the Hugging Face or the original layout; tensors by Hugging Face names."""

    def __init__(self, directory: str | Path) -> None:
        directory = Path(directory)
        self.raw_config: dict[str, Any] = json.loads((directory / "config.json").read_text())
        self.config = Config.read(self.raw_config)
        self._stored: dict[str, Array] = {}
        for path in sorted(directory.glob("*.safetensors")):
            self._stored.update(read_safetensors(path))
        self._is_original = "embedding.weight" in self._stored
        self._experts: dict[int, Experts] = {}

    def _find(self, name: str) -> Array | None:
        if not self._is_original or name in _ORIGINAL_GLOBALS:
            return self._stored.get(_ORIGINAL_GLOBALS[name] if self._is_original else name)
        _, _, layer, rest = name.split(".", 3)
        if rest in _ORIGINAL_LAYER:
            return self._stored[f"block.{layer}.{_ORIGINAL_LAYER[rest]}"]
        if not rest.startswith("self_attn."):
            return None
        projection, kind = rest.removeprefix("self_attn.").split("_proj.")
        config = self.config
        sizes = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        bounds = np.cumsum(sizes)[:-1] * config.head_dim
        fused = self._stored[f"block.{layer}.attn.qkv.{kind}"]
        parts = np.split(fused, bounds)
        return parts["qkv".index(projection)]

    def __getitem__(self, name: str) -> Array:
        tensor = self._find(name)
        if tensor is None:
            raise KeyError(name)
        return tensor.astype(np.float64)

    def linear(self, prefix: str, x: Array, precision: str = "fp32") -> Array:
        """x @ weight.T + bias; a bias that the checkpoint lacks is zero."""
        bias = self._find(prefix + ".bias")
        y: Array = as_factor(x, precision) @ self[prefix + ".weight"].T
        return y if bias is None else y + bias.astype(np.float64)

    def experts(self, layer: int) -> Experts:
        if layer not in self._experts:
            prefix = f"model.layers.{layer}.mlp.experts."
            self._experts[layer] = Experts(
                self._expert_matrix(prefix + "gate_up_proj"),
                self[prefix + "gate_up_proj_bias"],
                self._expert_matrix(prefix + "down_proj"),
                self[prefix + "down_proj_bias"],
            )
        return self._experts[layer]

    def _expert_matrix(self, name: str) -> Array:
        plain = self._find(name)
        if plain is not None:  # unquantised experts are stored (E, in, out)
            return plain.astype(np.float64).swapaxes(1, 2)
        blocks, scales = self._find(name + "_blocks"), self._find(name + "_scales")
        assert blocks is not None and scales is not None, name
        return decode_mxfp4(blocks, scales)

    @cached_property
    def unembedding(self) -> Array:
        return self["model.embed_tokens.weight" if self.config.tied else "lm_head.weight"]


def as_factor(x: Array, precision: str) -> Array:
    """Activations as a matrix product takes them: float32, and at precision "bf16" rounded."""
    if precision == "fp32":
        return x
    rounded: Array = x.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)
    return rounded


def rms_norm(x: Array, gain: Array, eps: float) -> Array:
    normed: Array = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * gain
    return normed


def rotate(x: Array, cosine: Array, sine: Array) -> Array:
    """x (rows, heads, head_dim), pairs (i, i + head_dim / 2); cosine, sine (rows, head_dim / 2)."""
    a, b = np.split(x, 2, axis=-1)
    cosine, sine = cosine[:, None], sine[:, None]
    return np.concatenate([a * cosine - b * sine, b * cosine + a * sine], axis=-1)


def attention(
    q: Array, k: Array, v: Array, sinks: Array, window: int | None, precision: str = "fp32"
) -> tuple[Array, Array]:
    """q (rows, heads, d); k, v (rows, kv_heads, d) -> output as q, sink mass (rows, heads).

    precision "bf16" also rounds weights, relative to the highest of each 64 positions.
    """
    rows, heads, head_dim = q.shape
    q, k, v = (as_factor(x, precision) for x in (q, k, v))
    group = heads // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(head_dim)
    distance = np.arange(rows)[:, None] - np.arange(rows)
    visible = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
    scores = np.where(visible, scores, -np.inf)
    top = np.maximum(scores.max(axis=-1), sinks[:, None])
    weights = np.exp(scores - top[..., None])
    for tile in (slice(start, start + 64) for start in range(0, rows, 64)):
        highest = weights[..., tile].max(axis=-1, keepdims=True) + 1e-300
        weights[..., tile] = as_factor(weights[..., tile] / highest, precision) * highest
    sink = np.exp(sinks[:, None] - top)
    total = weights.sum(axis=-1) + sink
    output = np.einsum("hqk,khd->qhd", weights / total[..., None], v)
    return output, (sink / total).T


def swiglu(gate_up: Array, limit: float, alpha: float) -> Array:
    """(rows, 2 * intermediate), gate and up in turn -> (rows, intermediate)."""
    gate = np.minimum(gate_up[:, ::2], limit)
    up = np.clip(gate_up[:, 1::2], -limit, limit)
    activated: Array = gate / (1 + np.exp(-alpha * gate)) * (up + 1)
    return activated


def choose_experts(logits: Array, count: int) -> Array:
    """(rows, count) in order of falling logit; equal logits go to the lower id."""
    return np.argsort(-logits, axis=-1, kind="stable")[:, :count]


def run_experts(
    model: Model, layer: int, x: Array, chosen: Array, precision: str = "fp32"
) -> Array:
    """Unweighted outputs (rows, k, hidden)."""
    config, experts = model.config, model.experts(layer)
    outputs = np.empty((*chosen.shape, x.shape[1]))
    for expert in np.unique(chosen):
        rows, ranks = np.nonzero(chosen == expert)
        hidden = as_factor(x[rows], precision) @ experts.gate_up[expert].T
        hidden += experts.gate_up_bias[expert]
        hidden = swiglu(hidden, config.swiglu_limit, config.swiglu_alpha)
        output = as_factor(hidden, precision) @ experts.down[expert].T
        outputs[rows, ranks] = output + experts.down_bias[expert]
    return outputs


def forward(
    model: Model,
    tokens: Any,
    *,
    kv_dtype: str = "f32",
    routes: dict[int, Array] | None = None,
    precision: str = "fp32",
    attention_precision: str = "fp32",
) -> dict[str, Array]:
    """Every named activation of a whole sequence, and "logits" (rows, vocab_size), all float64 but
    for the expert ids.

    kv_dtype "f16" rounds keys and values to binary16 before they are used, as the engine's default
    cache does. precision "bf16" rounds what every matrix product takes, attention_precision what
    attention multiplies. routes forces the experts
    (rows, k) of the layers it names: two implementations may part where two logits all but tie.
    """
    config = model.config
    inverse, concentration = inverse_frequencies(config)
    # Part of the model's definition: the angle is the fp32 product of the position and the fp32
    # inverse frequency.
    positions = np.arange(len(tokens), dtype=np.float32)
    angles = (positions[:, None] * inverse.astype(np.float32)).astype(np.float64)
    rope = np.cos(angles) * concentration, np.sin(angles) * concentration

    x = model["model.embed_tokens.weight"][np.asarray(tokens)]
    trace = {"embedding": x}
    for layer in range(config.num_layers):
        x = _attention_block(model, layer, x, rope, kv_dtype, trace, precision, attention_precision)
        x = _expert_block(model, layer, x, (routes or {}).get(layer), trace, precision)
    trace["final_norm"] = rms_norm(x, model["model.norm.weight"], config.eps)
    trace["logits"] = as_factor(trace["final_norm"], precision) @ model.unembedding.T
    return trace


def _attention_block(
    model: Model,
    layer: int,
    x: Array,
    rope: tuple[Array, Array],
    kv_dtype: str,
    trace: dict[str, Array],
    precision: str,
    attention_precision: str,
) -> Array:
    config, prefix, tap = model.config, f"model.layers.{layer}.", f"layers.{layer}."
    normed = rms_norm(x, model[prefix + "input_layernorm.weight"], config.eps)

    def project(name: str) -> Array:
        return model.linear(f"{prefix}self_attn.{name}_proj", normed, precision).reshape(
            len(x), -1, config.head_dim
        )

    q, k, v = rotate(project("q"), *rope), rotate(project("k"), *rope), project("v")
    if kv_dtype == "f16":
        k, v = k.astype(np.float16).astype(np.float64), v.astype(np.float16).astype(np.float64)
    window = config.window if config.is_sliding[layer] else None
    sinks = model[prefix + "self_attn.sinks"]
    output, sink_mass = attention(q, k, v, sinks, window, attention_precision)
    attended = output.reshape(len(x), -1)
    residual: Array = x + model.linear(prefix + "self_attn.o_proj", attended, precision)
    trace |= {
        tap + "attn_norm": normed,
        tap + "q": q,
        tap + "k": k,
        tap + "v": v,
        tap + "attn_output": output,
        tap + "sink_mass": sink_mass,
        tap + "attn_residual": residual,
    }
    return residual


def _expert_block(
    model: Model,
    layer: int,
    x: Array,
    route: Array | None,
    trace: dict[str, Array],
    precision: str,
) -> Array:
    config, prefix, tap = model.config, f"model.layers.{layer}.", f"layers.{layer}."
    normed = rms_norm(x, model[prefix + "post_attention_layernorm.weight"], config.eps)
    logits = model.linear(prefix + "mlp.router", normed, precision)
    chosen = choose_experts(logits, config.experts_per_token) if route is None else route
    best = np.take_along_axis(logits, chosen, axis=-1)
    weights = np.exp(best - best.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    outputs = run_experts(model, layer, normed, chosen, precision)
    mlp_output = np.einsum("rk,rkh->rh", weights, outputs)
    trace |= {
        tap + "mlp_norm": normed,
        tap + "router_logits": logits,
        tap + "router_experts": chosen,
        tap + "router_weights": weights,
        tap + "expert_outputs": outputs,
        tap + "mlp_output": mlp_output,
        tap + "residual": x + mlp_output,
    }
    residual: Array = trace[tap + "residual"]
    return residual
