"""Fewer bits for the weights of a model, as a GGUF file.

gptoss.quantize("demo", "demo-q8.gguf", "Q8_0")
gptoss.quantize("demo", "small.gguf", "Q4_K", rules=["*_exps.weight=MXFP4", "output.*=Q6_K"])
"""

from __future__ import annotations

import fnmatch
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptoss import blocks
from gptoss.conversion import Planned, Progress, Report, gguf_format, write_planned
from gptoss.errors import ArgumentError, did_you_mean, refuse_unknown_options
from gptoss.model import BLOCKS
from gptoss.weights import F32_ENDS, Source, Weight

FORMATS = blocks.ENCODED
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
    """A format that weights can be stored in, in capitals. ArgumentError."""
    name = format.upper()
    if name not in FORMATS:
        hint = did_you_mean(name, FORMATS) or f"; the types are {', '.join(FORMATS)}"
        raise ArgumentError(f"weights cannot be stored as {format!r}{hint}")
    return name


@refuse_unknown_options
def quantize(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    type: str,
    *,
    rules: Iterable[str | Rule] = (),
    force: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Writes a GGUF file with the matrices of a model in another format.

    Norms, biases, sinks, routers and learned positions stay as they are, and so do blocks that take
    no more bits than the type: the MXFP4 experts of gpt-oss under any type but one that rules give
    them. A matrix whose width is no multiple of the type's block is stored as Q8_0, and as BF16 if
    32 does not divide it either. The report's notes tell all of this.

    Args:
        source: a model as Model takes it, or a GGUF file of any architecture.
        output: the .gguf file to be made.
        type: one of FORMATS.
        rules: "GLOB=TYPE" for the names of llama.cpp's ("blk.0.attn_q.weight"), before the type;
            the first that matches counts. Rules with a block format are for matrices alone, routers
            included; norms, biases and sinks can be F32, F16 or BF16.
        force, threads, progress: as of gptoss.convert.

    Raises ArgumentError, also for a rule that matches nothing; FileError, FormatError;
    NumericError for weights that the type cannot hold. Nothing is left behind then.
    """
    parsed = [rule if isinstance(rule, Rule) else Rule.parse(rule) for rule in rules]
    format = require_format(type)
    files = Source(source)
    weights = files.weights()
    check_rules(parsed, weights)
    notes: Counter[str] = Counter()
    plan = [_planned(files, weight, parsed, format, notes) for weight in weights]
    return write_planned(
        files,
        plan,
        Path(output).expanduser(),
        force,
        threads,
        progress,
        tuple(f"{note} ({count} of {len(plan)} weights)" for note, count in notes.items()),
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


def _planned(
    files: Source, weight: Weight, rules: Sequence[Rule], format: str, notes: Counter[str]
) -> Planned:
    rule = next((rule for rule in rules if rule.applies(weight)), None)
    as_is = gguf_format(files, weight)
    is_known = weight.format in blocks.PLAIN or weight.format in BLOCKS
    if rule is None and (not is_known or not _is_matrix(weight) or weight.name.endswith(F32_ENDS)):
        return Planned(weight, as_is)
    wanted = format if rule is None else rule.format
    chosen, width = _that_fits(wanted, weight.shape[-1]), weight.shape[-1]
    block = blocks.block_of(wanted)[0]
    is_packed = weight.format in BLOCKS
    if is_packed and (rule is None or chosen != wanted) and bits(weight.format) <= bits(chosen):
        why = f"which takes no more bits than {wanted}"
        if chosen != wanted:
            why = f"as {wanted} has blocks of {block}, and {chosen} would take more bits"
        if weight.format != wanted:
            notes[f"some matrices stay {weight.format}, {why}"] += 1
        return Planned(weight, weight.format)
    if chosen != wanted:
        notes[f"matrices of width {width} become {chosen}, as {wanted} has blocks of {block}"] += 1
    return Planned(weight, chosen)


def _that_fits(format: str, width: int) -> str:
    """The format, or what takes its place if its blocks do not divide the width."""
    for candidate in (format, _FALLBACK):
        if width % blocks.block_of(candidate)[0] == 0:
            return candidate
    return _LAST_RESORT
