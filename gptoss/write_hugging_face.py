"""Write gpt-oss in Hugging Face's layout: config.json and one model.safetensors."""

from __future__ import annotations

import functools
import json
import math
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gptoss.blocks import PLAIN
from gptoss.errors import FormatError, UnsupportedError
from gptoss.model import DTYPES, PLANES, Config
from gptoss.output import MODEL_FILES, check_output, complete_directory
from gptoss.tokenizer import Tokenizer
from gptoss.weights import Source, Weight, hugging_face_names, in_order

Array = npt.NDArray[Any]
Job = Callable[[], Array]
Progress = Callable[[int, int], object]

_BESIDE = MODEL_FILES - {"config.json", "model.safetensors"}
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
    *,
    force: bool,
    threads: int | None,
    progress: Progress | None,
) -> tuple[dict[str, int], int, tuple[str, ...]]:
    """Writes the directory; returns tensors of each dtype, bytes of tensors and notes. source: the
    weights of files. The files of the tokenizer are copied, or made from what a GGUF file holds."""
    if config.architecture != "gpt_oss":
        raise UnsupportedError(f"{files.path}: {config.architecture} is written as GGUF alone")
    weights = {weight.name: weight for weight in source}
    tensors = list(_plan(weights, config))
    total = sum(tensor.num_bytes for tensor in tensors)
    header = _header(tensors)
    inputs = files.inputs
    check_output(output, total + len(header), inputs, force=force, is_directory=True)
    done = 0
    with complete_directory(output) as directory:
        with open(directory / "model.safetensors", "xb") as file:
            file.write(header)
            for array in in_order((job for tensor in tensors for job in tensor.jobs()), threads):
                file.write(np.ascontiguousarray(array).view(np.uint8).data)
                done += array.nbytes
                if progress is not None:
                    progress(done, total)
        values = hugging_face_config(config)
        values |= _quantization(tensors)
        if tokenizer is not None:
            values |= _write_tokenizer(tokenizer, directory)
        _write_json(directory / "config.json", values)
    held = [tensor.format if tensor.weights is None else tensor.weights for tensor in tensors]
    formats = dict(Counter(format for format in held if format).most_common())
    return formats, total, _notes(files, weights, tokenizer)


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
    for name, hf in hugging_face_names(config.num_layers).items():
        if name == "output.weight" and config.tied_embeddings:
            continue
        weight = _take(weights, name)
        if _wanted(weight) in PLANES:
            yield from _planes(hf, [weight])
            continue
        format = _format(weight)
        yield _Tensor(hf, format, weight.shape, functools.partial(_whole, weight, format))
    for layer in range(config.num_layers):
        to = f"model.layers.{layer}.mlp.experts."
        kinds = {kind: f"blk.{layer}.ffn_{kind}_exps" for kind in ("gate", "up", "down")}
        matrices = {kind: _take(weights, f"{name}.weight") for kind, name in kinds.items()}
        biases = {kind: _take(weights, f"{name}.bias") for kind, name in kinds.items()}
        yield from _experts(to + "gate_up_proj", [matrices["gate"], matrices["up"]])
        yield from _experts(to + "down_proj", [matrices["down"]])
        yield _bias(to + "gate_up_proj_bias", [biases["gate"], biases["up"]])
        yield _bias(to + "down_proj_bias", [biases["down"]])


def _take(weights: dict[str, Weight], name: str) -> Weight:
    if name not in weights:
        raise FormatError(
            f"there is no weight {name}: only gpt-oss under llama.cpp's names is converted",
            tensor=name,
        )
    return weights[name]


def _wanted(weight: Weight) -> str | None:
    """The format that a weight is to have, or keeps because it is in two planes or could be."""
    keeps = weight.scales is not None or (weight.format == "MXFP4" and "_exps." in weight.name)
    return weight.target or (weight.format if keeps else None)


def _format(*weights: Weight) -> str:
    """The dtype that holds the weights: the wanted one; BF16 also for F32 whose values it has, and
    for blocks."""
    wanted = {weight.target for weight in weights}
    if len(wanted) == 1 and wanted < set(PLAIN):
        return str(*wanted)
    formats = {weight.format for weight in weights}
    if formats == {"F16"}:
        return "F16"
    if all(_is_bf16(weight) for weight in weights):
        return "BF16"
    return "F32"


def _is_bf16(weight: Weight) -> bool:
    """Whether bfloat16 holds every value, or there is nothing better for them."""
    if weight.format not in ("F32", "F16"):
        return True
    return all(
        np.array_equal(values.astype(ml_dtypes.bfloat16).astype(np.float32), values)
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


def _bias(name: str, biases: list[Weight]) -> _Tensor:
    format = _format(*biases)
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
    format = _format(*parts)

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
    """The keys of Hugging Face's config.json that a Config knows."""
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
        "rope_scaling": None,  # without the key the family's default holds: YaRN
        "rope_theta": _number(config.rope_theta),
        "sliding_window": config.sliding_window,
        "swiglu_limit": config.swiglu_limit,
        "tie_word_embeddings": config.tied_embeddings,
        "vocab_size": config.vocab_size,
    }
    if config.rope_scaling == "yarn":
        values["initial_context_length"] = config.rope_original_positions
        values["rope_scaling"] = {
            "beta_fast": config.rope_beta_fast,
            "beta_slow": config.rope_beta_slow,
            "factor": config.rope_factor,
            "original_max_position_embeddings": config.rope_original_positions,
            "rope_type": "yarn",
            "truncate": config.rope_truncate,
        }
        if not math.isclose(config.rope_attention_factor, yarn_attention_factor(config)):
            values["rope_scaling"]["attention_factor"] = config.rope_attention_factor
    return values


def yarn_attention_factor(config: Config) -> float:
    """What multiplies cosine and sine if nothing else is said."""
    if config.rope_scaling != "yarn" or config.rope_factor <= 1:
        return 1.0
    return 0.1 * math.log(config.rope_factor) + 1


def _number(value: float) -> int | float:
    """An integer where it is one, as the released files spell theta."""
    return int(value) if value == int(value) else value


def _write_tokenizer(tokenizer: Tokenizer, directory: Path) -> dict[str, int]:
    """Writes the tokenizer's files, and returns the ids that config.json names."""
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    named = {f"{name}_token_id": index for name, index in ids.items() if index is not None}
    if tokenizer.path.name == "tokenizer.json":
        for name in _BESIDE:
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
    files: Source, weights: dict[str, Weight], tokenizer: Tokenizer | None
) -> tuple[str, ...]:
    notes = []
    rounded = Counter(
        weight.format
        for weight in weights.values()
        if weight.format not in PLAIN and _wanted(weight) is None
    )
    for format, count in rounded.items():
        notes.append(f"weights of {format} are decoded and rounded to BF16 ({count} tensors)")
    if files.is_gguf:
        notes.append(
            "config.json has what GGUF says; the swiglu limit, the layers' windows and that YaRN "
            "does not truncate are those of the released models"
        )
    if tokenizer is None:
        notes.append(f"no tokenizer is in {files.path} or beside it: none is written")
    return tuple(notes)
