"""What the tests of malformed checkpoints share: a sound model, and how lies must be refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import Spec, Tensors, hf_config, random_tensors, write_safetensors

import gptoss

SPEC = Spec(num_layers=2, vocab_size=64)
SOUND = random_tensors(SPEC, np.random.default_rng(0))


def write(
    directory: Path, config: Any = None, tensors: Tensors | None = None, header: Any = None
) -> Path:
    """A model whose config is a dict or raw bytes, whose header may lie about the tensors."""
    raw = config if isinstance(config, bytes) else json.dumps(config or hf_config(SPEC)).encode()
    (directory / "config.json").write_bytes(raw)
    write_safetensors(directory / "model.safetensors", tensors or SOUND, header)
    return directory


def refused(
    path: Path,
    *,
    file: str | Path = "model.safetensors",
    tensor: str | None = None,
    kind: type[gptoss.Error] | tuple[type[gptoss.Error], ...] = gptoss.FormatError,
) -> gptoss.Error:
    """Opens the model, mapped and read. The exception must name file and tensor; returns it."""
    with pytest.raises(kind) as caught:
        gptoss.Model(path)
    with pytest.raises(kind) as again:
        gptoss.Model(path, mmap=False)
    error: gptoss.Error = caught.value
    assert str(again.value) == str(error)
    assert error.file is not None and Path(error.file).name == Path(file).name, str(error)
    assert Path(error.file).name in str(error)
    assert error.tensor == tensor, str(error)
    assert "\n" not in str(error)
    return error
