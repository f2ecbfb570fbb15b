"""The forward passes of llama and gpt2 in float64 NumPy, written from the models' equations.

It shares no code with the engine. Activations carry the names of the engine's taps.

    trace = dense_reference.forward(dense_reference.Model.read(directory), tokens)
    trace["logits"]          # (rows, vocab_size)
    trace["layers.0.k"]      # (rows, kv_heads, head_dim)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import reference
from gguf_models import Reader
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Model:
    """Weights (float64) by Hugging Face name without "transformer.", matrices [outputs][inputs],
    and the config.json. divisors: of the frequencies, from a GGUF file. neighbours: which elements
    of a head turn together."""

    config: dict[str, Any]
    weights: Mapping[str, Array]
    divisors: Array | None = None
    neighbours: bool = False

    @staticmethod
    def read(path: Path, config: dict[str, Any] | None = None) -> Model:
        """A directory, or a GGUF file with the config.json of the same model."""
        if config is not None:
            return _read_gguf(path, config)
        config = json.loads((path / "config.json").read_text())
        stored = reference.read_safetensors(path / "model.safetensors")
        weights = {}
        for name, tensor in stored.items():
            is_conv1d = ".c_" in name and name.endswith(".weight")
            values = tensor.astype(np.float64)
            weights[name.removeprefix("transformer.")] = values.T if is_conv1d else values
        return Model(config, weights)

    def linear(self, name: str, x: Array) -> Array:
        y: Array = x @ self.weights[name + ".weight"].T
        bias = self.weights.get(name + ".bias")
        return y if bias is None else y + bias


_LLAMA = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GPT2 = {
    "token_embd": "wte",
    "position_embd": "wpe",
    "output_norm": "ln_f",
    "output": "lm_head",
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}


def _read_gguf(path: Path, config: dict[str, Any]) -> Model:
    is_llama = config["model_type"] == "llama"
    names, block = (_LLAMA, "model.layers.") if is_llama else (_GPT2, "h.")
    tensors = Reader(path).tensors
    divisors = tensors.pop("rope_freqs.weight", None)
    weights = {}
    for name, tensor in tensors.items():
        *layer, stem, kind = name.split(".")
        prefix = f"{block}{layer[1]}." if layer else ""
        weights[f"{prefix}{names[stem]}.{kind}"] = tensor
    return Model(config, weights, divisors, neighbours=is_llama)


# ---- what both share ----


def attention(q: Array, k: Array, v: Array) -> Array:
    """q (rows, heads, d); k, v (rows, kv_heads, d) -> as q."""
    rows, heads, head_dim = q.shape
    k, v = (np.repeat(x, heads // x.shape[1], axis=1) for x in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(head_dim)
    scores = np.where(np.tri(rows, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", weights, v)


def rounded(x: Array, kv_dtype: str) -> Array:
    return x.astype(np.float16).astype(np.float64) if kv_dtype == "f16" else x


def forward(model: Model, tokens: Any, kv_dtype: str = "f32") -> dict[str, Array]:
    """Every named activation of a whole sequence, and "logits" (rows, vocab_size)."""
    run = _llama if model.config["model_type"] == "llama" else _gpt2
    return run(model, np.asarray(tokens), kv_dtype)


# ---- llama ----


def inverse_frequencies(model: Model, head_dim: int) -> tuple[Array, float]:
    """(head_dim / 2,), and the factor on cosine and sine, as transformers computes them, or
    llama.cpp with divisors."""
    rope = model.config.get("rope_parameters") or model.config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) != "yarn":
        return _without_yarn(model, head_dim), 1.0
    theta = rope.get("rope_theta", model.config.get("rope_theta"))
    positions = model.config["max_position_embeddings"]
    defaults = {"truncate": True, "original_max_position_embeddings": positions}
    return reference.yarn_frequencies(head_dim, theta, defaults | rope)


def _without_yarn(model: Model, head_dim: int) -> Array:
    config = model.config
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    inverse: Array = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if model.divisors is not None:
        return inverse / model.divisors
    kind = rope.get("rope_type", rope.get("type"))
    if kind == "linear":
        return inverse / rope["factor"]
    if kind != "llama3":
        return inverse
    original = rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    scaled = []
    for frequency in inverse:
        wavelength = 2 * math.pi / frequency
        if wavelength > original / low:
            scaled.append(frequency / rope["factor"])
        elif wavelength < original / high:
            scaled.append(frequency)
        else:
            smooth = (original / wavelength - low) / (high - low)
            scaled.append((1 - smooth) * frequency / rope["factor"] + smooth * frequency)
    return np.array(scaled)


def rotate(x: Array, angles: Array, factor: float, neighbours: bool) -> Array:
    """x (rows, heads, head_dim), angles (rows, head_dim / 2)."""
    a, b = (x[..., ::2], x[..., 1::2]) if neighbours else np.split(x, 2, axis=-1)
    cosine, sine = factor * np.cos(angles)[:, None], factor * np.sin(angles)[:, None]
    turned = a * cosine - b * sine, b * cosine + a * sine
    if neighbours:
        return np.stack(turned, axis=-1).reshape(x.shape)
    return np.concatenate(turned, axis=-1)


def _llama(model: Model, tokens: Array, kv_dtype: str) -> dict[str, Array]:
    config, weights = model.config, model.weights
    heads, eps = config["num_attention_heads"], config["rms_norm_eps"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    # Part of the model's definition: the angle is a float32 product.
    inverse, factor = inverse_frequencies(model, head_dim)
    positions = np.arange(len(tokens), dtype=np.float32)[:, None]
    angles = (positions * inverse.astype(np.float32)).astype(np.float64)

    x = weights["model.embed_tokens.weight"][tokens]
    trace = {"embedding": x}
    for layer in range(config["num_hidden_layers"]):
        prefix, tap = f"model.layers.{layer}.", f"layers.{layer}."
        normed = reference.rms_norm(x, weights[prefix + "input_layernorm.weight"], eps)
        q, k, v = (
            model.linear(f"{prefix}self_attn.{name}_proj", normed).reshape(len(x), -1, head_dim)
            for name in "qkv"
        )
        q, k = (rotate(x, angles, factor, model.neighbours) for x in (q, k))
        attended = attention(q, rounded(k, kv_dtype), rounded(v, kv_dtype))
        x = x + model.linear(prefix + "self_attn.o_proj", attended.reshape(len(x), -1))
        trace |= {tap + "attn_norm": normed, tap + "q": q, tap + "k": k, tap + "v": v}
        trace |= {tap + "attn_output": attended, tap + "attn_residual": x}
        normed = reference.rms_norm(x, weights[prefix + "post_attention_layernorm.weight"], eps)
        gate = model.linear(prefix + "mlp.gate_proj", normed)
        up = model.linear(prefix + "mlp.up_proj", normed)
        output = model.linear(prefix + "mlp.down_proj", gate / (1 + np.exp(-gate)) * up)
        x = x + output
        trace |= {tap + "mlp_norm": normed, tap + "mlp_output": output, tap + "residual": x}
    trace["final_norm"] = reference.rms_norm(x, weights["model.norm.weight"], eps)
    head = "model.embed_tokens" if "lm_head.weight" not in weights else "lm_head"
    trace["logits"] = trace["final_norm"] @ weights[head + ".weight"].T
    return trace


# ---- gpt2 ----


def gelu(x: Array) -> Array:
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    result: Array = 0.5 * x * (1 + np.tanh(inner))
    return result


def _gpt2(model: Model, tokens: Array, kv_dtype: str) -> dict[str, Array]:
    config, weights = model.config, model.weights

    def norm(name: str, x: Array) -> Array:
        mean, variance = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
        normed = (x - mean) / np.sqrt(variance + config["layer_norm_epsilon"])
        result: Array = normed * weights[name + ".weight"] + weights[name + ".bias"]
        return result

    x = weights["wte.weight"][tokens] + weights["wpe.weight"][: len(tokens)]
    trace = {"embedding": x}
    for layer in range(config["n_layer"]):
        prefix, tap = f"h.{layer}.", f"layers.{layer}."
        normed = norm(prefix + "ln_1", x)
        fused = model.linear(prefix + "attn.c_attn", normed)
        q, k, v = (y.reshape(len(x), config["n_head"], -1) for y in np.split(fused, 3, axis=-1))
        attended = attention(q, rounded(k, kv_dtype), rounded(v, kv_dtype))
        x = x + model.linear(prefix + "attn.c_proj", attended.reshape(len(x), -1))
        trace |= {tap + "attn_norm": normed, tap + "q": q, tap + "k": k, tap + "v": v}
        trace |= {tap + "attn_output": attended, tap + "attn_residual": x}
        normed = norm(prefix + "ln_2", x)
        hidden = gelu(model.linear(prefix + "mlp.c_fc", normed))
        output = model.linear(prefix + "mlp.c_proj", hidden)
        x = x + output
        trace |= {tap + "mlp_norm": normed, tap + "mlp_output": output, tap + "residual": x}
    trace["final_norm"] = norm("ln_f", x)
    head = "wte.weight" if "lm_head.weight" not in weights else "lm_head.weight"
    trace["logits"] = trace["final_norm"] @ weights[head].T
    return trace
