"""The options that several verbs share, and what they make: models and samplings."""

import dataclasses
from typing import Annotated, Any, Literal

import typer

import gptoss
from gptoss.cli import console

_SAMPLING = "Sampling"
_ENGINE = "Engine"

MODEL_HELP = (
    "A model directory, a .safetensors or .gguf file, org/name in the Hugging Face cache, or demo."
)
Model = Annotated[str, typer.Option("--model", "-m", metavar="PATH", help=MODEL_HELP)]
Device = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="cpu, vulkan, or a Vulkan device by number or part of its name: vulkan:1, "
        "vulkan:radeon (gptoss doctor lists them); several share the layers: vulkan:0,vulkan:1; "
        "default: cpu.",
        rich_help_panel=_ENGINE,
    ),
]
GPU_MEMORY_HELP = (
    "The most to take of a GPU's memory, 6GB or 512MiB; of several GPUs 6GB,4GB. What does not fit "
    "is computed on the CPU."
)
GpuMemory = Annotated[
    str | None,
    typer.Option("--gpu-memory", metavar="SIZE", help=GPU_MEMORY_HELP, rich_help_panel=_ENGINE),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Threads to use; default: the physical cores this process may use.",
        rich_help_panel=_ENGINE,
    ),
]
Isa = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Instruction set; default: the best there is (gptoss doctor lists them).",
        rich_help_panel=_ENGINE,
    ),
]
Precision = Annotated[
    Literal["fp32", "bf16", "fp16"] | None,
    typer.Option(
        metavar="fp32|bf16|fp16",
        help="bf16: activations rounded before every matrix product, by CPUs with AMX or "
        "AVX512_BF16; fp16: likewise where there are many tokens, by GPUs with cooperative "
        "matrices, whose default it is; else: fp32.",
        rich_help_panel=_ENGINE,
    ),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="DIR[=SCALE]",
        help="A LoRA adapter that PEFT saved, times SCALE; may be given several times.",
        rich_help_panel=_ENGINE,
    ),
]
BlockSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Rows of a prefill block; default: what the engine finds best.",
        rich_help_panel=_ENGINE,
    ),
]
KvDtype = Annotated[
    Literal["f16", "f32"],
    typer.Option(
        "--kv", metavar="f16|f32", help="Number format of the KV cache.", rich_help_panel=_ENGINE
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        "--context",
        min=1,
        metavar="N",
        help="Positions the context may hold; default: the model's limit.",
        rich_help_panel=_ENGINE,
    ),
]
Speculate = Annotated[
    bool,
    typer.Option(
        "--speculate",
        help="Guess tokens that the text suggests and compute them together: the same text, "
        "sooner where it repeats itself.",
        rich_help_panel=_ENGINE,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Stats = Annotated[bool, typer.Option("--stats", help="Print speed and seed on standard error.")]

Temperature = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        metavar="X",
        help="0 is greedy; default: what the model suggests, or 1.",
        rich_help_panel=_SAMPLING,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        min=0, metavar="K", help="Only the K most likely tokens; 0: all.", rich_help_panel=_SAMPLING
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        metavar="P",
        help="Only the likeliest tokens that make up P.",
        rich_help_panel=_SAMPLING,
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        metavar="P",
        help="Only tokens at least P times as likely as the best.",
        rich_help_panel=_SAMPLING,
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Above 1: tokens already there become less likely.",
        rich_help_panel=_SAMPLING,
    ),
]
FrequencyPenalty = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Taken off a token's logit for each time it occurred.",
        rich_help_panel=_SAMPLING,
    ),
]
PresencePenalty = Annotated[
    float | None,
    typer.Option(
        metavar="X", help="Taken off a token's logit once it occurred.", rich_help_panel=_SAMPLING
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help="Same seed, same text; default: a new one each time.",
        rich_help_panel=_SAMPLING,
    ),
]


def open_model(path: str, **how: Any) -> gptoss.Model:
    """gptoss.Model, with a progress bar while weights are brought to a device."""
    with console.progress_bar("loading the weights", unit="bytes") as progress:
        return gptoss.Model(path, progress=progress, **how)


def adapters(given: list[str] | None) -> list[tuple[str, float]]:
    """--adapter as Model takes it. What follows the last "=" is the scale if it is a number."""
    result = []
    for text in given or ():
        path, separator, scale = text.rpartition("=")
        try:
            result.append((path, float(scale)) if separator else (text, 1.0))
        except ValueError:
            result.append((text, 1.0))
    return result


def sampling(model: gptoss.Model, **given: Any) -> gptoss.Sampling:
    """The sampling that the model's files suggest, with the options that are not None."""
    chosen = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(model.default_sampling, **chosen)
