"""Write a gpt-oss model with random weights, at full size and in the exact form of the released
files.

    python benchmarks/synthesize.py --preset gpt-oss-20b DIRECTORY
    python benchmarks/synthesize.py --preset gpt-oss-20b --layout gguf FILE.gguf

Names, shapes, dtypes, the order of the tensors, the places where one layer straddles two shards,
and the numbering of the shards from 0 are those of the Hugging Face release; the values are seeded
noise, scaled so that activations stay of order one. A GGUF file holds the same weights under
llama.cpp's names, the MXFP4 ones exactly, the dense ones in the format asked for. Memory use is
bounded by one chunk. The model appears under its name only when it is complete.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from tqdm import tqdm
from write_gguf import DENSE_TYPES, PIECE_ROWS, Array, write_gguf
from write_gguf import plan_tensors as plan_gguf

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


class Synthetic:
    """The weights of a preset and a seed, for write_gguf."""

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


def _write_shard(file: BinaryIO, tensors: list[Tensor], seed: int, progress: tqdm[Any]) -> None:
    file.write(header(tensors))
    for tensor in tensors:
        for chunk in chunks(tensor, seed):
            file.write(chunk)
            progress.update(len(chunk))


def synthesize(preset: Preset, seed: int, directory: Path) -> int:
    """Writes the model and returns its tensor bytes. FileExistsError if the directory exists."""
    if directory.exists():
        raise FileExistsError(f"{directory} exists already")
    shards = plan_shards(preset)
    total = sum(tensor.num_bytes for shard in shards.values() for tensor in shard)
    partial = directory.with_name(directory.name + ".partial")
    partial.mkdir(parents=True)
    try:
        if shutil.disk_usage(partial).free < total:
            raise OSError(f"{partial.parent} has no room for {total / 1e9:.1f} GB")
        (partial / "config.json").write_text(json.dumps(config(preset), indent=2) + "\n")
        weight_map = {tensor.name: name for name, shard in shards.items() for tensor in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        with tqdm(total=total, unit="B", unit_scale=True, desc=directory.name) as progress:
            for name, tensors in shards.items():
                with open(partial / name, "wb") as file:
                    _write_shard(file, tensors, seed, progress)
        os.rename(partial, directory)
    except BaseException:
        shutil.rmtree(partial)
        raise
    return total


def synthesize_gguf(preset: Preset, seed: int, path: Path, dense: str = "q8_0") -> int:
    """Writes the same weights as one GGUF file and returns its tensor bytes. FileExistsError."""
    settings = config(preset)
    total = sum(tensor.num_bytes for tensor in plan_gguf(settings, dense.upper()))
    with tqdm(total=total, unit="B", unit_scale=True, desc=path.name) as progress:
        return write_gguf(path, settings, Synthetic(preset, seed), dense, progress=progress.update)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Write a gpt-oss model with random weights, in the Hugging Face layout or as a "
        "GGUF file that llama.cpp opens.",
        epilog="example: python benchmarks/synthesize.py --preset gpt-oss-20b /tmp/gpt-oss-20b",
    )
    parser.add_argument("output", type=Path, help="the directory to make, or the .gguf file")
    parser.add_argument("--layout", choices=("hf", "gguf"), default="hf")
    parser.add_argument(
        "--dense", choices=DENSE_TYPES, help="gguf: format of the dense matrices, by default q8_0"
    )
    parser.add_argument("--preset", choices=PRESETS, default="mini")
    parser.add_argument("--layers", type=int, metavar="N", help="this many layers instead")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    arguments = parser.parse_args()
    preset = PRESETS[arguments.preset]
    if arguments.layers is not None:
        if arguments.layers < 1:
            parser.error("--layers must be at least 1")
        preset = replace(preset, num_layers=arguments.layers)
    output, seed = arguments.output, arguments.seed
    if arguments.layout == "hf" and arguments.dense is not None:
        parser.error("--dense goes with --layout gguf")
    if arguments.layout == "gguf" and output.suffix != ".gguf":
        parser.error("the name of a GGUF file ends in .gguf")
    try:
        if arguments.layout == "gguf":
            total = synthesize_gguf(preset, seed, output, arguments.dense or "q8_0")
        else:
            total = synthesize(preset, seed, output)
    except OSError as error:
        print(f"synthesize: {error}", file=sys.stderr)
        return 1
    print(f"{output}: {total:,} bytes of tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
