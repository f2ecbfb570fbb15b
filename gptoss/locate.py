"""From what people type to the files of a model. Nothing is downloaded."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from gptoss.errors import ArgumentError, FileError

DEMO = Path(__file__).parent / "demo"

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def locate(name: str | os.PathLike[str]) -> Path:
    """The path of a model: an existing path as it is; "demo", the model that comes with gptoss; or
    a name such as "openai/gpt-oss-20b" in the local Hugging Face cache.

    Raises FileError that says where it looked.
    """
    if not isinstance(name, str | os.PathLike):
        raise ArgumentError(f"a model is opened by its path or name, not by {name!r}")
    path = Path(os.fspath(name)).expanduser()
    if path.exists():
        return path
    text = os.fspath(name)
    if text == "demo":
        return DEMO
    if not isinstance(name, str) or not _REPOSITORY.fullmatch(text):
        raise _not_found(path)
    cache = hugging_face_cache()
    snapshot = _snapshot(cache, text)
    if snapshot is None:
        raise _not_cached(text, cache)
    original = snapshot / "original"
    has_weights = any(snapshot.glob("*.safetensors*"))
    return original if not has_weights and any(original.glob("*.safetensors*")) else snapshot


def hugging_face_cache() -> Path:
    """The directory of the Hugging Face hub's cache, by its own environment variables."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    xdg = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(xdg).expanduser() / "huggingface" / "hub"


def _snapshot(cache: Path, repository: str) -> Path | None:
    """The snapshot that refs/main names, else the newest one, of a repository in the cache."""
    directory = cache / f"models--{repository.replace('/', '--')}"
    snapshots = directory / "snapshots"
    main = directory / "refs" / "main"
    if main.is_file():
        snapshot = snapshots / main.read_text().strip()
        if snapshot.is_dir():
            return snapshot
    found = [entry for entry in snapshots.glob("*") if entry.is_dir()]
    return max(found, key=lambda entry: entry.stat().st_mtime, default=None)


def _siblings(path: Path) -> list[str]:
    """What lies in the directory of a path that does not exist, spelled as the path is."""
    parent = path.parent
    return [str(parent / entry.name) for entry in parent.iterdir()] if parent.is_dir() else []


def _not_found(path: Path) -> FileError:
    close = difflib.get_close_matches(str(path), [*_siblings(path), "demo"], n=1)
    if close:
        hint = f"did you mean {close[0]!r}?"
    elif not path.parent.is_dir():
        hint = f"the directory {str(path.parent)!r} does not exist either"
    else:
        hint = "give the path of a model, 'demo', or a name such as 'openai/gpt-oss-20b'"
    return FileError(f"there is no model at {str(path)!r}: {hint}", file=str(path))


def _not_cached(name: str, cache: Path) -> FileError:
    cached = [
        entry.name.removeprefix("models--").replace("--", "/", 1)
        for entry in cache.glob("models--*")
    ]
    close = difflib.get_close_matches(name, [*cached, *_siblings(Path(name))], n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"download it by `hf download {name}`"
    return FileError(
        f"there is no model {name!r}, neither as a path nor in the cache {str(cache)!r}: {hint}",
        file=name,
    )
