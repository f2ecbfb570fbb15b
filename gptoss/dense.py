"""llama and gpt2 in both layouts: the names of their weights, the order of rows, and what their
configurations are in config.json and in the metadata of GGUF files."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from gptoss import rope
from gptoss.errors import UnsupportedError
from gptoss.model import Config

Rows = npt.NDArray[np.intp]

# ---- weights ----

# llama.cpp's name of a module, Hugging Face's, and the field of Config that says whether there is a
# bias.
_LLAMA = (
    ("token_embd", "model.embed_tokens", ""),
    ("blk.%d.attn_norm", "model.layers.%d.input_layernorm", ""),
    ("blk.%d.attn_q", "model.layers.%d.self_attn.q_proj", "attention_bias"),
    ("blk.%d.attn_k", "model.layers.%d.self_attn.k_proj", "attention_bias"),
    ("blk.%d.attn_v", "model.layers.%d.self_attn.v_proj", "attention_bias"),
    ("blk.%d.attn_output", "model.layers.%d.self_attn.o_proj", "attention_bias"),
    ("blk.%d.ffn_norm", "model.layers.%d.post_attention_layernorm", ""),
    ("blk.%d.ffn_gate", "model.layers.%d.mlp.gate_proj", "mlp_bias"),
    ("blk.%d.ffn_up", "model.layers.%d.mlp.up_proj", "mlp_bias"),
    ("blk.%d.ffn_down", "model.layers.%d.mlp.down_proj", "mlp_bias"),
    ("output_norm", "model.norm", ""),
    ("output", "lm_head", ""),
)
_GPT2 = (
    ("token_embd", "transformer.wte", ""),
    ("position_embd", "transformer.wpe", ""),
    ("blk.%d.attn_norm", "transformer.h.%d.ln_1", "attention_bias"),
    ("blk.%d.attn_qkv", "transformer.h.%d.attn.c_attn", "attention_bias"),
    ("blk.%d.attn_output", "transformer.h.%d.attn.c_proj", "attention_bias"),
    ("blk.%d.ffn_norm", "transformer.h.%d.ln_2", "mlp_bias"),
    ("blk.%d.ffn_up", "transformer.h.%d.mlp.c_fc", "mlp_bias"),
    ("blk.%d.ffn_down", "transformer.h.%d.mlp.c_proj", "mlp_bias"),
    ("output_norm", "transformer.ln_f", "mlp_bias"),
    ("output", "lm_head", ""),
)
DIVISORS = "rope_freqs.weight"


def hugging_face_names(config: Config) -> dict[str, str]:
    """llama.cpp's name -> Hugging Face's, the output matrix last, whether or not it is tied."""
    modules = _LLAMA if config.architecture == "llama" else _GPT2
    names = {}
    for gguf, hugging_face, bias in modules:
        layers = range(config.num_layers) if "%d" in gguf else (None,)
        for layer in layers:
            to, of = (text if layer is None else text % layer for text in (gguf, hugging_face))
            for kind in ("weight", "bias") if bias and getattr(config, bias) else ("weight",):
                names[f"{to}.{kind}"] = f"{of}.{kind}"
    return names


def is_transposed(hugging_face: str) -> bool:
    """Whether Hugging Face stores a weight [inputs][outputs]: gpt2's Conv1D."""
    return ".c_" in hugging_face and hugging_face.endswith(".weight")


def row_order(config: Config, name: str, *, to_gguf: bool) -> Rows | None:
    """For each row of llama's queries and keys in a layout the row that it is in the other, None if
    it is the same: Hugging Face turns elements i and i + head_dim / 2 of a head together, llama.cpp
    2 i and 2 i + 1."""
    num_heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}
    module = name.split(".")[-2]
    if config.architecture != "llama" or module not in num_heads:
        return None
    half = config.head_dim // 2
    shape = (num_heads[module], 2, half) if to_gguf else (num_heads[module], half, 2)
    order: Rows = np.arange(math.prod(shape)).reshape(shape).swapaxes(1, 2).ravel()
    return order


# ---- configurations ----

_UINT32, _FLOAT32, _STRING = 4, 6, 8  # numbers of GGUF


def gguf_values(config: Config, name: str) -> dict[str, tuple[int, Any]]:
    """Metadata as llama.cpp's converter tells it: key -> (type, value). name: of the model.
    UnsupportedError for what it has no words for."""
    values: dict[str, tuple[int, Any]] = {
        "block_count": (_UINT32, config.num_layers),
        "context_length": (_UINT32, config.max_positions),
        "embedding_length": (_UINT32, config.hidden_size),
        "feed_forward_length": (_UINT32, config.intermediate_size),
        "attention.head_count": (_UINT32, config.num_heads),
        "vocab_size": (_UINT32, config.vocab_size),
    }
    if config.architecture == "llama":
        values |= {
            "attention.head_count_kv": (_UINT32, config.num_kv_heads),
            "attention.key_length": (_UINT32, config.head_dim),
            "attention.value_length": (_UINT32, config.head_dim),
            "attention.layer_norm_rms_epsilon": (_FLOAT32, config.rms_norm_eps),
            "rope.dimension_count": (_UINT32, config.head_dim),
            "rope.freq_base": (_FLOAT32, config.rope_theta),
        }
        values |= _scaling_values(config)
    else:
        values["attention.layer_norm_epsilon"] = (_FLOAT32, config.layer_norm_eps)
    general = {
        "general.architecture": (_STRING, config.architecture),
        "general.name": (_STRING, name),
        "general.quantization_version": (_UINT32, 2),
    }
    return general | {f"{config.architecture}.{key}": value for key, value in values.items()}


def _scaling_values(config: Config) -> dict[str, tuple[int, Any]]:
    if config.rope_scaling not in ("linear", "yarn"):
        return {}
    values: dict[str, tuple[int, Any]] = {
        "rope.scaling.type": (_STRING, config.rope_scaling),
        "rope.scaling.factor": (_FLOAT32, config.rope_factor),
    }
    if config.rope_scaling == "linear":
        return values
    for what, found, expected in (
        ("truncate", config.rope_truncate, True),
        ("attention_factor", config.rope_attention_factor, rope.yarn_attention_factor(config)),
    ):
        if not math.isclose(found, expected):
            raise UnsupportedError(
                f"GGUF cannot say that {what} of YaRN is {found}: of llama it is always {expected}",
                expected=str(expected),
                found=str(found),
            )
    return values | {
        "rope.scaling.original_context_length": (_UINT32, config.rope_original_positions),
        "rope.scaling.yarn_beta_fast": (_FLOAT32, config.rope_beta_fast),
        "rope.scaling.yarn_beta_slow": (_FLOAT32, config.rope_beta_slow),
    }


def hugging_face_config(config: Config, divisors: rope.Divisors | None) -> dict[str, Any]:
    """The keys of Hugging Face's config.json. divisors: the tensor of that name, if there is one.
    UnsupportedError for divisors that it has no words for."""
    if config.architecture == "gpt2":
        return {
            "architectures": ["GPT2LMHeadModel"],
            "activation_function": "gelu_new",
            "layer_norm_epsilon": config.layer_norm_eps,
            "model_type": "gpt2",
            "n_ctx": config.max_positions,
            "n_embd": config.hidden_size,
            "n_head": config.num_heads,
            "n_inner": config.intermediate_size,
            "n_layer": config.num_layers,
            "n_positions": config.max_positions,
            "tie_word_embeddings": config.tied_embeddings,
            "vocab_size": config.vocab_size,
        }
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": config.attention_bias,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_positions,
        "mlp_bias": config.mlp_bias,
        "model_type": "llama",
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": rope.settings(config, divisors),
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied_embeddings,
        "vocab_size": config.vocab_size,
    }
