"""Taps: the named activations that a Generator keeps of its forward passes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt

from gptoss import _core
from gptoss.errors import (
    ArgumentError,
    NotFoundError,
    OutOfMemoryError,
    did_you_mean,
    require_integer,
)

Array = npt.NDArray[Any]

DEFAULT_MAX_BYTES = 1 << 30
_VALUE_BYTES = 4  # taps are float32 or int32


class Taps(Mapping[str, Array]):
    """What was captured, by name: arrays (rows, ...) of the reader's own, one row a token.

    Attributes:
        first_position: the position of row 0.
    """

    def __init__(self, model: _core.Model, generator: _core.Generator) -> None:
        self._generator = generator
        self._available = {name: (i, shape) for i, (name, _, shape) in enumerate(model.taps())}
        self._chosen: dict[str, int] = {}
        self._chunks: dict[str, list[Array]] = {}
        self._row_bytes = 0
        self._num_rows = 0
        self._keep_all = False
        self._max_bytes = DEFAULT_MAX_BYTES
        self.first_position = 0

    @property
    def active(self) -> bool:
        return bool(self._chosen)

    def select(self, patterns: Sequence[str], keep: str, max_bytes: int) -> None:
        """What to capture from the next call on; forgets what was captured. See
        Generator.capture."""
        if keep not in ("last", "all"):
            raise ArgumentError(f"keep must be 'last' or 'all', not {keep!r}")
        max_bytes = require_integer("max_bytes", max_bytes, 0)
        chosen: dict[str, int] = {}
        row_bytes = 0
        for pattern in patterns:
            matches = [name for name in self._available if fnmatchcase(name, str(pattern))]
            if not matches:
                hint = did_you_mean(str(pattern), self._available)
                raise ArgumentError(f"no activation matches {pattern!r}{hint}")
            chosen |= {name: self._available[name][0] for name in matches}
        for name in chosen:
            row_bytes += _VALUE_BYTES * math.prod(self._available[name][1])
        mask = bytearray(len(self._available))
        for index in chosen.values():
            mask[index] = 1
        self._generator.capture(bytes(mask) if chosen else None)
        self._chosen, self._row_bytes = chosen, row_bytes
        self._keep_all, self._max_bytes = keep == "all", max_bytes
        self.clear()

    def clear(self) -> None:
        self._chunks = {}
        self._num_rows = 0
        self.first_position = 0

    def require_room(self, num_rows: int) -> None:
        """Refuses a call of num_rows rows whose activations would exceed max_bytes."""
        total = num_rows + (self._num_rows if self._keep_all else 0)
        num_bytes = total * self._row_bytes
        if num_bytes > self._max_bytes:
            raise OutOfMemoryError(
                f"{total} rows of the captured activations take {num_bytes} bytes, "
                f"max_bytes is {self._max_bytes}",
                expected=f"at most {self._max_bytes} bytes",
                found=f"{num_bytes} bytes",
            )

    def collect(self, first_position: int, num_rows: int) -> None:
        """Takes over what a call kept of its num_rows rows, the first at first_position."""
        if not self._keep_all:
            self.clear()
        if self._num_rows == 0:
            self.first_position = first_position
        for name, index in self._chosen.items():
            rows = self._generator.take_tap(index)
            if rows is not None:
                self._chunks.setdefault(name, []).append(np.asarray(rows)[:num_rows])
        self._num_rows += num_rows

    def rewind(self, position: int) -> None:
        """Forgets, of rows gathered over many calls, those at and after position. One call's rows
        stay as they are."""
        if not self._keep_all or position >= self.first_position + self._num_rows:
            return
        num_rows = max(0, position - self.first_position)
        self._chunks = {name: [self[name][:num_rows]] for name in self._chunks} if num_rows else {}
        self._num_rows = num_rows

    def __getitem__(self, name: str) -> Array:
        chunks = self._chunks.get(name)
        if chunks is None:
            if name in self._chosen:
                raise NotFoundError(
                    f"{name!r} is captured from the next call on: there is nothing of it yet"
                )
            if name in self._available:
                raise NotFoundError(
                    f"{name!r} is not captured: call capture({name!r}) before prefill or step"
                )
            raise NotFoundError(
                f"there is no activation {name!r}{did_you_mean(str(name), self._available)}"
            )
        if len(chunks) > 1:
            chunks[:] = [np.concatenate(chunks)]
        return chunks[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._chunks)

    def __len__(self) -> int:
        return len(self._chunks)

    def __repr__(self) -> str:
        shown = [f"{name} {self[name].shape}" for name in list(self)[:3]]
        return f"<{len(self)} taps: {', '.join(shown)}{', ...' if len(self) > 3 else ''}>"
