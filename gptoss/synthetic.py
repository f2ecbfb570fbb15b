"""gpt-oss models with random weights, at full size and in the exact form of the released files.

Names, shapes, dtypes, the order of the tensors, the places where one layer straddles two shards,
and the numbering of the shards from 0 are those of the Hugging Face release; the values are seeded
noise, scaled so that activations stay of order one. A GGUF file holds the same weights under
llama.cpp's names, the MXFP4 ones exactly, the dense ones in the format asked for. Memory use is
bounded by one chunk. The model appears under its name only when it is complete.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gptoss.errors import ArgumentError, FileError, did_you_mean, require_integer
from gptoss.write_gguf import PIECE_ROWS, Array, is_gguf_of, write_gguf
from gptoss.write_gguf import plan_tensors as plan_gguf

Progress = Callable[[int, int], object]

MAX_LAYERS = 1024

_CHUNK_ELEMENTS = 1 << 23
_E2M1_STD = 2.93  # standard deviation of the sixteen MXFP4 codes


@dataclass(frozen=True)
class Preset:
    num_layers: int
    num_experts: int
    hidden_size: int = 2880
    intermediate_size: int = 2880
    num_heads: int = 64
    num_kv_heads: int = 8
    head_dim: int = 64
    experts_per_token: int = 4
    vocab_size: int = 201088
    shard_bytes: int = 4_800_000_000


PRESETS = {
    "gpt-oss-20b": Preset(num_layers=24, num_experts=32),
    "gpt-oss-120b": Preset(num_layers=36, num_experts=128),
    "mini": Preset(4, 8, 256, 192, 8, 2, 64, 4, 1024, shard_bytes=1_500_000),
}


def find_preset(name: str, layers: int | None = None) -> Preset:
    """A preset by name, with `layers` layers instead of its own. ArgumentError for another name."""
    if name not in PRESETS:
        hint = did_you_mean(name, PRESETS) or f"; there are {', '.join(PRESETS)}"
        raise ArgumentError(f"there is no preset {name!r}{hint}")
    preset = PRESETS[name]
    if layers is None:
        return preset
    return replace(preset, num_layers=require_integer("layers", layers, 1, MAX_LAYERS))


@dataclass(frozen=True)
class Tensor:
    """kind: "normal" (bfloat16 of mean and std), "codes" (MXFP4 blocks) or "scales" (for std)."""

    name: str
    shape: tuple[int, ...]
    kind: str
    std: float = 0.0
    mean: float = 0.0

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * (2 if self.kind == "normal" else 1)


def plan_layer(preset: Preset, layer: int) -> list[Tensor]:
    """One layer's tensors in the order of the release: by their names in the original/ layout."""
    prefix = f"model.layers.{layer}."
    hidden, experts = preset.hidden_size, preset.num_experts
    queries, keys = preset.num_heads * preset.head_dim, preset.num_kv_heads * preset.head_dim
    projections = {"q": queries, "k": keys, "v": keys}

    def normal(name: str, *shape: int, std: float, mean: float = 0.0) -> Tensor:
        return Tensor(prefix + name, shape, "normal", std, mean)

    def expert_matrix(name: str, rows: int, columns: int) -> list[Tensor]:
        name, std = prefix + "mlp.experts." + name, 1 / math.sqrt(columns)
        blocks = Tensor(name + "_blocks", (experts, rows, columns // 32, 16), "codes")
        return [blocks, Tensor(name + "_scales", (experts, rows, columns // 32), "scales", std)]

    return [
        normal("input_layernorm.weight", hidden, std=0.1, mean=1.0),
        normal("self_attn.o_proj.bias", hidden, std=0.1),
        normal("self_attn.o_proj.weight", hidden, queries, std=1 / math.sqrt(queries)),
        *(normal(f"self_attn.{n}_proj.bias", r, std=0.1) for n, r in projections.items()),
        *(
            normal(f"self_attn.{n}_proj.weight", r, hidden, std=1 / math.sqrt(hidden))
            for n, r in projections.items()
        ),
        normal("self_attn.sinks", preset.num_heads, std=1.0),
        normal("mlp.router.bias", experts, std=0.1),
        normal("mlp.router.weight", experts, hidden, std=1 / math.sqrt(hidden)),
        normal("mlp.experts.gate_up_proj_bias", experts, 2 * preset.intermediate_size, std=0.1),
        *expert_matrix("gate_up_proj", 2 * preset.intermediate_size, hidden),
        normal("mlp.experts.down_proj_bias", experts, hidden, std=0.1),
        *expert_matrix("down_proj", hidden, preset.intermediate_size),
        normal("post_attention_layernorm.weight", hidden, std=0.1, mean=1.0),
    ]


def plan_tensors(preset: Preset) -> list[Tensor]:
    """Every tensor, layers in the order of their decimal names: 0, 1, 10, 11, ..."""
    matrix = (preset.vocab_size, preset.hidden_size)
    layers = sorted(range(preset.num_layers), key=str)
    return [
        *(tensor for layer in layers for tensor in plan_layer(preset, layer)),
        Tensor("model.embed_tokens.weight", matrix, "normal", 1.0),
        Tensor("model.norm.weight", (preset.hidden_size,), "normal", 0.1, 1.0),
        Tensor("lm_head.weight", matrix, "normal", 1 / math.sqrt(preset.hidden_size)),
    ]


def plan_shards(preset: Preset) -> dict[str, list[Tensor]]:
    """File name -> tensors. Files count from 0; "-of-" names the last, one fewer than there are."""
    shards: list[list[Tensor]] = [[]]
    used = 0
    for tensor in plan_tensors(preset):
        if shards[-1] and used + tensor.num_bytes > preset.shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += tensor.num_bytes
    last = len(shards) - 1
    return {f"model-{i:05d}-of-{last:05d}.safetensors": shard for i, shard in enumerate(shards)}


def weight_bytes(preset: Preset, layout: str = "hf") -> int:
    """What a preset's tensors take on disk, and in memory once they were used."""
    if layout == "gguf":
        return sum(tensor.num_bytes for tensor in plan_gguf(config(preset), "Q8_0"))
    return sum(tensor.num_bytes for tensor in plan_tensors(preset))


def chunks(tensor: Tensor, seed: int) -> Iterator[bytes]:
    """The tensor's bytes. They depend on its name and the seed alone."""
    rng = np.random.default_rng([seed, zlib.crc32(tensor.name.encode())])
    left = math.prod(tensor.shape)
    while left:
        count = min(left, _CHUNK_ELEMENTS)
        left -= count
        if tensor.kind == "codes":
            yield rng.bytes(count)
        elif tensor.kind == "scales":
            exponent = 127 + round(math.log2(tensor.std / _E2M1_STD))
            yield rng.integers(exponent - 1, exponent + 2, count, np.uint8).tobytes()
        else:
            values = rng.standard_normal(count, np.float32)
            values *= np.float32(tensor.std)
            values += np.float32(tensor.mean)
            yield values.astype(ml_dtypes.bfloat16).tobytes()


def header(tensors: list[Tensor]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": "BF16" if tensor.kind == "normal" else "U8",
            "shape": tensor.shape,
            "data_offsets": [offset, offset + tensor.num_bytes],
        }
        offset += tensor.num_bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def config(preset: Preset) -> dict[str, Any]:
    """config.json, with the keys and the spellings of the release."""
    types = ["sliding_attention", "full_attention"] * preset.num_layers
    return {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": 200002 if preset.vocab_size > 200002 else preset.vocab_size - 1,
        "experts_per_token": preset.experts_per_token,
        "head_dim": preset.head_dim,
        "hidden_act": "silu",
        "hidden_size": preset.hidden_size,
        "initial_context_length": 4096,
        "initializer_range": 0.02,
        "intermediate_size": preset.intermediate_size,
        "layer_types": types[: preset.num_layers],
        "max_position_embeddings": 131072,
        "model_type": "gpt_oss",
        "num_attention_heads": preset.num_heads,
        "num_experts_per_tok": preset.experts_per_token,
        "num_hidden_layers": preset.num_layers,
        "num_key_value_heads": preset.num_kv_heads,
        "num_local_experts": preset.num_experts,
        "output_router_logits": False,
        "pad_token_id": 199999 if preset.vocab_size > 199999 else preset.vocab_size - 2,
        "quantization_config": {
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
        "router_aux_loss_coef": 0.9,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": preset.vocab_size,
    }


def _shard_chunks(tensors: list[Tensor], seed: int) -> Iterator[bytes]:
    yield header(tensors)
    for tensor in tensors:
        yield from chunks(tensor, seed)


def synthesize(preset: Preset, seed: int, directory: Path, progress: Progress | None = None) -> int:
    """Writes the model and returns its tensor bytes.

    progress: called with (done, total) bytes; may raise to stop. Raises FileError if the directory
    exists already or there is no room for it. What is not complete is removed.
    """
    if directory.exists():
        raise FileError(f"{directory} exists already", file=str(directory))
    shards = plan_shards(preset)
    total, done = weight_bytes(preset), 0
    partial = directory.with_name(directory.name + ".partial")
    partial.mkdir(parents=True)
    try:
        if (free := shutil.disk_usage(partial).free) < total:
            raise FileError(
                f"the model needs {total / 1e9:.1f} GB, {partial.parent} has {free / 1e9:.1f} GB "
                "free: choose another directory, or fewer layers",
                file=str(partial.parent),
            )
        (partial / "config.json").write_text(json.dumps(config(preset), indent=2) + "\n")
        weight_map = {tensor.name: name for name, shard in shards.items() for tensor in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        for name, tensors in shards.items():
            with open(partial / name, "wb") as file:
                for chunk in _shard_chunks(tensors, seed):
                    file.write(chunk)
                    done += len(chunk)
                    if progress is not None:
                        progress(min(done, total), total)
        os.rename(partial, directory)
    except BaseException:
        shutil.rmtree(partial)
        raise
    return total


class Weights:
    """The weights of a preset and a seed, as write_gguf takes them."""

    def __init__(self, preset: Preset, seed: int) -> None:
        self._tensors = {tensor.name: tensor for tensor in plan_tensors(preset)}
        self._seed = seed

    def pieces(self, name: str) -> Iterator[Array]:
        tensor = self._tensors[name]
        dtype: Any = ml_dtypes.bfloat16 if tensor.kind == "normal" else np.uint8
        row = tensor.shape[-2:] if tensor.kind == "codes" else tensor.shape[-1:]
        piece_bytes = PIECE_ROWS * math.prod(row) * np.dtype(dtype).itemsize
        pending = bytearray()

        def decoded(data: bytes) -> Array:
            values = np.frombuffer(data, dtype).reshape(-1, *row)
            return values.astype(np.float32) if tensor.kind == "normal" else values

        for chunk in chunks(tensor, self._seed):
            pending += chunk
            while len(pending) >= piece_bytes:
                yield decoded(bytes(pending[:piece_bytes]))
                del pending[:piece_bytes]
        if pending:
            yield decoded(bytes(pending))


def synthesize_gguf(
    preset: Preset,
    seed: int,
    path: Path,
    dense: str = "q8_0",
    progress: Progress | None = None,
) -> int:
    """Writes the same weights as one GGUF file and returns its tensor bytes.

    dense: the format of the dense matrices, one of write_gguf.DENSE_TYPES. Otherwise as synthesize.
    """
    return write_gguf(path, config(preset), Weights(preset, seed), dense, progress=progress)


@contextmanager
def synthetic_model(
    preset: Preset,
    seed: int = 0,
    keep: Path | None = None,
    progress: Progress | None = None,
    layout: str = "hf",
) -> Iterator[Path]:
    """The model, for the time of the block: a directory, or with layout "gguf" one file.

    keep: write it here and leave it, or use what an earlier call left; ArgumentError if that is
    another model. Without it the model lies in TMPDIR, else in /var/tmp, which is on a disk where
    /tmp may be memory, and goes away at the end.
    """
    write = synthesize_gguf if layout == "gguf" else synthesize
    name = "model.gguf" if layout == "gguf" else "model"
    if keep is None:
        place = os.environ.get("TMPDIR") or "/var/tmp"
        with tempfile.TemporaryDirectory(prefix="gptoss-", dir=place) as directory:
            path = Path(directory) / name
            write(preset, seed, path, progress=progress)
            yield path
        return
    if layout == "gguf" and keep.suffix != ".gguf":
        raise ArgumentError(f"the name of a GGUF file ends in .gguf, unlike {keep}")
    if not keep.exists():
        write(preset, seed, keep, progress=progress)
    elif not (is_gguf_of(keep, config(preset)) if layout == "gguf" else _is_model(keep, preset)):
        raise ArgumentError(f"{keep} is another model: choose a name that does not exist yet")
    yield keep


def _is_model(directory: Path, preset: Preset) -> bool:
    try:
        settings: Any = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return bool(settings == config(preset))
