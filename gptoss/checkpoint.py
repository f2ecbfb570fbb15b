"""The files of a model without the model: what their headers say, whatever the architecture."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from gptoss import _core
from gptoss.locate import locate
from gptoss.metadata import Metadata


@dataclass(frozen=True)
class ListedTensor:
    """format: as the file calls it, "BF16", "Q4_K". shape: in elements, slowest axis first.
    num_bytes: None of a format whose size is not known. file_offset: of the first byte, in file."""

    name: str
    format: str
    shape: tuple[int, ...]
    num_bytes: int | None
    file: Path
    file_offset: int


class Checkpoint:
    """The headers of a model's files: GGUF or safetensors, of any architecture and with tensors of
    any format. Nothing else is read, and no config.json is needed.

    Args:
        path: as for Model.

    Raises FileError, FormatError.

    Attributes:
        path: of the directory or file.
        gguf_version: 2 or 3, None of safetensors.
        files: the files with tensors and their sizes in bytes, parts of a split one in order.
        tensors: mapping of names, in their order, to ListedTensor.
        metadata: what a GGUF file says besides, see Metadata.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = locate(path)
        core = _core.Checkpoint(self.path)
        self.gguf_version = core.gguf_version or None
        self.files = tuple((Path(file), num_bytes) for file, num_bytes in core.files())
        self.metadata = Metadata(core)
        self.tensors: Mapping[str, ListedTensor] = MappingProxyType(
            {
                name: ListedTensor(name, form, shape, num_bytes, Path(file), file_offset)
                for name, form, shape, num_bytes, file, file_offset in core.tensors()
            }
        )

    def __repr__(self) -> str:
        kind = "safetensors" if self.gguf_version is None else f"GGUF version {self.gguf_version}"
        return f"<gptoss.Checkpoint {str(self.path)!r}: {kind}, {len(self.tensors)} tensors>"
