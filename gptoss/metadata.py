"""The metadata of a GGUF file as Python values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gptoss import _core
from gptoss.errors import NotFoundError, did_you_mean

Array = npt.NDArray[Any]
Value = str | int | float | bool | list[str] | Array

_DTYPES: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(code)
    for name, code in {
        **{"u8": "u1", "i8": "i1", "u16": "<u2", "i16": "<i2", "u32": "<u4", "i32": "<i4"},
        **{"u64": "<u8", "i64": "<i8", "f32": "<f4", "f64": "<f8", "bool": "?"},
    }.items()
}


class MetadataInfo(NamedTuple):
    """type: "u32", "f32", "str", ..., of an array that of its elements. length: of an array, else
    None. file_offset: of the value in the file, of a split one in its first part."""

    type: str
    length: int | None
    file_offset: int


class Metadata(Mapping[str, Value]):
    """Metadata by key, in the order of the keys.

    Numbers, booleans and texts are Python's own; arrays of numbers read-only NumPy arrays over the
    mapped file where it aligns them, else of their own; arrays of texts lists. Bytes of a text that
    are not UTF-8 become surrogates, as the error handler "surrogateescape" makes them. Empty for
    safetensors.

    Looking up a key that is not there raises NotFoundError (a KeyError).
    """

    def __init__(self, core: _core.Model | _core.Checkpoint) -> None:
        self._core = core
        self._entries = {
            key: (index, MetadataInfo(type_name, length, file_offset))
            for index, (key, type_name, length, file_offset) in enumerate(core.metadata())
        }

    def __getitem__(self, key: str) -> Value:
        index, info = self._entry(key)
        value = self._core.metadata_value(index)
        if isinstance(value, str | list):
            return value
        array: Array = np.asarray(value).view(_DTYPES[info.type])
        if info.length is None:
            number: int | float | bool = array[0].item()
            return number
        if not array.flags.aligned:
            array = array.copy()
            array.flags.writeable = False
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __repr__(self) -> str:
        return f"<metadata of {len(self)} keys>"

    def info(self, key: str) -> MetadataInfo:
        """Type, length and place of a value."""
        return self._entry(key)[1]

    def _entry(self, key: str) -> tuple[int, MetadataInfo]:
        try:
            return self._entries[key]
        except KeyError:
            hint = did_you_mean(str(key), self._entries)
            raise NotFoundError(f"there is no metadata {key!r}{hint}") from None
