"""Models between the layouts that they come in: GGUF for llama.cpp, Hugging Face's safetensors.

    gptoss.convert("~/models/gpt-oss-20b", "gpt-oss-20b.gguf")
    gptoss.convert("gpt-oss-20b.gguf", "gpt-oss-20b-hf")

No weight changes but where the other layout cannot store it, which the report says. Weights are
read and written a piece at a time, so memory use does not depend on the model's size.
"""

from __future__ import annotations

import functools
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptoss import dense, write_gguf
from gptoss.errors import ArgumentError, UnsupportedError, refuse_unknown_options
from gptoss.model import PLANES, Config, Model
from gptoss.output import check_output, complete_file, parse_size
from gptoss.rope import yarn_attention_factor
from gptoss.weights import F32_ENDS, Array, Source, Weight, in_order
from gptoss.write_gguf import TYPES
from gptoss.write_hugging_face import hugging_face_config, write_hugging_face
from gptoss.write_tokenizer import tokenizer_values

Progress = Callable[[int, int], object]
Metadata = dict[str, tuple[int, Any]]  # key -> (GGUF's number of the type, value)

LAYOUTS = ("gguf", "hf")


@dataclass(frozen=True)
class Report:
    """What was written.

    formats: tensors of each format. source_bytes, output_bytes: of tensors. notes: sentences on
    what is not as it was or as asked for.
    """

    path: Path
    formats: dict[str, int]
    source_bytes: int
    output_bytes: int
    notes: tuple[str, ...]


@refuse_unknown_options
def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    to: str | None = None,
    max_shard_size: int | str | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Writes a model of gpt-oss, llama or gpt2 in another layout.

    To GGUF, matrices and experts keep their format, MXFP4 in llama.cpp's order of nibbles; norms,
    biases, sinks, routers and learned positions become F32, which llama.cpp demands, and MXFP6 and
    MXFP8, which no type of GGUF holds, BF16; the tokenizer becomes metadata, and from GGUF
    tokenizer.json again. To Hugging Face's layout, F32 becomes BF16 where that changes no value,
    and what is not a matrix the embedding's format; blocks that the layout does not know are
    decoded and rounded to BF16. Hugging Face to GGUF and back gives the same bytes in every tensor,
    but of MXFP6, MXFP8 and, outside experts, MXFP4.

    Args:
        source: a model as Model takes it: a directory in Hugging Face's or the original layout, a
            .safetensors or .gguf file, "demo", a name in the Hugging Face cache.
        output: the .gguf file, or the directory, to be made.
        to: "gguf" or "hf"; by default "gguf" if output ends in .gguf, else "hf".
        max_shard_size: to "hf", what a file of weights holds at most, in bytes or as in "5GB", the
            default; more become several and an index. A tensor that is larger has its own.
        force: replace an output that exists. A directory is replaced only if it holds nothing but
            the files of a model.
        threads: by default one for each processor.
        progress: called with (done, total) bytes; may raise to stop.

    Raises ArgumentError, FileError, FormatError; UnsupportedError for what GGUF cannot express.
    Whatever is raised, nothing is left behind.
    """
    target = Path(output).expanduser()
    to = to or ("gguf" if target.suffix == ".gguf" else "hf")
    if to not in LAYOUTS:
        raise ArgumentError(f"to must be 'gguf' or 'hf', not {to!r}")
    shard_bytes = require_shard_bytes(max_shard_size, to)
    files = Source(source)
    if to == "hf":
        return to_hugging_face(files, target, shard_bytes, force, threads, progress)
    weights = files.weights()
    plan = [Planned(weight, gguf_format(files, weight)) for weight in weights]
    return write_planned(files, plan, target, force, threads, progress, notes=_decoded(plan))


def require_shard_bytes(max_shard_size: int | str | None, to: str) -> int:
    """What a file of weights holds at most. ArgumentError."""
    if to == "gguf" and max_shard_size is not None:
        raise ArgumentError("max_shard_size is for Hugging Face's layout; a GGUF file is one")
    return parse_size("5GB" if max_shard_size is None else max_shard_size)


def to_hugging_face(
    files: Source,
    output: Path,
    shard_bytes: int,
    force: bool,
    threads: int | None,
    progress: Progress | None,
    weights: Sequence[Weight] | None = None,
) -> Report:
    """weights: those of files with their targets, by default as they are."""
    with Model(files.path, threads=1) as model:
        config, tokenizer = model.config, model.tokenizer
    weights = files.weights() if weights is None else weights
    formats, num_bytes, notes = write_hugging_face(
        files, weights, config, tokenizer, output, shard_bytes, force, threads, progress
    )
    source_bytes = sum(weight.num_bytes for weight in weights)
    return Report(output, formats, source_bytes, num_bytes, notes)


# ---- GGUF ----


# Formats that no type of GGUF holds.
PLANES_ALONE = tuple(format for format in PLANES if format not in TYPES)


def gguf_format(files: Source, weight: Weight) -> str:
    """The format of a weight in GGUF if nothing else is asked for."""
    if not files.is_gguf and weight.name.endswith(F32_ENDS):
        return "F32"
    return "BF16" if weight.format in PLANES_ALONE else weight.format


def _decoded(plan: Sequence[Planned]) -> tuple[str, ...]:
    """Notes on weights that no type of GGUF holds. BF16 has all values of MXFP6 and MXFP8."""
    formats = Counter(
        p.weight.format for p in plan if p.weight.format in PLANES_ALONE and p.type == "BF16"
    )
    return tuple(
        f"weights of {format}, which GGUF has no type for, become BF16 ({count} tensors)"
        for format, count in formats.items()
    )


@dataclass(frozen=True)
class Planned:
    """A weight and the format to store it in; what write_gguf.header wants to know."""

    weight: Weight
    type: str

    @property
    def name(self) -> str:
        return self.weight.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    @property
    def num_bytes(self) -> int:
        _, block, block_bytes = TYPES[self.type]
        return math.prod(self.shape) // block * block_bytes


def write_planned(
    files: Source,
    plan: Sequence[Planned],
    output: Path,
    force: bool,
    threads: int | None,
    progress: Progress | None,
    notes: tuple[str, ...],
) -> Report:
    """Writes a GGUF file of planned weights."""
    total = sum(planned.num_bytes for planned in plan)
    values = _metadata(files, plan, output)
    header = write_gguf.header(values, plan)
    if not any(key in values for key in ("tokenizer.ggml.merges", "tokenizer.ggml.scores")):
        notes = (*notes, f"no tokenizer is beside {files.path}: the file has no vocabulary")
    inputs = files.inputs
    needed = len(header) + sum(p.num_bytes + write_gguf.padding(p.num_bytes) for p in plan)
    check_output(output, needed, inputs, force=force, is_directory=False)
    done = 0
    with complete_file(output) as file:
        file.write(header)
        for data, end in in_order(_jobs(plan), threads):
            file.write(data.data)
            done += data.nbytes
            file.write(bytes(end))
            if progress is not None:
                progress(done, total)
    source_bytes = sum(planned.weight.num_bytes for planned in plan)
    formats = dict(Counter(planned.type for planned in plan).most_common())
    return Report(output, formats, source_bytes, total, notes)


def _encode(piece: Weight, format: str, end: int) -> tuple[Array, int]:
    return np.ascontiguousarray(piece.encoded(format)).view(np.uint8), end


def _jobs(plan: Sequence[Planned]) -> Iterator[Callable[[], tuple[Array, int]]]:
    """Pieces in the order of the file, with the padding that follows each."""
    for planned in plan:
        left = math.prod(planned.shape)
        for piece in planned.weight.pieces():
            left -= math.prod(piece.shape)
            end = write_gguf.padding(planned.num_bytes) if left == 0 else 0
            yield functools.partial(_encode, piece, planned.type, end)


# ---- metadata ----

# general.file_type of llama.cpp, by the format of most weights.
_FILE_TYPES = {
    **{"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10},
    **{"Q3_K": 12, "Q4_K": 15, "Q5_K": 17, "Q6_K": 18, "BF16": 32, "MXFP4": 38},
}
_KINDS = {
    **{"u8": 0, "i8": 1, "u16": 2, "i16": 3, "u32": 4, "i32": 5, "f32": 6, "bool": 7, "str": 8},
    **{"u64": 10, "i64": 11, "f64": 12},
}
_UINT32, _STRING, _ARRAY = 4, 8, 9
_DROPPED = ("general.alignment", "general.file_type", "split.")  # said anew, or no longer so


def _metadata(files: Source, plan: Sequence[Planned], output: Path) -> Metadata:
    sizes: Counter[str] = Counter()
    for planned in plan:
        sizes[planned.type] += planned.num_bytes
    file_type = (_UINT32, _FILE_TYPES.get(sizes.most_common(1)[0][0] if sizes else "F32", 0))
    if files.is_gguf:
        return _copied_metadata(files) | {"general.file_type": file_type}
    with Model(files.path, threads=1) as model:
        config, tokenizer = model.config, model.tokenizer
    if config.architecture == "gpt_oss":
        _require_expressible(config)
        values = write_gguf.gpt_oss_values(hugging_face_config(config), output.stem)
    else:
        values = dense.gguf_values(config, output.stem)
    if tokenizer is None:
        values["tokenizer.ggml.model"] = (_STRING, "none")
        values[f"{values['general.architecture'][1]}.vocab_size"] = (_UINT32, config.vocab_size)
    else:
        values |= tokenizer_values(tokenizer, config.vocab_size)
    return values | {"general.file_type": file_type}


def _copied_metadata(files: Source) -> Metadata:
    values: Metadata = {"general.quantization_version": (_UINT32, 2)}
    for key, value in files.metadata.items():
        if key.startswith(_DROPPED):
            continue
        info = files.metadata.info(key)
        kind = _KINDS[info.type]
        if isinstance(value, np.ndarray):
            value = value.tolist()
        values[key] = (kind, value) if info.length is None else (_ARRAY, (kind, value))
    return values


def _require_expressible(config: Config) -> None:
    """UnsupportedError for what llama.cpp's metadata of gpt-oss has no words for: a converted model
    would compute something else."""
    alternating = tuple(
        "full_attention" if layer % 2 else "sliding_attention" for layer in range(config.num_layers)
    )
    for name, found, expected in (
        ("layer_types", config.layer_types, alternating),
        ("attention_bias", config.attention_bias, True),
        ("swiglu_limit", config.swiglu_limit, 7.0),
        ("swiglu_alpha", config.swiglu_alpha, 1.702),
        ("rope truncate", config.rope_truncate, False),
    ):
        if found != expected:
            raise UnsupportedError(
                f"GGUF cannot say that {name} is {found}: it is always {expected} there",
                expected=str(expected),
                found=str(found),
            )
    factor = yarn_attention_factor(config)
    if not math.isclose(config.rope_attention_factor, factor):
        raise UnsupportedError(
            f"GGUF cannot say that the rope attention factor is {config.rope_attention_factor}: it "
            f"follows from the scaling factor there, {factor}"
        )
