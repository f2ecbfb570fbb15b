"""`gptoss quantize`: a GGUF file with fewer bits for the weights."""

from typing import Annotated

import typer

import gptoss
from gptoss.cli import console, options
from gptoss.cli.convert import SOURCE_HELP, Force, Threads, show
from gptoss.quantization import FORMATS

EXAMPLES = (
    "gptoss quantize demo demo-q8.gguf",
    "gptoss quantize model.gguf small.gguf --type Q4_K --rule 'output.weight=Q6_K'",
    "gptoss quantize demo mixed.gguf --rule '*_exps.weight=Q4_0' --rule 'blk.0.*=BF16'",
)


def run(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=SOURCE_HELP, show_default=False)],
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="The .gguf file to make.")],
    type: Annotated[
        str,
        typer.Option(
            metavar="TYPE",
            help=f"Format of the matrices: {', '.join(FORMATS)}. Norms, biases, sinks, "
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
    force: Force = False,
    threads: Threads = None,
    as_json: options.Json = False,
) -> None:
    """Write a GGUF file with the weights of a model in fewer bits."""
    with console.progress_bar("quantizing", unit="bytes") as progress:
        report = gptoss.quantize(
            source,
            output,
            type,
            rules=rule or (),
            force=force,
            threads=threads,
            progress=progress,
        )
    show(report, as_json)
