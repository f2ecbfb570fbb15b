"""Where the parts of a model are: several devices, and limits to what it takes of their memory."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gptoss.errors import ArgumentError

Size = int | str

_UNITS = {
    unit: factor
    for power, letter in enumerate(("", "k", "m", "g", "t"))
    for unit, factor in ((f"{letter}b", 1000**power), (f"{letter}ib", 1024**power))
    if unit != "ib"
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Share:
    """What a device has of a model. str() is a line for people.

    device: "cpu", or the name of the GPU. holds: "the whole model", or what of it: "embedding,
    layers 0-5, attention of layers 6-11, unembedding". weight_bytes: of weights on the GPU; 0 of a
    CPU, which uses the files'. cache_bytes, activation_bytes: what was reserved there for keys and
    values and for activations when the weights were placed; 0 where nothing was to be placed.
    """

    device: str
    holds: str
    weight_bytes: int
    cache_bytes: int
    activation_bytes: int

    def __str__(self) -> str:
        return f"{self.device} ({self.holds})"


def read_size(text: Size) -> int:
    """Bytes: a number of them, or as "6GB" or "512 MiB" (1 GB is 10^9 bytes, 1 GiB 2^30)."""
    if isinstance(text, str):
        match = _SIZE.fullmatch(text)
        factor = _UNITS.get((match[2] or "b").lower()) if match else None
        size = round(float(match[1]) * factor) if match and factor else 0
    else:
        try:
            size = 0 if isinstance(text, bool) else operator.index(text)
        except TypeError:
            size = 0
    if not 0 < size < 2**63:
        raise ArgumentError(
            f"a size must be a number of bytes above 0, or text such as '6GB' or '512MiB', "
            f"not {text!r}",
            expected="6GB",
            found=str(text),
        )
    return size


def read_limits(gpu_memory: Size | Sequence[Size] | None) -> tuple[int, ...]:
    """gpu_memory of Model as bytes: one number for all GPUs, one for each, or none. Text may hold
    several, separated by commas."""
    if gpu_memory is None:
        return ()
    if isinstance(gpu_memory, str):
        gpu_memory = gpu_memory.split(",")
    if not isinstance(gpu_memory, list | tuple):
        return (read_size(gpu_memory),)  # type: ignore[arg-type]
    if not gpu_memory:
        raise ArgumentError("gpu_memory is empty: give one size, or one for each GPU")
    return tuple(read_size(each) for each in gpu_memory)


def read_devices(device: str | Iterable[str]) -> str:
    """device of Model as the engine takes it: names, separated by commas."""
    if isinstance(device, str):
        return device
    names = list(device) if isinstance(device, list | tuple) else []
    if not names or any(not isinstance(name, str) or "," in name for name in names):
        raise ArgumentError(
            f"device must be a str, or a list of them such as ['vulkan:0', 'vulkan:1'], "
            f"not {device!r}"
        )
    return ",".join(names)
