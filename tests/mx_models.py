"""Random tiny models with codes and scales in two planes, NAME_blocks and NAME_scales.

Codes are rounded by ml_dtypes and packed by NumPy, so that nothing is shared with the engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from models import Array, Tensors, write_safetensors

ELEMENTS: Mapping[str, tuple[int, Any]] = {
    "MXFP4": (4, ml_dtypes.float4_e2m1fn),
    "MXFP6_E2M3": (6, ml_dtypes.float6_e2m3fn),
    "MXFP6_E3M2": (6, ml_dtypes.float6_e3m2fn),
    "MXFP8_E4M3": (8, ml_dtypes.float8_e4m3fn),
    "MXFP8_E5M2": (8, ml_dtypes.float8_e5m2),
}
FORMATS = tuple(ELEMENTS)
UNSCALED = FORMATS[1:]  # whose weights count as float32


def to_planes(values: Array, format: str) -> tuple[Array, Array, Array]:
    """Blocks (..., n / 32, 4 * bits), scales (..., n / 32), and what they decode to."""
    bits, element = ELEMENTS[format]
    largest = float(ml_dtypes.finfo(element).max)
    groups = values.astype(np.float64).reshape(*values.shape[:-1], -1, 32)
    exponents = np.ceil(np.log2(np.abs(groups).max(axis=-1, keepdims=True) / largest))
    numbers = (groups / np.exp2(exponents)).astype(element)
    decoded = (numbers.astype(np.float64) * np.exp2(exponents)).reshape(values.shape)
    codes = np.unpackbits(numbers.view(np.uint8)[..., None], axis=-1, bitorder="little")
    string = codes[..., :bits].reshape(*groups.shape[:-1], 32 * bits)
    scales = (exponents[..., 0] + 127).astype(np.uint8)
    return np.packbits(string, axis=-1, bitorder="little"), scales, decoded.astype(np.float32)


def is_matrix(name: str, tensor: Array) -> bool:
    return tensor.ndim >= 2 and not name.endswith("bias")


def is_stored_transposed(name: str) -> bool:
    """(..., inputs, outputs): gpt2's Conv1D and experts as one tensor."""
    return ".c_" in name or name.endswith(("experts.gate_up_proj", "experts.down_proj"))


def split(tensors: Tensors, formats: Mapping[str, str]) -> tuple[Tensors, Tensors]:
    """The tensors with those that formats names in two planes, and with what these decode to."""
    planes, decoded = Tensors(), Tensors()
    for name, tensor in tensors.items():
        if name not in formats:
            planes[name] = decoded[name] = tensor
            continue
        turn = is_stored_transposed(name)
        rows = tensor.swapaxes(-1, -2) if turn else tensor
        blocks, scales, values = to_planes(rows, formats[name])
        planes[f"{name}_blocks"], planes[f"{name}_scales"] = blocks, scales
        decoded[name] = np.ascontiguousarray(values.swapaxes(-1, -2) if turn else values)
    return planes, decoded


def quantization(formats: Mapping[str, str]) -> dict[str, Any]:
    """For config.json."""
    usual = next(iter(formats.values()))
    others = {name: format for name, format in formats.items() if format != usual}
    return {"quant_method": "mx", "format": usual, "formats": others}


def write(directory: Path, config: dict[str, Any], tensors: Tensors) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    write_safetensors(directory / "model.safetensors", tensors)
    return directory
