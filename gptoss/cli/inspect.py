"""`gptoss inspect`: what a checkpoint holds and what it needs, without running it; of models that
the engine does not run, what their files say."""

import dataclasses
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import gptoss
from gptoss.cli import console, inspect_files, options
from gptoss.model import Config, TensorInfo

EXAMPLES = (
    "gptoss inspect",
    "gptoss inspect ~/models/gpt-oss-20b --context 32768",
    "gptoss inspect demo --tensors",
    "gptoss inspect ~/models/gpt-oss-20b --check",
    "gptoss inspect any-model.gguf",
)

# Rows of a prefill block, and rows that a sliding layer keeps beyond its window.
_BLOCK_ROWS = 512

# First match wins; the spellings of Hugging Face, of openai's releases and of llama.cpp.
_CATEGORIES = (
    ("experts", r"\.mlp\.experts\.|\.mlp\.mlp[12]_|\.ffn_\w+_exps\."),
    ("router", r"\.mlp\.(router|gate)\.|\.ffn_gate_inp\."),
    ("mlp", r"\.mlp\.((gate|up|down)_proj|c_\w+)\.|\.ffn_(gate|up|down)\."),
    ("attention", r"\.self_attn\.|\.attn\.(qkv|out|sinks|c_)|\.attn_(q|k|v|qkv|output|sinks)\."),
    ("norms", r"norm|(^|\.)ln_\w\."),
    (
        "embedding",
        r"^(model\.embed_tokens|embedding|(transformer\.)?w[tp]e|(token|position)_embd)\.",
    ),
    ("unembedding", r"^(lm_head|unembedding|output)\."),
    ("other", r""),
)

_KV_BYTES = {"f16": 2, "f32": 4}


def category_of(name: str) -> str:
    """'model.layers.3.mlp.router.weight' -> 'router'."""
    return next(category for category, pattern in _CATEGORIES if re.search(pattern, name))


def parameters_of(info: TensorInfo) -> int:
    """Weights that a tensor holds, none in a plane of scales."""
    if re.search(r"[._]scales$", info.name):
        return 0
    if info.weight_format != info.format:  # codes in blocks of 32
        return 32 * math.prod(info.shape[:-1])
    return math.prod(info.element_shape)


def kv_bytes(config: Config, context: int, dtype: str) -> int:
    """Bytes of keys and values at `context` positions; sliding layers hold their window."""
    window = min(context, config.sliding_window + _BLOCK_ROWS)
    rows = sum(window if kind == "sliding_attention" else context for kind in config.layer_types)
    return 2 * rows * config.num_kv_heads * config.head_dim * _KV_BYTES[dtype]


def activation_bytes(config: Config, rows: int) -> int:
    """Bytes of the float32 activations of one block of `rows` rows, and the logits of one."""
    queries = config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim
    chosen = config.experts_per_token
    attention = 2 * queries + 2 * keys
    experts = config.num_experts + chosen * (config.hidden_size + 2)
    mlp = experts + max(chosen, 1) * config.intermediate_size
    return 4 * (rows * (3 * config.hidden_size + attention + mlp) + config.vocab_size)


@dataclasses.dataclass
class Group:
    """Tensors of one name but for the layer number, of one dtype and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    count: int = 0
    num_bytes: int = 0


def group_tensors(tensors: Iterable[dict[str, Any]]) -> list[Group]:
    """Tensors of all layers folded to one line each, in the order of first appearance."""
    groups: dict[tuple[str, str, tuple[int, ...]], Group] = {}
    for tensor in tensors:
        name = re.sub(r"\.\d+\.", ".N.", tensor["name"], count=1)
        key = (name, tensor["dtype"], tuple(tensor["shape"]))
        group = groups.setdefault(key, Group(*key))
        group.count += 1
        group.num_bytes += tensor["bytes"] or 0
    return list(groups.values())


def _describe_experts(config: Config, num_bytes: int) -> dict[str, int] | None:
    """None for a model without experts."""
    if config.num_experts == 0:
        return None
    return {
        "per_layer": config.num_experts,
        "per_token": config.experts_per_token,
        "bytes_each": num_bytes // (config.num_layers * config.num_experts),
    }


def describe(model: gptoss.Model, context: int) -> dict[str, Any]:
    """Everything `inspect` shows, as JSON types."""
    config = model.config
    infos = [model.tensor_info(name) for name in sorted(model.tensors, key=inspect_files.by_layer)]
    categories = {name: {"tensors": 0, "parameters": 0, "bytes": 0} for name, _ in _CATEGORIES}
    for info in infos:
        total = categories[category_of(info.name)]
        total["tensors"] += 1
        total["parameters"] += parameters_of(info)
        total["bytes"] += info.num_bytes
    total_parameters = sum(total["parameters"] for total in categories.values())
    experts = _describe_experts(config, categories["experts"]["bytes"])
    idle = 0.0
    if experts is not None:
        share = config.experts_per_token / config.num_experts
        idle = categories["experts"]["parameters"] * (1 - share)
    weights = sum(info.num_bytes for info in infos)
    kv_f16 = kv_bytes(config, context, "f16")
    activations = activation_bytes(config, min(context, _BLOCK_ROWS))
    checkpoint = gptoss.Checkpoint(model.path)
    return {
        "path": str(model.path),
        "container": inspect_files.container(checkpoint),
        "config": dataclasses.asdict(config),
        "parameters": total_parameters,
        "active_parameters": round(total_parameters - idle),
        "experts": experts,
        "categories": {name: total for name, total in categories.items() if total["tensors"]},
        "memory": {
            "context": context,
            "weights_bytes": weights,
            "kv_f16_bytes": kv_f16,
            "kv_f32_bytes": kv_bytes(config, context, "f32"),
            "activation_bytes": activations,
            "total_bytes": weights + kv_f16 + activations,
        },
        "tensors": [
            {
                "name": info.name,
                "dtype": _dtype(info),
                "shape": list(info.element_shape),
                "bytes": info.num_bytes,
                "file": str(info.file),
                "offset": info.file_offset,
            }
            for info in infos
        ],
    }


def _dtype(info: TensorInfo) -> str:
    """The array's, or the format of the weights in blocks."""
    is_plain = info.element_shape == info.shape and info.weight_format == info.format
    return str(info.dtype) if is_plain else info.weight_format


def _shape(sizes: Iterable[int]) -> str:
    return " x ".join(map(str, sizes)) or "scalar"


def _config_table(facts: dict[str, Any]) -> Table:
    rows = console.table("config", "")
    for key, value in facts["config"].items():
        if key == "layer_types":
            sliding = sum(kind == "sliding_attention" for kind in value)
            value = f"{sliding} sliding, {len(value) - sliding} full"
        elif value == 0 and value is not False:  # the family has no use for it
            continue
        rows.add_row(key, f"{value:,}" if type(value) is int else str(value))
    return rows


def _tensor_table(facts: dict[str, Any]) -> Table:
    rows = console.table("tensor", "dtype", "shape", "bytes", "file", "offset", right=(3, 5))
    for tensor in facts["tensors"]:
        rows.add_row(
            console.visible(tensor["name"]),
            tensor["dtype"],
            _shape(tensor["shape"]),
            "?" if tensor["bytes"] is None else f"{tensor['bytes']:,}",
            Path(tensor["file"]).name,
            f"{tensor['offset']:,}",
        )
    return rows


def _group_table(facts: dict[str, Any]) -> Table:
    rows = console.table("tensors", "dtype", "shape", "count", "size", right=(3, 4))
    for group in group_tensors(facts["tensors"]):
        size = console.format_bytes(group.num_bytes)
        name = console.visible(group.name)
        rows.add_row(name, group.dtype, _shape(group.shape), str(group.count), size)
    return rows


def _part_table(facts: dict[str, Any]) -> Table:
    rows = console.table("part", "tensors", "parameters", "size", "share", right=(1, 2, 3, 4))
    weights = facts["memory"]["weights_bytes"]
    for name, total in facts["categories"].items():
        rows.add_row(
            name,
            f"{total['tensors']:,}",
            console.format_count(total["parameters"]),
            console.format_bytes(total["bytes"]),
            f"{total['bytes'] / weights:.1%}",
        )
    rows.add_row(
        "all",
        f"{len(facts['tensors']):,}",
        console.format_count(facts["parameters"]),
        console.format_bytes(weights),
        "",
        style="bold",
    )
    return rows


def _memory_table(facts: dict[str, Any]) -> Table:
    memory = facts["memory"]
    rows = console.table(f"memory at {memory['context']:,} positions", "", "", right=(1,))
    slides = "sliding_attention" in facts["config"]["layer_types"]
    for label, key, remark in (
        ("weights", "weights_bytes", "mapped from the files, shared by all processes"),
        (
            "KV cache, f16",
            "kv_f16_bytes",
            "sliding layers hold their window and one block" if slides else "",
        ),
        ("KV cache, f32", "kv_f32_bytes", "with --kv f32"),
        ("activations", "activation_bytes", f"of one block of {_BLOCK_ROWS} rows"),
        ("together", "total_bytes", "about, with the f16 cache"),
    ):
        rows.add_row(label, console.format_bytes(memory[key]), Text(remark, "dim"))
    return rows


def _use(facts: dict[str, Any]) -> str:
    """How much of the model a token uses."""
    experts, parameters = facts["experts"], console.format_count(facts["parameters"])
    if experts is None:
        return f"Every token uses all {parameters} parameters: there are no experts."
    return (
        f"A token uses {experts['per_token']} of the {experts['per_layer']} experts in each "
        f"layer: {console.format_count(facts['active_parameters'])} of {parameters} parameters. "
        f"One expert takes {console.format_bytes(experts['bytes_each'])}."
    )


def _print(out: Console, facts: dict[str, Any], all_tensors: bool) -> None:
    out.print(Text(console.visible(facts["path"]), "bold"), soft_wrap=True)
    if "config" not in facts or facts["container"]["metadata"]:
        inspect_files.print_container(out, facts["container"])
    tensors = _tensor_table(facts) if all_tensors else _group_table(facts)
    for table in [_config_table(facts), tensors] if "config" in facts else [tensors]:
        out.print()
        out.print(table)
    if "config" in facts:
        _print_model(out, facts)
    else:
        inspect_files.print_reason(out, facts)


def _print_model(out: Console, facts: dict[str, Any]) -> None:
    out.print()
    out.print(_part_table(facts))
    out.print(f"\n{_use(facts)}\n")
    out.print(_memory_table(facts))
    if facts["checked"]:
        out.print("\nEvery weight was read: all are finite.")


def _listing(model: str, failure: gptoss.Error) -> dict[str, Any]:
    """What the files say of a model that does not open; its own failure, if they say nothing."""
    try:
        checkpoint = gptoss.Checkpoint(model)
    except gptoss.Error:
        raise failure from None
    return inspect_files.listing(checkpoint, str(failure))


def run(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help=options.MODEL_HELP, show_default=False),
    ] = "demo",
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    context: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Count memory at N positions; default: the model's limit."
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Read every weight and look for NaN and infinity.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Show what a checkpoint holds: config, tensors, sizes, memory at a context length; of GGUF
    files the metadata; of models that gptoss does not run, what the files say."""
    try:
        handle = gptoss.Model(model)
    except (gptoss.FormatError, gptoss.UnsupportedError) as failure:
        if check:
            raise
        facts = _listing(model, failure)
    else:
        with handle:
            facts = describe(handle, context or handle.config.max_positions)
            if check:
                with console.progress_bar("checking", unit="bytes") as progress:
                    handle.verify(progress=progress)
            facts["checked"] = check
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        _print(console.console(), facts, tensors)
