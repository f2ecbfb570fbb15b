"""Writing models so that they appear complete or not at all.

Everything is written under a temporary name in the directory of the output and renamed at the end;
an error or Ctrl-C removes it. Nothing is overwritten unless asked, the input never.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gptoss.errors import ArgumentError, FileError

# What a model directory of ours may consist of, and so what force may replace.
MODEL_FILES = frozenset(
    (
        *("config.json", "generation_config.json", "model.safetensors", "chat_template.jinja"),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    )
)


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
        if entry.name not in MODEL_FILES:
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
