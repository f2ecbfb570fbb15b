"""`gptoss compare`: how far the weights of two models are from each other."""

import dataclasses
import json
import math
import re
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Annotated

import typer

import gptoss
from gptoss.cli import console, options, perplexity
from gptoss.cli.convert import SOURCE_HELP, Threads
from gptoss.comparison import TensorError

EXAMPLES = (
    "gptoss compare demo demo-q4.gguf",
    "gptoss compare demo demo-q4.gguf --tensors",
    "gptoss compare demo demo-q4.gguf --text book.txt --context 1024",
)


def fold(errors: Iterable[TensorError]) -> list[TensorError]:
    """The layers of a weight as one line: the worst of each figure, names with N for the layer."""
    groups: dict[tuple[str, tuple[int, ...], tuple[str, str]], TensorError] = {}
    for error in errors:
        name = re.sub(r"\.\d+\.", ".N.", error.name, count=1)
        key = (name, error.shape, error.formats)
        worst = groups.get(key)
        if worst is None:
            groups[key] = dataclasses.replace(error, name=name)
            continue
        groups[key] = dataclasses.replace(
            worst,
            max_abs=_worse(worst.max_abs, error.max_abs),
            relative_rms=_worse(worst.relative_rms, error.relative_rms),
            cosine=-_worse(-worst.cosine, -error.cosine),
        )
    return list(groups.values())


def _worse(a: float, b: float) -> float:
    """The larger; NaN is the worst."""
    return a if math.isnan(a) or a >= b else b


def _print(errors: list[TensorError], all_tensors: bool) -> None:
    rows = console.table(
        "weight", "shape", "A", "B", "max |B - A|", "relative RMS", "cosine", right=(4, 5, 6)
    )
    for error in errors if all_tensors else fold(errors):
        same = error.max_abs == 0
        rows.add_row(
            console.visible(error.name),
            " x ".join(map(str, error.shape)),
            *error.formats,
            "0" if same else f"{error.max_abs:.4g}",
            "0" if same else f"{error.relative_rms:.4%}",
            "1" if same else f"{error.cosine:.6f}",
            style="dim" if same else None,
        )
    out = console.console()
    out.print(rows)
    equal = sum(error.max_abs == 0 for error in errors)
    worst = "" if all_tensors else "; of layers N the worst is shown"
    out.print(f"\n{equal} of {len(errors)} weights have equal values{worst}.")


def run(
    a: Annotated[str, typer.Argument(metavar="A", help=SOURCE_HELP, show_default=False)],
    b: Annotated[
        str, typer.Argument(metavar="B", help="The model to set against A.", show_default=False)
    ],
    tensors: Annotated[
        bool, typer.Option("--tensors", help="List every layer, not the worst of all.")
    ] = False,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Then let both read this text: KL divergence, perplexities, likeliest tokens.",
        ),
    ] = None,
    context: perplexity.Size = 512,
    threads: Threads = None,
    as_json: options.Json = False,
) -> None:
    """Show the error of B's weights against A's, whatever their layouts and formats.

    With --text both models then read a text, and what B's errors do to its predictions is shown, as
    gptoss perplexity --model B --reference A shows it.
    """
    with nullcontext() if text is None else perplexity.open_text(text) as pieces:
        with console.progress_bar("comparing", unit="bytes") as progress:
            errors = gptoss.compare(a, b, threads=threads, progress=progress)
        if not as_json:
            _print(errors, tensors)
        outcome = None
        if text is not None and pieces is not None:
            facts, statistics = perplexity.evaluate(
                text, pieces, b, a, context, threads=threads, quiet=as_json
            )
            outcome = facts | statistics.as_dict()
            if not as_json:
                print()
                perplexity.show(statistics)
    if as_json:
        weights = [dataclasses.asdict(error) for error in errors]
        print(json.dumps({"weights": weights, "text": outcome}, indent=2))
