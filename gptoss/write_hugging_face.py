"""Write a model in Hugging Face's layout: config.json and model.safetensors, or parts of it and
their index."""

from __future__ import annotations

import functools
import json
import math
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gptoss import dense, rope
from gptoss.blocks import PLAIN
from gptoss.errors import FormatError
from gptoss.model import DTYPES, PLANES, Config
from gptoss.output import (
    INDEX_FILE,
    TOKENIZER_FILES,
    check_output,
    complete_directory,
    shard_names,
)
from gptoss.tokenizer import Tokenizer
from gptoss.weights import F32_ENDS, Source, Weight, hugging_face_names, in_order

Array = npt.NDArray[Any]
Job = Callable[[], Array]
Progress = Callable[[int, int], object]

_QUANTIZATION = {
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
    "quant_method": "mxfp4",
}


@dataclass(frozen=True)
class _Tensor:
    """format: safetensors' dtype. jobs: make its bytes, in order. weights: of codes in a plane of
    their own the format, of their scales ""; else None."""

    name: str
    format: str
    shape: tuple[int, ...]
    jobs: Callable[[], Iterator[Job]]
    weights: str | None = None

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.format].itemsize


def write_hugging_face(
    files: Source,
    source: Sequence[Weight],
    config: Config,
    tokenizer: Tokenizer | None,
    output: Path,
    shard_bytes: int,
    force: bool,
    threads: int | None,
    progress: Progress | None,
) -> tuple[dict[str, int], int, tuple[str, ...]]:
    """Writes the directory; returns tensors of each dtype, bytes of tensors and notes. source: the
    weights of files. The files of the tokenizer are copied, or made from what a GGUF file holds."""
    weights = {weight.name: weight for weight in source}
    is_gpt_oss = config.architecture == "gpt_oss"
    if is_gpt_oss:
        values = hugging_face_config(config)
    else:
        values = dense.hugging_face_config(config, _divisors(weights, config))
    tensors = list((_plan if is_gpt_oss else _plan_dense)(weights, config))
    values |= _quantization(tensors)
    total = sum(tensor.num_bytes for tensor in tensors)
    shards = _shards(tensors, shard_bytes)
    headers = sum(len(_header(shard)) for shard in shards.values())
    check_output(output, total + headers, files.inputs, force=force, is_directory=True)
    with complete_directory(output) as directory:
        _write_shards(directory, shards, total, threads, progress)
        if tokenizer is not None:
            values |= _write_tokenizer(tokenizer, directory)
        _write_json(directory / "config.json", values)
    held = [tensor.format if tensor.weights is None else tensor.weights for tensor in tensors]
    formats = dict(Counter(format for format in held if format).most_common())
    return formats, total, _notes(files, config, weights, tokenizer)


# ---- files ----


def _shards(tensors: Iterable[_Tensor], max_bytes: int) -> dict[str, list[_Tensor]]:
    """The files and what each holds: tensors in their order."""
    shards: list[list[_Tensor]] = [[]]
    held = 0
    for tensor in tensors:
        if shards[-1] and held + tensor.num_bytes > max_bytes:
            shards.append([])
            held = 0
        shards[-1].append(tensor)
        held += tensor.num_bytes
    return dict(zip(shard_names(len(shards)), shards, strict=True))


def _write_shards(
    directory: Path,
    shards: dict[str, list[_Tensor]],
    total: int,
    threads: int | None,
    progress: Progress | None,
) -> None:
    done = 0
    for name, tensors in shards.items():
        with open(directory / name, "xb") as file:
            file.write(_header(tensors))
            for array in in_order((job for tensor in tensors for job in tensor.jobs()), threads):
                file.write(np.ascontiguousarray(array).view(np.uint8).data)
                done += array.nbytes
                if progress is not None:
                    progress(done, total)
    if len(shards) > 1:
        places = {tensor.name: name for name, tensors in shards.items() for tensor in tensors}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        _write_json(directory / INDEX_FILE, index)


def _header(tensors: list[_Tensor]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        end = at + tensor.num_bytes
        entries[tensor.name] = {
            "dtype": tensor.format,
            "shape": tensor.shape,
            "data_offsets": (at, end),
        }
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


# ---- tensors ----


def _plan(weights: dict[str, Weight], config: Config) -> Iterator[_Tensor]:
    usual = _format([_take(weights, "token_embd.weight")])
    for name, hf in hugging_face_names(config.num_layers).items():
        if name == "output.weight" and config.tied_embeddings:
            continue
        yield from _weight(hf, _take(weights, name), usual)
    for layer in range(config.num_layers):
        to = f"model.layers.{layer}.mlp.experts."
        kinds = {kind: f"blk.{layer}.ffn_{kind}_exps" for kind in ("gate", "up", "down")}
        matrices = {kind: _take(weights, f"{name}.weight") for kind, name in kinds.items()}
        biases = {kind: _take(weights, f"{name}.bias") for kind, name in kinds.items()}
        yield from _experts(to + "gate_up_proj", [matrices["gate"], matrices["up"]])
        yield from _experts(to + "down_proj", [matrices["down"]])
        yield _bias(to + "gate_up_proj_bias", [biases["gate"], biases["up"]], usual)
        yield _bias(to + "down_proj_bias", [biases["down"]], usual)


def _plan_dense(weights: dict[str, Weight], config: Config) -> Iterator[_Tensor]:
    usual = _format([_take(weights, "token_embd.weight")])
    for name, hf in dense.hugging_face_names(config).items():
        if name == "output.weight" and config.tied_embeddings and name not in weights:
            continue
        weight = _take(weights, name)
        weight = weight.reordered(dense.row_order(config, name, to_gguf=False))
        if not dense.is_transposed(hf) or _wanted(weight) in PLANES:
            yield from _weight(hf, weight, usual)
        elif weight.format in PLAIN:
            yield _tensor(hf, replace(weight, data=weight.data.T), usual)
        else:
            yield _decoded_transposed(hf, weight)


def _weight(name: str, weight: Weight, usual: str) -> Iterator[_Tensor]:
    """A weight as it is, or in two planes."""
    if _wanted(weight) in PLANES:
        yield from _planes(name, [weight])
    else:
        yield _tensor(name, weight, usual)


def _tensor(name: str, weight: Weight, usual: str) -> _Tensor:
    format = _format([weight], usual)
    return _Tensor(name, format, weight.shape, functools.partial(_whole, weight, format))


def _decoded_transposed(name: str, weight: Weight) -> _Tensor:
    """A matrix of blocks, which are decoded before it can be transposed."""
    format = _format([weight])

    def jobs() -> Iterator[Job]:
        yield lambda: _as(weight, format).T

    return _Tensor(name, format, weight.shape[::-1], jobs)


def _divisors(weights: dict[str, Weight], config: Config) -> rope.Divisors | None:
    if config.rope_scaling != "divisors":
        return None
    return _take(weights, dense.DIVISORS).floats()


def _take(weights: dict[str, Weight], name: str) -> Weight:
    if name not in weights:
        raise FormatError(
            f"there is no weight {name}, under llama.cpp's names: nothing can be converted",
            tensor=name,
        )
    return weights[name]


def _wanted(weight: Weight) -> str | None:
    """The format that a weight is to have, or keeps because it is in two planes or could be."""
    keeps = weight.scales is not None or (weight.format == "MXFP4" and "_exps." in weight.name)
    return weight.target or (weight.format if keeps else None)


def _format(weights: Sequence[Weight], usual: str = "BF16") -> str:
    """The dtype to hold the weights: the wanted one. F16 stays. F32 becomes BF16 if that has all
    values, and what is not a matrix the usual dtype, that of the model's embedding. Blocks become
    BF16."""
    wanted = {weight.target for weight in weights}
    if len(wanted) == 1 and wanted < set(PLAIN):
        return str(*wanted)
    if all(weight.format == "F16" for weight in weights):
        return "F16"
    is_small = all(weight.name.endswith(F32_ENDS) for weight in weights)
    for format in (usual, "BF16") if is_small else ("BF16",):
        if format == "F32" or all(_holds(format, weight) for weight in weights):
            return format
    return "F32"


def _holds(format: str, weight: Weight) -> bool:
    """Whether a dtype of 16 bits has every value; there is none but BF16 for blocks."""
    if weight.format not in ("F32", "F16"):
        return format == "BF16"
    with np.errstate(over="ignore"):
        return all(
            np.array_equal(values.astype(DTYPES[format]).astype(np.float32), values)
            for values in (piece.floats() for piece in weight.pieces())
        )


def _whole(weight: Weight, format: str) -> Iterator[Job]:
    for piece in weight.pieces():
        yield functools.partial(_as, piece, format)


def _as(weight: Weight, format: str) -> Array:
    if weight.format == format:
        return weight.data
    return weight.floats().astype(DTYPES[format])


def _taking_turns(arrays: list[Array], axis: int) -> Array:
    """Gate and up as one array, whose places along the axis they take in turns; one as it is."""
    if len(arrays) == 1:
        return arrays[0]
    joined = np.stack(arrays, axis=axis + 1)
    shape = list(arrays[0].shape)
    shape[axis] *= 2
    return joined.reshape(shape)


def _bias(name: str, biases: list[Weight], usual: str) -> _Tensor:
    format = _format(biases, usual)
    experts, rows = biases[0].shape

    def jobs() -> Iterator[Job]:
        yield lambda: _taking_turns([_as(bias, format) for bias in biases], 1)

    return _Tensor(name, format, (experts, rows * len(biases)), jobs)


def _planes(name: str, parts: list[Weight]) -> Iterator[_Tensor]:
    """Codes and scales, rows of the parts taking turns."""
    format = str(_wanted(parts[0]))
    *lead, rows, width = parts[0].shape
    shape = (*lead, rows * len(parts), width // 32, PLANES[format])
    codes = functools.partial(_plane, parts, format, 0)
    yield _Tensor(name + "_blocks", "U8", shape, codes, format)
    scales = functools.partial(_plane, parts, format, 1)
    yield _Tensor(name + "_scales", "U8", shape[:-1], scales, "")


def _experts(name: str, parts: list[Weight]) -> Iterator[_Tensor]:
    """Two planes, or (experts, inputs, outputs)."""
    experts, rows, width = parts[0].shape
    rows *= len(parts)
    wanted = {_wanted(part) for part in parts}
    if len(wanted) == 1 and wanted < set(PLANES):
        yield from _planes(name, parts)
        return
    format = _format(parts)

    def transposed(expert: int) -> Array:
        matrices = [
            _as(
                Weight(
                    p.name,
                    p.format,
                    p.source,
                    p.data[expert],
                    None if p.scales is None else p.scales[expert],
                ),
                format,
            )
            for p in parts
        ]
        return _taking_turns(matrices, 0).T

    def jobs() -> Iterator[Job]:
        for expert in range(experts):
            yield functools.partial(transposed, expert)

    yield _Tensor(name, format, (experts, width, rows), jobs)


def _plane(parts: list[Weight], format: str, plane: int) -> Iterator[Job]:
    for pieces in zip(*(part.pieces() for part in parts), strict=True):
        yield functools.partial(_piece_of_plane, pieces, format, plane)


def _piece_of_plane(pieces: tuple[Weight, ...], format: str, plane: int) -> Array:
    return _taking_turns([piece.planes(format)[plane] for piece in pieces], 0)


# ---- what is not weights ----


def hugging_face_config(config: Config) -> dict[str, Any]:
    """The keys of Hugging Face's config.json that a Config of gpt-oss knows."""
    values: dict[str, Any] = {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": config.attention_bias,
        "experts_per_token": config.experts_per_token,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "layer_types": list(config.layer_types),
        "max_position_embeddings": config.max_positions,
        "model_type": "gpt_oss",
        "num_attention_heads": config.num_heads,
        "num_experts_per_tok": config.experts_per_token,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "num_local_experts": config.num_experts,
        "rms_norm_eps": config.rms_norm_eps,
        # None, not left out: without the key the family's default holds, YaRN.
        "rope_scaling": rope.settings(config),
        "rope_theta": _number(config.rope_theta),
        "sliding_window": config.sliding_window,
        "swiglu_limit": config.swiglu_limit,
        "tie_word_embeddings": config.tied_embeddings,
        "vocab_size": config.vocab_size,
    }
    if config.rope_scaling == "yarn":
        values["initial_context_length"] = config.rope_original_positions
    return values


def _quantization(tensors: list[_Tensor]) -> dict[str, Any]:
    """What config.json says of weights in two planes, as csrc/checkpoint/quantization.h has it."""
    formats = {t.name.removesuffix("_blocks"): t.weights for t in tensors if t.weights}
    if not formats:
        return {}
    if set(formats.values()) == {"MXFP4"} and all(".mlp.experts." in name for name in formats):
        return {"quantization_config": _QUANTIZATION}
    usual = Counter(formats.values()).most_common(1)[0][0]
    others = {name: format for name, format in formats.items() if format != usual}
    return {
        "quantization_config": {"quant_method": "mx", "format": usual}
        | ({"formats": others} if others else {})
    }


def _number(value: float) -> int | float:
    """An integer where it is one, as the released files spell theta."""
    return int(value) if value == int(value) else value


def _write_tokenizer(tokenizer: Tokenizer, directory: Path) -> dict[str, int]:
    """Writes the tokenizer's files, and returns the ids that config.json names."""
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    named = {f"{name}_token_id": index for name, index in ids.items() if index is not None}
    if tokenizer.path.name == "tokenizer.json":
        for name in TOKENIZER_FILES:
            if (tokenizer.path.parent / name).is_file():
                shutil.copyfile(tokenizer.path.parent / name, directory / name)
        return named
    library = tokenizer._tokenizer
    texts = {f"{name}_token": library.id_to_token(i) for name, i in ids.items() if i is not None}
    (directory / "tokenizer.json").write_text(library.to_str(pretty=True))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": tokenizer.adds_bos}
    _write_json(directory / "tokenizer_config.json", kind | texts)
    stops = {"eos_token_id": sorted(tokenizer.stop_token_ids)}
    _write_json(directory / "generation_config.json", named | stops)
    if tokenizer.chat_template is not None:
        (directory / "chat_template.jinja").write_text(tokenizer.chat_template)
    return named


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")


def _notes(
    files: Source, config: Config, weights: dict[str, Weight], tokenizer: Tokenizer | None
) -> tuple[str, ...]:
    notes = []
    rounded = Counter(
        weight.format
        for weight in weights.values()
        if weight.format not in PLAIN and _wanted(weight) is None
    )
    for format, count in rounded.items():
        notes.append(f"weights of {format} are decoded and rounded to BF16 ({count} tensors)")
    if files.is_gguf and config.architecture == "gpt_oss":
        notes.append(
            "config.json has what GGUF says; the swiglu limit, the layers' windows and that YaRN "
            "does not truncate are those of the released models"
        )
    if tokenizer is None:
        notes.append(f"no tokenizer is in {files.path} or beside it: none is written")
    return tuple(notes)
