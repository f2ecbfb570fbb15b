"""Fewer bits for the weights of a model, as a GGUF file or in Hugging Face's layout.

gptoss.quantize("demo", "demo-q8.gguf", "Q8_0")
gptoss.quantize("demo", "small.gguf", "Q4_K", rules=["*_exps.weight=MXFP4", "output.*=Q6_K"])
gptoss.quantize("demo", "demo-mxfp8", "MXFP8")
"""

from __future__ import annotations

import fnmatch
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gptoss import blocks
from gptoss.conversion import (
    LAYOUTS,
    PLANES_ALONE,
    Planned,
    Progress,
    Report,
    gguf_format,
    require_shard_bytes,
    to_hugging_face,
    write_planned,
)
from gptoss.errors import ArgumentError, did_you_mean, refuse_unknown_options
from gptoss.model import BLOCKS, PLANES
from gptoss.weights import F32_ENDS, Source, Weight

FORMATS = blocks.ENCODED  # of GGUF files
HUGGING_FACE_FORMATS = (*blocks.PLAIN, *PLANES)
_ALL = (*FORMATS, *PLANES_ALONE)
_SHORT = {"MXFP6": "MXFP6_E2M3", "MXFP8": "MXFP8_E4M3"}
_FALLBACK, _LAST_RESORT = "Q8_0", "BF16"


@dataclass(frozen=True)
class Rule:
    """format: for the weights whose names of llama.cpp match glob."""

    glob: str
    format: str

    @classmethod
    def parse(cls, text: str) -> Rule:
        """'blk.*.attn_*=Q6_K'"""
        glob, equals, format = text.rpartition("=")
        if not equals or not glob:
            raise ArgumentError(f"a rule is GLOB=TYPE, such as '*_exps.weight=Q4_K', not {text!r}")
        return cls(glob, require_format(format))

    def applies(self, weight: Weight) -> bool:
        """Whether it names the weight; of block formats, only if that is a matrix."""
        return fnmatch.fnmatchcase(weight.name, self.glob) and (
            self.format in blocks.PLAIN or _is_matrix(weight)
        )


def _is_matrix(weight: Weight) -> bool:
    return len(weight.shape) >= 2 and weight.name.endswith(".weight")


def require_format(format: str) -> str:
    """A format that weights can be stored in, in capitals; MXFP6 is MXFP6_E2M3, MXFP8 MXFP8_E4M3.
    ArgumentError."""
    name = _SHORT.get(format.upper(), format.upper())
    if name not in _ALL:
        hint = did_you_mean(name, _ALL) or f"; the types are {', '.join(_ALL)}"
        raise ArgumentError(f"weights cannot be stored as {format!r}{hint}")
    return name


@refuse_unknown_options
def quantize(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    type: str,
    *,
    rules: Iterable[str | Rule] = (),
    to: str | None = None,
    max_shard_size: int | str | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Writes a model with its matrices in another format.

    Norms, biases, sinks, routers and learned positions stay as they are, and so do blocks that take
    no more bits than the type: the MXFP4 experts of gpt-oss under any type but one that rules give
    them. A matrix whose width is no multiple of the type's block is stored as Q8_0, and as BF16 if
    32 does not divide it either. The report's notes tell all of this.

    MXFP6 (E2M3 and E3M2) and MXFP8 (E4M3 and E5M2) are formats of Hugging Face's layout alone,
    which can also have MXFP4 and BF16, F16 and F32, and nothing else: what does not fit becomes
    BF16. There gate and up of experts are one tensor, and have one type.

    Args:
        source: a model as Model takes it, or a GGUF file of any architecture.
        output: the .gguf file, or the directory, to be made.
        type: one of FORMATS; MXFP6_E2M3 ("MXFP6" for short), MXFP6_E3M2, MXFP8_E4M3 ("MXFP8"),
            MXFP8_E5M2.
        rules: "GLOB=TYPE" for the names of llama.cpp's ("blk.0.attn_q.weight"), before the type;
            the first that matches counts. Rules with a block format are for matrices alone, routers
            included; norms, biases and sinks can be F32, F16 or BF16.
        to: "gguf" or "hf"; by default "hf" if MXFP6 or MXFP8 is asked for, else "gguf".
        max_shard_size, force, threads, progress: as of gptoss.convert.

    Raises ArgumentError, also for a rule that matches nothing; FileError, FormatError;
    NumericError for weights that the type cannot hold. Nothing is left behind then.
    """
    parsed = [rule if isinstance(rule, Rule) else Rule.parse(rule) for rule in rules]
    format = require_format(type)
    target = Path(output).expanduser()
    is_gguf = _layout(to, target, [format, *(rule.format for rule in parsed)]) == "gguf"
    shard_bytes = require_shard_bytes(max_shard_size, "gguf" if is_gguf else "hf")
    files = Source(source)
    weights = files.weights()
    check_rules(parsed, weights)
    notes: Counter[str] = Counter()
    chosen = [_choose(weight, parsed, format, notes, is_gguf) for weight in weights]
    remarks = tuple(f"{note} ({count} of {len(chosen)} weights)" for note, count in notes.items())
    if is_gguf:
        plan = [
            Planned(weight, type_ or gguf_format(files, weight))
            for weight, type_ in zip(weights, chosen, strict=True)
        ]
        return write_planned(files, plan, target, force, threads, progress, remarks)
    weights = [replace(w, target=type_) for w, type_ in zip(weights, chosen, strict=True)]
    _check_pairs(weights)
    report = to_hugging_face(files, target, shard_bytes, force, threads, progress, weights)
    return replace(report, notes=(*remarks, *report.notes))


def _layout(to: str | None, output: Path, formats: Sequence[str]) -> str:
    """ "gguf" or "hf", which has all of the formats. ArgumentError."""
    alone = [format for format in formats if format in PLANES_ALONE]
    layout = to or ("hf" if alone else "gguf")
    if layout not in LAYOUTS:
        raise ArgumentError(f"to must be 'gguf' or 'hf', not {to!r}")
    if alone and (layout == "gguf" or output.suffix == ".gguf"):
        raise ArgumentError(
            f"no type of GGUF holds {alone[0]}: it is stored in Hugging Face's layout, so name a "
            f"directory, not {str(output)!r}"
        )
    for format in formats:
        if layout == "hf" and format not in HUGGING_FACE_FORMATS:
            raise ArgumentError(
                f"{format} is a format of GGUF files; Hugging Face's layout can have "
                f"{', '.join(HUGGING_FACE_FORMATS)}"
            )
    return layout


def _check_pairs(weights: Sequence[Weight]) -> None:
    """ArgumentError if gate and up of experts are to differ in format."""
    targets = {weight.name: weight.target for weight in weights}
    for name, target in targets.items():
        up = name.replace("ffn_gate_exps.", "ffn_up_exps.")
        if targets.get(up, target) != target:
            raise ArgumentError(
                f"gate and up of experts are one tensor in Hugging Face's layout, but {name} is to "
                f"be {target or 'as it is'} and {up} {targets[up] or 'as it is'}: give both one "
                "type, as by the rule 'blk.*.ffn_[gu]*_exps.weight=TYPE'"
            )


def check_rules(rules: Sequence[Rule], weights: Sequence[Weight]) -> None:
    """ArgumentError for a rule that names nothing, or nothing that earlier ones leave."""
    names = [weight.name for weight in weights]
    left = list(weights)
    for rule in rules:
        matched = {weight.name for weight in left if rule.applies(weight)}
        if not matched:
            raise ArgumentError(f"the rule {rule.glob!r} {_why_idle(rule, weights, names)}")
        left = [weight for weight in left if weight.name not in matched]


def _why_idle(rule: Rule, weights: Sequence[Weight], names: Sequence[str]) -> str:
    if any(rule.applies(weight) for weight in weights):
        return "has no effect: rules before it match all it matches"
    if any(fnmatch.fnmatchcase(name, rule.glob) for name in names):
        plain = ", ".join(blocks.PLAIN)
        return f"names no matrix, and anything else can be {plain} alone, not {rule.format}"
    example = names[len(names) // 2] if names else "blk.0.attn_q.weight"
    return "matches no weight" + (did_you_mean(rule.glob, names) or f"; one is {example!r}")


def bits(format: str) -> float:
    """Bits that a weight takes."""
    elements, block_bytes = blocks.block_of(format)
    return 8 * block_bytes / elements


def _choose(
    weight: Weight, rules: Sequence[Rule], format: str, notes: Counter[str], is_gguf: bool
) -> str | None:
    """The format to store a weight in; None: whatever the layout has it in unasked."""
    rule = next((rule for rule in rules if rule.applies(weight)), None)
    is_known = weight.format in (*blocks.PLAIN, *BLOCKS, *PLANES)
    if rule is None and (not is_known or not _is_matrix(weight) or weight.name.endswith(F32_ENDS)):
        return None
    wanted = format if rule is None else rule.format
    chosen, width = _that_fits(wanted, weight.shape[-1], is_gguf), weight.shape[-1]
    block = blocks.block_of(wanted)[0]
    is_packed = weight.format in (BLOCKS if is_gguf else PLANES)
    if is_packed and (rule is None or chosen != wanted) and bits(weight.format) <= bits(chosen):
        why = f"which takes no more bits than {wanted}"
        if chosen != wanted:
            why = f"as {wanted} has blocks of {block}, and {chosen} would take more bits"
        if weight.format != wanted:
            notes[f"some matrices stay {weight.format}, {why}"] += 1
        return weight.format
    if chosen != wanted:
        notes[f"matrices of width {width} become {chosen}, as {wanted} has blocks of {block}"] += 1
    return chosen


def _that_fits(format: str, width: int, is_gguf: bool) -> str:
    """The format, or what takes its place if its blocks do not divide the width."""
    for candidate in (format, _FALLBACK) if is_gguf else (format,):
        if width % blocks.block_of(candidate)[0] == 0:
            return candidate
    return _LAST_RESORT
