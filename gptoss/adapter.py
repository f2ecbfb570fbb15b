"""Low-rank adapters (LoRA) in the form that PEFT saves: what their files ask for, and what of it
the engine does."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gptoss.errors import ArgumentError, FileError, FormatError, UnsupportedError

_PREFIX = "base_model.model."
_MATRIX = re.compile(re.escape(_PREFIX) + r"(.+)\.lora_([AB])\.weight")
# The safetensors library's own bound.
_MAX_HEADER_BYTES = 100_000_000

# What an adapter may ask for that changes its mathematics: settings that mean "not so".
_MUST_BE: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (None, False),
    "use_qalora": (None, False),
    "use_bdlora": (None, False),
    "lora_bias": (None, False),
    "bias": (None, "none"),
    "modules_to_save": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None,),
}


# A file must not choose how long its patterns take: a repeated group, or many repetitions, may take
# for ever.
_REPEATS, _SLOW, _MAX_REPEATS = re.compile(r"[*+?{]"), re.compile(r"\)[*+?{]"), 2
_MAX_MODULE_LENGTH = 200
_MAX_FACTOR = 1e30


@dataclass(frozen=True)
class Adapter:
    """An adapter of an open model.

    Attributes:
        path: its directory.
        scale: what the caller multiplies it with.
        modules: the modules it changes, by their names in transformers, and the factor of each:
            scale * lora_alpha / r, or scale * lora_alpha / sqrt(r) with use_rslora.
    """

    path: Path
    scale: float
    modules: Mapping[str, float]

    @property
    def file(self) -> Path:
        return self.path / "adapter_model.safetensors"


AdapterLike = str | os.PathLike[str] | tuple[str | os.PathLike[str], float]


def read_adapters(adapters: Iterable[AdapterLike]) -> tuple[Adapter, ...]:
    """Reads directories, or pairs of a directory and a scale.

    Raises FileError, FormatError, UnsupportedError for what the engine does not do.
    """
    if isinstance(adapters, str | os.PathLike) or not isinstance(adapters, Iterable):
        raise ArgumentError(f"adapters must be a list of (directory, scale), not {adapters!r}")
    return tuple(_read(*_pair(adapter)) for adapter in adapters)


def _pair(adapter: AdapterLike) -> tuple[Path, float]:
    path, scale = adapter if isinstance(adapter, tuple) and len(adapter) == 2 else (adapter, 1.0)
    if not isinstance(path, str | os.PathLike):
        raise ArgumentError(f"an adapter is a directory, or (directory, scale), not {adapter!r}")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise ArgumentError(f"the scale of adapter {os.fspath(path)!r} is {scale!r}, not a number")
    return Path(path).expanduser(), float(scale)


def _read(path: Path, scale: float) -> Adapter:
    config_file, weights_file = path / "adapter_config.json", path / "adapter_model.safetensors"
    config = _read_config(config_file)
    ranks = _read_ranks(weights_file)
    alphas, expected_ranks = (
        _Pattern(config, "alpha_pattern", config_file),
        _Pattern(config, "rank_pattern", config_file),
    )
    rank = _number(config.get("r"), "r", config_file)
    alpha = _number(config.get("lora_alpha"), "lora_alpha", config_file)
    modules = {}
    for module, found in ranks.items():
        if found != (expected := expected_ranks.find(module, rank)):
            raise FormatError(
                f"{weights_file}: tensor {_PREFIX + module + '.lora_A.weight'!r}: expected rank "
                f"{expected:g}, as {config_file.name} says, found {found}",
                file=str(weights_file),
                tensor=f"{_PREFIX}{module}.lora_A.weight",
                expected=f"{expected:g}",
                found=str(found),
            )
        divisor = math.sqrt(found) if config.get("use_rslora") else found
        modules[module] = factor = scale * alphas.find(module, alpha) / divisor
        if not abs(factor) <= _MAX_FACTOR:
            raise ArgumentError(f"{path}: the factor of {module} is {factor:g}, beyond float32")
    return Adapter(path, scale, modules)


# ---- adapter_config.json ----


def _fail(file: Path, key: str, expected: str, found: object) -> NoReturn:
    text = json.dumps(found)[:80]
    raise FormatError(
        f"{file}: {key}: expected {expected}, found {text}",
        file=str(file),
        expected=expected,
        found=text,
    )


def _number(value: Any, key: str, file: Path) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value <= 0:
        _fail(file, key, "a number above 0", value)
    return float(value)


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise FileError(
            f"{file}: there is no adapter_config.json: give the directory that PEFT's "
            "save_pretrained wrote",
            file=str(file),
        ) from None
    except OSError as error:
        raise FileError(f"{file}: {error.strerror}", file=str(file), errno=error.errno) from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file}: not JSON ({error})", file=str(file)) from error
    if not isinstance(config, dict):
        _fail(file, "JSON", "an object", config)
    for key, allowed in _MUST_BE.items():
        value = config.get(key)
        if value not in allowed or (value is None and None not in allowed):
            text, wanted = json.dumps(value)[:80], json.dumps(allowed[-1])
            raise UnsupportedError(
                f"{file}: {key}: {text} is not supported, only {wanted}: merge the adapter into "
                "the model with PEFT instead",
                file=str(file),
                expected=wanted,
                found=text,
            )
    if not isinstance(config.get("use_rslora", False), bool | None):
        _fail(file, "use_rslora", "true or false", config["use_rslora"])
    return config


class _Pattern:
    """rank_pattern or alpha_pattern: regular expressions for the ends of modules' names, the first
    that fits counts."""

    def __init__(self, config: Mapping[str, Any], key: str, file: Path) -> None:
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict):
            _fail(file, key, "an object", patterns)
        self._values: list[tuple[re.Pattern[str], float]] = []
        for pattern, value in patterns.items():
            try:
                compiled = re.compile(rf"(.*\.)?({pattern})$")
            except (re.error, OverflowError, RecursionError):
                _fail(file, key, "regular expressions", pattern)
            if _SLOW.search(pattern) or len(_REPEATS.findall(pattern)) > _MAX_REPEATS:
                _fail(file, key, f"patterns with at most {_MAX_REPEATS} repetitions", pattern)
            self._values.append((compiled, _number(value, f"{key}.{pattern}", file)))

    def find(self, module: str, default: float) -> float:
        return next((value for regex, value in self._values if regex.match(module)), default)


# ---- adapter_model.safetensors ----


def _read_header(file: Path) -> dict[str, Any]:
    """The header as far as names and shapes need it; the engine checks it whole."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            text = stream.read(length) if length <= _MAX_HEADER_BYTES else b""
    except FileNotFoundError:
        raise FileError(
            f"{file}: there is no adapter_model.safetensors; an adapter_model.bin is not read: "
            "save it again with safe_serialization=True",
            file=str(file),
        ) from None
    except OSError as error:
        raise FileError(f"{file}: {error.strerror}", file=str(file), errno=error.errno) from error
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"{file}: no header of a safetensors file ({error})", file=str(file)
        ) from error
    if not isinstance(header, dict):
        _fail(file, "header", "an object", header)
    return header


def _read_ranks(file: Path) -> dict[str, int]:
    """The rank of each module that the file changes."""
    ranks: dict[str, int] = {}
    header = _read_header(file)
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        match = _MATRIX.fullmatch(name)
        if match is None:
            raise UnsupportedError(
                f"{file}: tensor {name!r} is not supported, only pairs "
                f"{_PREFIX}MODULE.lora_A.weight and .lora_B.weight",
                file=str(file),
                tensor=name,
                expected="lora_A.weight or lora_B.weight",
                found=name,
            )
        module, which = match.groups()
        if len(module) > _MAX_MODULE_LENGTH:
            _fail(file, "name of a module", f"at most {_MAX_MODULE_LENGTH} characters", module)
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if not isinstance(shape, list) or len(shape) != 2 or not isinstance(shape[0], int):
            _fail(file, f"tensor {name!r}: shape", "two sizes", shape)
        if which == "A":
            ranks[module] = shape[0]
        else:
            ranks.setdefault(module, shape[1])  # the engine misses lora_A
    if not ranks:
        raise FormatError(f"{file}: there are no tensors in the adapter", file=str(file))
    return ranks
