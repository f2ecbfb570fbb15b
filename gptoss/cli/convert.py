"""`gptoss convert`: models between GGUF and Hugging Face's layout."""

import dataclasses
import json
from typing import Annotated, Literal

import typer
from rich.text import Text

import gptoss
from gptoss.cli import console, options
from gptoss.conversion import Report

EXAMPLES = (
    "gptoss convert ~/models/gpt-oss-20b gpt-oss-20b.gguf",
    "gptoss convert gpt-oss-20b.gguf gpt-oss-20b-hf --max-shard-size 2GB",
    "gptoss convert ~/models/gpt-oss-20b/original gpt-oss-20b-hf --to hf",
)

SOURCE_HELP = options.MODEL_HELP
Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")]
Threads = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Threads to use; default: one for each processor."),
]
ShardSize = Annotated[
    str | None,
    typer.Option(
        "--max-shard-size",
        metavar="SIZE",
        help="What a .safetensors file holds at most, such as 500MB; default: 5GB.",
    ),
]


def show(report: Report, as_json: bool) -> None:
    """Prints what was written: a line, one a format, and the notes on standard error."""
    if as_json:
        print(json.dumps(dataclasses.asdict(report) | {"path": str(report.path)}, indent=2))
        return
    out = console.console()
    size = console.format_bytes(report.output_bytes)
    before = console.format_bytes(report.source_bytes)
    formats = ", ".join(f"{count} {format}" for format, count in report.formats.items())
    out.print(
        Text.assemble((console.visible(str(report.path)), "bold"), f": {size} (was {before})"),
        soft_wrap=True,
    )
    out.print(f"tensors: {formats}", soft_wrap=True)
    for note in report.notes:
        console.note(f"note: {note}")


def run(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=SOURCE_HELP, show_default=False)],
    output: Annotated[
        str,
        typer.Argument(metavar="OUTPUT", help="The .gguf file or directory to make."),
    ],
    to: Annotated[
        Literal["gguf", "hf"] | None,
        typer.Option(
            metavar="gguf|hf", help="Layout of the output; default: gguf for a name in .gguf."
        ),
    ] = None,
    max_shard_size: ShardSize = None,
    force: Force = False,
    threads: Threads = None,
    as_json: options.Json = False,
) -> None:
    """Write a model as a GGUF file for llama.cpp, or as safetensors for Hugging Face."""
    with console.progress_bar("converting", unit="bytes") as progress:
        report = gptoss.convert(
            source,
            output,
            to=to,
            max_shard_size=max_shard_size,
            force=force,
            threads=threads,
            progress=progress,
        )
    show(report, as_json)
