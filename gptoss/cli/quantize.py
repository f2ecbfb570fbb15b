"""`gptoss quantize`: a model with fewer bits for the weights."""

from typing import Annotated, Literal

import typer

import gptoss
from gptoss.cli import console, options
from gptoss.cli.convert import SOURCE_HELP, Force, ShardSize, Threads, show
from gptoss.conversion import PLANES_ALONE
from gptoss.quantization import FORMATS

EXAMPLES = (
    "gptoss quantize demo demo-q8.gguf",
    "gptoss quantize model.gguf small.gguf --type Q4_K --rule 'output.weight=Q6_K'",
    "gptoss quantize demo mixed.gguf --rule '*_exps.weight=Q4_0' --rule 'blk.0.*=BF16'",
    "gptoss quantize demo demo-mxfp8 --type MXFP8",
)


def run(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=SOURCE_HELP, show_default=False)],
    output: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="The .gguf file or directory to make.")
    ],
    type: Annotated[
        str,
        typer.Option(
            "--type",
            metavar="TYPE",
            help=f"Format of the matrices: {', '.join(FORMATS)}; in Hugging Face's layout MXFP4, "
            f"{', '.join(PLANES_ALONE)} or BF16 (MXFP6 is E2M3, MXFP8 E4M3). Norms, biases, sinks, "
            "routers and positions stay, and so do blocks that take no more bits already.",
        ),
    ] = "Q8_0",
    rule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB=TYPE",
            help="Another format for the weights whose llama.cpp names match; the first rule that "
            "matches counts. May be given several times.",
        ),
    ] = None,
    to: Annotated[
        Literal["gguf", "hf"] | None,
        typer.Option(
            metavar="gguf|hf", help="Layout of the output; default: hf for MXFP6 and MXFP8."
        ),
    ] = None,
    max_shard_size: ShardSize = None,
    force: Force = False,
    threads: Threads = None,
    as_json: options.Json = False,
) -> None:
    """Write a model with its weights in fewer bits: a GGUF file or Hugging Face's layout."""
    with console.progress_bar("quantizing", unit="bytes") as progress:
        report = gptoss.quantize(
            source,
            output,
            type,
            rules=rule or (),
            to=to,
            max_shard_size=max_shard_size,
            force=force,
            threads=threads,
            progress=progress,
        )
    show(report, as_json)
