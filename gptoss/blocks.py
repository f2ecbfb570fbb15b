"""The storage formats of weights, as arrays: what model.tensors holds, to float32 and back.

    info = model.tensor_info("blk.0.attn_q.weight")
    values = gptoss.blocks.decode(model.tensors[info.name], info.format)
    packed = gptoss.blocks.encode(values, "Q4_K")

Formats are named as in GGUF files. Block formats (gptoss.model.BLOCKS: elements and bytes of a
block) are uint8 arrays (..., blocks, bytes of a block), blocks along the last axis of the values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gptoss import _core
from gptoss.errors import ArgumentError, NumericError, did_you_mean
from gptoss.model import BLOCKS, DTYPES, PLANES
from gptoss.write_gguf import pack_mxfp4

Array = npt.NDArray[Any]

PLAIN = ("F32", "F16", "BF16")
# What encode encodes in, most bits first.
ENCODED = (*PLAIN, "Q8_0", "Q6_K", "Q5_1", "Q5_K", "Q5_0", "Q4_1", "Q4_K", "Q4_0", "MXFP4")


def block_of(format: str) -> tuple[int, int]:
    """Elements and bytes of a block, its scale included; (1, bytes) of F32, F16 and BF16."""
    if format in PLAIN:
        return 1, DTYPES[format].itemsize
    return BLOCKS[format] if format in BLOCKS else (32, PLANES[format] + 1)


def encode(values: npt.ArrayLike, format: str) -> Array:
    """values, converted to float32, in a format: an array of that dtype for F32, F16 and BF16,
    which round to nearest even, else blocks.

    Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1 give the bytes of ggml's reference. MXFP4 has the scale of least
    squared error (gptoss.mx.encode, scale="search"). Q4_K, Q5_K and Q6_K search for the scales of
    least weighted squared error.

    Raises ArgumentError for an unknown format and for a last axis that is no multiple of the block;
    NumericError for NaN, infinities and values beyond what the format can hold.
    """
    if format not in ENCODED:
        hint = did_you_mean(format, ENCODED) or f"; the formats are {', '.join(ENCODED)}"
        raise ArgumentError(f"nothing can be encoded in {format!r}{hint}")
    numbers = np.ascontiguousarray(values, np.float32)
    elements, block_bytes = block_of(format)
    shape = np.shape(values)
    if not shape or shape[-1] % elements != 0:
        raise ArgumentError(
            f"{format} has blocks of {elements} along the last axis, but the shape is {shape}"
        )
    if format in PLAIN:
        out: Array = np.empty(shape, DTYPES[format])
    else:
        out = np.empty((*shape[:-1], shape[-1] // elements, block_bytes), np.uint8)
    bad = _core.encode_blocks(_engine_name(format), numbers, out.view(np.uint8))
    if bad >= 0:
        block = numbers.reshape(-1)[bad * elements : (bad + 1) * elements]
        extreme = float(block[np.argmax(np.abs(block))])
        at = tuple(int(i) for i in np.unravel_index(bad * elements, shape))
        what = "beyond its range" if np.isfinite(extreme) else "not finite"
        raise NumericError(
            f"{format} cannot hold the block at {at}: {extreme:.7g} is {what}", found=f"{extreme}"
        )
    return out


def decode(stored: npt.ArrayLike, format: str) -> npt.NDArray[np.float32]:
    """What an array of model.tensors holds, float32 (..., n).

    format: of its TensorInfo: F32, F16, BF16 or a block format of GGUF. Exact, but for the formats
    with minima, whose one addition is rounded. Raises ArgumentError.
    """
    array = np.ascontiguousarray(stored)
    if format in PLAIN:
        if array.dtype != DTYPES[format]:
            raise ArgumentError(f"{format} is stored as {DTYPES[format]}, not {array.dtype}")
        return array.astype(np.float32)
    if format not in BLOCKS:
        hint = did_you_mean(format, [*PLAIN, *BLOCKS])
        raise ArgumentError(f"{format!r} is no format of weights{hint}")
    elements, block_bytes = BLOCKS[format]
    if array.dtype != np.uint8 or array.ndim < 2 or array.shape[-1] != block_bytes:
        raise ArgumentError(
            f"{format} is stored as uint8 (..., blocks, {block_bytes}), not {array.dtype} "
            f"{array.shape}"
        )
    out = np.empty((*array.shape[:-2], array.shape[-2] * elements), np.float32)
    _core.decode_blocks(_engine_name(format), array, out)
    return out


def join_mxfp4(codes: Array, scales: Array) -> Array:
    """MXFP4 as Hugging Face stores it, codes (..., blocks, 16), two neighbours a byte, and scales
    (..., blocks), as GGUF does: (..., blocks, 17), the scale first, then elements j and j + 16 in
    byte j. uint8."""
    return pack_mxfp4(codes, scales)


def split_mxfp4(packed: Array) -> tuple[Array, Array]:
    """The way back from join_mxfp4: codes and scales. encode(values, "MXFP4") and this give what
    Hugging Face's layout stores."""
    even, odd = packed[..., 1::2], packed[..., 2::2]
    codes = np.empty((*packed.shape[:-1], 16), np.uint8)
    codes[..., :8] = (even & 15) | (odd << 4)
    codes[..., 8:] = (even >> 4) | (odd & 0xF0)
    return codes, packed[..., 0]


def _engine_name(format: str) -> str:
    return "MXFP4_GGUF" if format == "MXFP4" else format
