"""The weights of a checkpoint under llama.cpp's names, whatever its layout, piece by piece.

What Hugging Face and the original release keep together (query, key and value; gate and up) is
apart here, each a view of the mapped file, so that a weight costs nothing until a piece of it is
read.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from gptoss import _core, blocks, dense, mx, rope
from gptoss.checkpoint import Checkpoint
from gptoss.errors import FormatError, NumericError, UnsupportedError, require_integer
from gptoss.model import BLOCKS, DTYPES, Config, Model

Array = npt.NDArray[Any]
T = TypeVar("T")

_PIECE_ELEMENTS = 1 << 20

# What llama.cpp demands in F32, by the ends of names.
F32_ENDS = (
    *(".bias", "_norm.weight", "attn_sinks.weight", "ffn_gate_inp.weight"),
    *("position_embd.weight", dense.DIVISORS),
)


@dataclass(frozen=True)
class Weight:
    """A weight, or rows of one.

    name: llama.cpp's. format: "F32", "BF16", "Q8_0", "MXFP4", ... source: the tensor it is, or is a
    part of, in its file. data: (..., width) of the plain formats, (..., blocks, bytes of a block)
    of the others; in two planes (gptoss.model.PLANES) data are the codes, and scales (..., blocks).
    order: of a matrix or vector, the row of data that each row is; None if they are in order.
    target: the format that it is to be stored in, where that is decided.
    """

    name: str
    format: str
    source: str
    data: Array
    scales: Array | None = None
    order: Array | None = None
    target: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """In elements, the slowest axis first."""
        if self.scales is not None:
            return (*self.data.shape[:-2], self.data.shape[-2] * mx.BLOCK)
        if self.format not in BLOCKS:
            return self.data.shape
        return (*self.data.shape[:-2], self.data.shape[-2] * BLOCKS[self.format][0])

    @property
    def num_bytes(self) -> int:
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def pieces(self) -> Iterator[Weight]:
        """The weight in order, rows of its last axis but one, bounded in size; a vector as one."""
        shape = self.shape
        if len(shape) < 2:
            yield self._part((slice(None),))
            return
        rows = max(1, _PIECE_ELEMENTS // max(1, shape[-1]))
        for lead in np.ndindex(shape[:-2]):
            for first in range(0, shape[-2], rows):
                yield self._part((*lead, slice(first, first + rows)))

    def _part(self, at: tuple[int | slice, ...]) -> Weight:
        index = at if self.order is None else (self.order[at],)
        scales = None if self.scales is None else self.scales[index]
        return replace(self, data=self.data[index], scales=scales, order=None)

    def _in_order(self) -> Weight:
        return self if self.order is None else self._part((slice(None),))

    def reordered(self, order: Array | None) -> Weight:
        """The weight of which each row is the row of this one that order says."""
        if order is None or self.order is None:
            return replace(self, order=self.order if order is None else order)
        return replace(self, order=self.order[order])

    def floats(self) -> npt.NDArray[np.float32]:
        """Decoded, of its shape."""
        weight = self._in_order()
        if weight.scales is None:
            return blocks.decode(weight.data, self.format)
        element = mx.ELEMENTS[self.format]
        return mx.decode(mx.unpack(weight.data, element), weight.scales, element)

    def blocks(self) -> Array:
        """As GGUF stores it, which has no MXFP6 and no MXFP8."""
        weight = self._in_order()
        return (
            weight.data if weight.scales is None else blocks.join_mxfp4(weight.data, weight.scales)
        )

    def planes(self, format: str) -> tuple[Array, Array]:
        """In a format of two planes: codes (..., blocks, bytes) and scales (..., blocks); unchanged
        where that is its own. NumericError names the weight."""
        if self.format == format:
            weight = self._in_order()
            if weight.scales is None:
                return blocks.split_mxfp4(weight.data)
            return weight.data, weight.scales
        codes, scales = mx.encode(self.floats(), mx.ELEMENTS[format], scale="search")
        if (scales == 0xFF).any():
            raise NumericError(
                f"{self.source}: {format} cannot hold values that are not finite",
                tensor=self.source,
            )
        return mx.pack(codes, mx.ELEMENTS[format]), scales

    def encoded(self, format: str) -> Array:
        """In a format of GGUF; unchanged where that is its own. NumericError names the weight."""
        if format == self.format:
            return self.blocks()
        try:
            return blocks.encode(self.floats(), format)
        except NumericError as error:
            raise NumericError(f"{self.source}: {error}", tensor=self.source) from None


def in_order(jobs: Iterable[Callable[[], T]], threads: int | None = None) -> Iterator[T]:
    """The results of jobs, in their order, computed by several threads a little ahead."""
    count = _core.usable_cpus() if threads is None else require_integer("threads", threads, 1)
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(count) as pool:
        try:
            for job in jobs:
                pending.append(pool.submit(job))
                if len(pending) > 2 * count:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


# ---- checkpoints ----


class Source(Checkpoint):
    """The files of a model and what they weigh."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self.is_gguf = self.gguf_version is not None
        self._maps = {file: np.memmap(file, np.uint8, "r") for file, _ in self.files}

    @property
    def inputs(self) -> list[Path]:
        """What must not be written to."""
        return [self.path, *(file for file, _ in self.files)]

    def weights(self) -> list[Weight]:
        """The weights, of GGUF in the order of the file, in other layouts in the order that
        llama.cpp's converter writes them. FormatError, UnsupportedError."""
        if self.is_gguf:
            files = [file for file, _ in self.files]
            placed = sorted(
                self.tensors.values(), key=lambda t: (files.index(t.file), t.file_offset)
            )
            return [self._tensor(tensor.name, tensor.name) for tensor in placed]
        with Model(self.path, threads=1) as model:
            config = model.config
        if config.architecture == "gpt_oss":
            return list(_GptOss(self, config).weights())
        return list(_dense_weights(self, config))

    @cached_property
    def _plane_formats(self) -> dict[str, str]:
        """What config.json says that codes are, by the names of their tensors."""
        with Model(self.path, threads=1) as model:
            infos = [model.tensor_info(name) for name in model.tensors]
        return {info.name: info.weight_format for info in infos}

    def _planes(self, name: str, codes: str, scales: str) -> Weight:
        """Two tensors of the file as the weight of a name."""
        data, exponents = (self._tensor(name, tensor).data for tensor in (codes, scales))
        return Weight(name, self._plane_formats[codes], codes, data, exponents)

    def _has(self, source: str) -> bool:
        """Whether there is a tensor, or one in two planes."""
        return source in self.tensors or f"{source}_blocks" in self.tensors

    def _tensor(self, name: str, source: str) -> Weight:
        """A tensor of the file, or one in two planes, as the weight of a name."""
        if source not in self.tensors and f"{source}_blocks" in self.tensors:
            return self._planes(name, f"{source}_blocks", f"{source}_scales")
        if source not in self.tensors:
            raise FormatError(
                f"{self.path}: there is no tensor {source}",
                file=str(self.path),
                tensor=source,
            )
        info = self.tensors[source]
        if info.format not in DTYPES and info.format not in BLOCKS:
            raise UnsupportedError(
                f"{info.file}: {source} is stored as {info.format}, which is not read",
                file=str(info.file),
                tensor=source,
            )
        raw = self._maps[info.file][info.file_offset :][: info.num_bytes]
        if info.format in BLOCKS:
            elements, block_bytes = BLOCKS[info.format]
            *rows, width = info.shape
            data = raw.reshape(*rows, width // elements, block_bytes)
        else:
            # The file may not align it.
            data = np.ndarray(info.shape, DTYPES[info.format], raw)
        return Weight(name, info.format, source, data)


# llama.cpp's name, Hugging Face's, the original one.
_GLOBAL = (
    ("token_embd.weight", "model.embed_tokens.weight", "embedding.weight"),
    ("output_norm.weight", "model.norm.weight", "norm.scale"),
    ("output.weight", "lm_head.weight", "unembedding.weight"),
)
_LAYER = (
    ("attn_norm.weight", "input_layernorm.weight", "attn.norm.scale"),
    ("attn_q.weight", "self_attn.q_proj.weight", "attn.qkv.weight"),
    ("attn_q.bias", "self_attn.q_proj.bias", "attn.qkv.bias"),
    ("attn_k.weight", "self_attn.k_proj.weight", "attn.qkv.weight"),
    ("attn_k.bias", "self_attn.k_proj.bias", "attn.qkv.bias"),
    ("attn_v.weight", "self_attn.v_proj.weight", "attn.qkv.weight"),
    ("attn_v.bias", "self_attn.v_proj.bias", "attn.qkv.bias"),
    ("attn_output.weight", "self_attn.o_proj.weight", "attn.out.weight"),
    ("attn_output.bias", "self_attn.o_proj.bias", "attn.out.bias"),
    ("attn_sinks.weight", "self_attn.sinks", "attn.sinks"),
    ("post_attention_norm.weight", "post_attention_layernorm.weight", "mlp.norm.scale"),
    ("ffn_gate_inp.weight", "mlp.router.weight", "mlp.gate.weight"),
    ("ffn_gate_inp.bias", "mlp.router.bias", "mlp.gate.bias"),
)
_EXPERTS = (
    ("ffn_gate_exps", "gate_up_proj", "mlp1", slice(0, None, 2)),
    ("ffn_up_exps", "gate_up_proj", "mlp1", slice(1, None, 2)),
    ("ffn_down_exps", "down_proj", "mlp2", slice(None)),
)


def hugging_face_names(num_layers: int) -> dict[str, str]:
    """llama.cpp's name -> Hugging Face's, of all weights of gpt-oss but the experts'."""
    names = {gguf: hf for gguf, hf, _ in _GLOBAL}
    for layer in range(num_layers):
        for gguf, hf, _ in _LAYER:
            names[f"blk.{layer}.{gguf}"] = f"model.layers.{layer}.{hf}"
    return names


class _GptOss:
    """gpt-oss in the Hugging Face or the original layout."""

    def __init__(self, files: Source, config: Config) -> None:
        self._files, self._config = files, config
        self._is_original = "embedding.weight" in files.tensors

    def weights(self) -> Iterator[Weight]:
        first, *last = _GLOBAL
        yield self._global(*first)
        for layer in range(self._config.num_layers):
            prefix = f"block.{layer}." if self._is_original else f"model.layers.{layer}."
            for name, hf, original in _LAYER:
                weight = self._files._tensor(
                    f"blk.{layer}.{name}", prefix + (original if self._is_original else hf)
                )
                yield self._part(weight, name) if ".qkv." in weight.source else weight
            for expert in _EXPERTS:
                yield from self._experts(f"blk.{layer}.", prefix, *expert)
        for names in last:
            yield self._global(*names)

    def _global(self, name: str, hf: str, original: str) -> Weight:
        source = original if self._is_original else hf
        if name == "output.weight" and not self._files._has(source):  # tied
            source = "embedding.weight" if self._is_original else "model.embed_tokens.weight"
        return self._files._tensor(name, source)

    def _part(self, weight: Weight, name: str) -> Weight:
        """The rows of query, key or value."""
        config = self._config
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        first, count = {"q": (0, queries), "k": (queries, keys), "v": (queries + keys, keys)}[
            name.removeprefix("attn_")[0]
        ]
        return replace(weight, data=weight.data[first : first + count])

    def _experts(
        self, to: str, prefix: str, name: str, hf: str, original: str, part: slice
    ) -> Iterator[Weight]:
        take, source = self._files._tensor, f"{prefix}mlp.experts.{hf}"
        planes, bias = (f"{source}_blocks", f"{source}_scales"), f"{source}_bias"
        if self._is_original:
            source = f"{prefix}mlp.{original}_weight"
            planes, bias = (f"{source}.blocks", f"{source}.scales"), f"{prefix}mlp.{original}_bias"
        name = to + name
        if planes[0] in self._files.tensors:
            weight = self._files._planes(f"{name}.weight", *planes)
            scales = None if weight.scales is None else weight.scales[:, part]
            yield replace(weight, data=weight.data[:, part], scales=scales)
        else:
            weight = take(f"{name}.weight", source)
            # Hugging Face stores (experts, inputs, outputs).
            data = weight.data if self._is_original else weight.data.swapaxes(1, 2)
            yield replace(weight, data=data[:, part])
        weight = take(f"{name}.bias", bias)
        yield replace(weight, data=weight.data[:, part])


def _dense_weights(files: Source, config: Config) -> Iterator[Weight]:
    """llama or gpt2 in the Hugging Face layout."""
    for name, source in dense.hugging_face_names(config).items():
        if files._has("wte.weight"):  # as openai released it
            source = source.removeprefix("transformer.")
        if name == "output.weight" and config.tied_embeddings and not files._has(source):
            continue
        weight = files._tensor(name, source)
        if dense.is_transposed(source) and weight.scales is None:
            weight = replace(weight, data=weight.data.T)
        yield weight.reordered(dense.row_order(config, name, to_gguf=True))
    if config.rope_scaling == "llama3":
        divisors = rope.llama3_divisors(config, rope.settings(config) or {})
        yield Weight(dense.DIVISORS, "F32", dense.DIVISORS, divisors)


def elements(weights: Iterable[Weight]) -> int:
    return sum(math.prod(weight.shape) for weight in weights)
