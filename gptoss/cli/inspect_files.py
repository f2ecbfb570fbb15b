"""What `gptoss inspect` shows of the files themselves: container, parts, metadata, and the tensors
of models that the engine does not run."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gptoss.checkpoint import Checkpoint, ListedTensor
from gptoss.cli import console
from gptoss.metadata import Metadata

# Elements of arrays and characters of texts that are shown.
_SHOWN_ELEMENTS, _SHOWN_CHARACTERS = 8, 72


def by_layer(name: str) -> list[int | str]:
    """Sort key that puts layer 10 after layer 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _plain(value: Any, kind: str) -> Any:
    """A JSON type. Floats of 32 bits have the digits they were written with; numbers that JSON has
    no words for become texts."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return float(str(np.float32(value))) if kind == "f32" else value


def _metadata(metadata: Metadata) -> list[dict[str, Any]]:
    """Each value; of an array its length and first elements."""
    entries = []
    for key in metadata:
        info, value = metadata.info(key), metadata[key]
        entry: dict[str, Any] = {"key": key, "type": info.type}
        if info.length is None:
            entry["value"] = _plain(value, info.type)
        else:
            first = value[:_SHOWN_ELEMENTS]  # type: ignore[index]
            items = first.tolist() if isinstance(first, np.ndarray) else first
            entry |= {"length": info.length, "first": [_plain(item, info.type) for item in items]}
        entries.append(entry)
    return entries


def container(checkpoint: Checkpoint) -> dict[str, Any]:
    """The files and what a GGUF file says, as JSON types."""
    version = checkpoint.gguf_version
    return {
        "format": "safetensors" if version is None else f"GGUF version {version}",
        "files": [{"file": str(file), "bytes": size} for file, size in checkpoint.files],
        "metadata": _metadata(checkpoint.metadata),
    }


def _tensor(tensor: ListedTensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "dtype": tensor.format,
        "shape": list(tensor.shape),
        "bytes": tensor.num_bytes,
        "file": str(tensor.file),
        "offset": tensor.file_offset,
    }


def listing(checkpoint: Checkpoint, reason: str) -> dict[str, Any]:
    """All that is known of a model that the engine does not run, for this reason."""
    tensors = sorted(checkpoint.tensors.values(), key=lambda tensor: by_layer(tensor.name))
    return {
        "path": str(checkpoint.path),
        "reason": reason,
        "container": container(checkpoint),
        "parameters": sum(math.prod(tensor.shape) for tensor in tensors),
        "tensors": [_tensor(tensor) for tensor in tensors],
    }


# ---- printing ----


def _short(text: str) -> str:
    """The beginning of a text, on one line."""
    cut = text[: _SHOWN_CHARACTERS + 1]
    line = console.visible(cut.replace("\n", "\u23ce").replace("\t", " "))
    line = line.encode("utf-8", "replace").decode()
    if len(text) <= _SHOWN_CHARACTERS:
        return line
    return f"{line[:-1]}\u2026 ({len(text):,} characters)"


def _value(entry: dict[str, Any]) -> str:
    if "value" in entry:
        value = entry["value"]
        return _short(value) if isinstance(value, str) else str(value)
    items = [_short(item) if isinstance(item, str) else str(item) for item in entry["first"]]
    text = ", ".join(items)
    if len(text) > _SHOWN_CHARACTERS:
        return f"[{text[:_SHOWN_CHARACTERS]}\u2026]"
    return f"[{text}, \u2026]" if entry["length"] > len(items) else f"[{text}]"


def _metadata_table(entries: list[dict[str, Any]]) -> Table:
    rows = console.table("metadata", "type", "value")
    for entry in entries:
        kind = entry["type"] + (f"[{entry['length']:,}]" if "length" in entry else "")
        rows.add_row(console.visible(entry["key"]), kind, _value(entry))
    return rows


def print_container(out: Console, facts: dict[str, Any]) -> None:
    """A line for each file, and the metadata."""
    files = facts["files"]
    rows = console.table(facts["format"], "size", right=(1,))
    for file in files:
        rows.add_row(console.visible(Path(file["file"]).name), console.format_bytes(file["bytes"]))
    if len(files) > 1:
        total = sum(file["bytes"] for file in files)
        rows.add_row(f"{len(files)} parts", console.format_bytes(total), style="bold")
    out.print()
    out.print(rows)
    if facts["metadata"]:
        out.print()
        out.print(_metadata_table(facts["metadata"]))


def print_reason(out: Console, facts: dict[str, Any]) -> None:
    """What there is in all, and why no more is said."""
    count = console.format_count(facts["parameters"])
    out.print(f"\n{len(facts['tensors']):,} tensors, {count} parameters.")
    out.print(Text(console.visible(f"Not run by gptoss: {facts['reason']}"), "yellow"))
