"""Writing models so that they appear complete or not at all.

Everything is written under a temporary name in the directory of the output and renamed at the end;
an error or Ctrl-C removes it. Nothing is overwritten unless asked, the input never.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

from gptoss.errors import ArgumentError, FileError

# What a model directory of ours may consist of, and so what force may replace.
TOKENIZER_FILES = frozenset(
    (
        *("generation_config.json", "chat_template.jinja", "tokenizer.json"),
        *("tokenizer_config.json", "special_tokens_map.json"),
    )
)
INDEX_FILE = "model.safetensors.index.json"
_MODEL_FILE = re.compile(r"config\.json|model(-[0-9]{5,}-of-[0-9]{5,})?\.safetensors")


def _is_of_a_model(name: str) -> bool:
    return name in TOKENIZER_FILES or name == INDEX_FILE or bool(_MODEL_FILE.fullmatch(name))


def shard_names(count: int) -> list[str]:
    """What count files of weights are called."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]


_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *(B|KB|MB|GB|TB|KIB|MIB|GIB|TIB)?", re.ASCII)
_UNITS = {"B": 1} | {
    f"{letter}{end}": base**power
    for power, letter in enumerate("KMGT", 1)
    for base, end in ((1000, "B"), (1024, "IB"))
}


def parse_size(size: int | str) -> int:
    """Bytes, of a number of them or a text such as "5GB" (10^9) or "500 MiB" (2^20). ArgumentError
    for anything else, and for less than a byte."""
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    match = _SIZE.fullmatch(size.strip().upper()) if isinstance(size, str) else None
    if match is not None:
        num_bytes = int(Fraction(match[1]) * _UNITS[match[2] or "B"])
        if num_bytes > 0:
            return num_bytes
    raise ArgumentError(f"a size is a number of bytes or a text such as '5GB', not {size!r}")


def check_output(
    output: Path, num_bytes: int, inputs: Iterable[Path], *, force: bool, is_directory: bool
) -> None:
    """ArgumentError if the output is one of the inputs; FileError if it exists, unless forced, or
    lies in no directory, or if there is no room for num_bytes."""
    _refuse_inputs(output, inputs)
    parent = output.absolute().parent
    if not parent.is_dir():
        raise FileError(
            f"there is no directory {str(parent)!r} for {output.name}: make it first",
            file=str(parent),
        )
    if os.path.lexists(output):
        if not force:
            raise FileError(
                f"{output} exists already; --force (force=True) replaces it", file=str(output)
            )
        _check_replaceable(output, is_directory)
    free = shutil.disk_usage(parent).free
    if free < num_bytes:
        raise FileError(
            f"{output} needs {num_bytes / 1e9:.2f} GB, but {parent} has {free / 1e9:.2f} GB free: "
            "make room, or choose another directory",
            file=str(output),
            expected=f"{num_bytes} bytes",
            found=f"{free} bytes",
        )


def _refuse_inputs(output: Path, inputs: Iterable[Path]) -> None:
    for path in inputs:
        if output.exists() and (
            os.path.samefile(output, path) or output.resolve() in path.resolve().parents
        ):
            raise ArgumentError(f"the output {str(output)!r} is the input or holds it")


def _check_replaceable(output: Path, is_directory: bool) -> None:
    if not is_directory:
        if output.is_dir():
            raise FileError(f"{output} is a directory, not a file", file=str(output))
        return
    if not output.is_dir() or output.is_symlink():
        raise FileError(f"{output} is not a directory", file=str(output))
    for entry in output.iterdir():
        if not _is_of_a_model(entry.name):
            raise FileError(
                f"{output} holds {entry.name!r}, which is not of a model that gptoss wrote: it is "
                "not replaced; choose another directory",
                file=str(output),
            )


def _partial(output: Path) -> Path:
    return output.absolute().with_name(f".{output.name}.{secrets.token_hex(4)}.partial")


@contextmanager
def complete_file(output: Path) -> Iterator[BinaryIO]:
    """A new file that has its name when the block ends."""
    partial = _partial(output)
    try:
        with open(partial, "xb") as file:
            yield file
        os.replace(partial, output)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def complete_directory(output: Path) -> Iterator[Path]:
    """A new directory that has its name when the block ends; what had it, which check_output has
    seen, is gone then."""
    partial = _partial(output)
    try:
        partial.mkdir()
        yield partial
        if output.exists():
            old = _partial(output)
            os.rename(output, old)
            os.rename(partial, output)
            shutil.rmtree(old)
        else:
            os.rename(partial, output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
