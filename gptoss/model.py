"""An open model: its configuration, its tensors in place, one expert decoded on demand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, Self

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gptoss import _core
from gptoss.adapter import Adapter, AdapterLike, read_adapters
from gptoss.errors import (
    ArgumentError,
    FormatError,
    NotFoundError,
    StateError,
    UnsupportedError,
    did_you_mean,
    refuse_unknown_options,
    require_integer,
)
from gptoss.locate import locate
from gptoss.metadata import Metadata
from gptoss.placement import Share, Size, read_devices, read_limits
from gptoss.profile import Profile
from gptoss.sampling import Sampling
from gptoss.tokenizer import Tokenizer

Array = npt.NDArray[Any]
Progress = Callable[[int, int], object]

DTYPES: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype(np.float64),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "BOOL": np.dtype(np.bool_),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}

# Elements and bytes of a block, by the formats' names in GGUF files.
BLOCKS: Mapping[str, tuple[int, int]] = {
    "Q8_0": (32, 34),
    "MXFP4": (32, 17),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}


# Bytes of the codes of a block of 32, of formats with codes and scales in tensors of their own,
# "X_blocks" and "X_scales", outside GGUF files.
PLANES: Mapping[str, int] = {
    "MXFP4": 16,
    "MXFP6_E2M3": 24,
    "MXFP6_E3M2": 24,
    "MXFP8_E4M3": 32,
    "MXFP8_E5M2": 32,
}


@dataclass(frozen=True)
class Config:
    """What config.json or the metadata of a GGUF file says, under one set of names. What a family
    has no use for is 0 or False: num_experts of "llama" and "gpt2", rope_theta of "gpt2".

    architecture: "gpt_oss", "llama" or "gpt2". sliding_window: keys a sliding layer sees, the
    current one included. layer_types: "sliding_attention" or "full_attention" for each layer.
    rope_scaling: "plain", "yarn", "linear" (all frequencies divided by rope_factor), "llama3" (low
    ones are), "divisors" (divided by the numbers in the tensor rope_freqs.weight) or "none"
    (positions are learned). rope_attention_factor multiplies cosine and sine. rope_neighbours:
    elements 2 i and 2 i + 1 of a head turn together, as GGUF files of llama store them, not i and
    i + head_dim / 2.
    """

    architecture: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_experts: int
    experts_per_token: int
    sliding_window: int
    max_positions: int
    attention_bias: bool
    mlp_bias: bool
    tied_embeddings: bool
    rms_norm_eps: float
    layer_norm_eps: float
    swiglu_limit: float
    swiglu_alpha: float
    rope_scaling: str
    rope_theta: float
    rope_factor: float
    rope_beta_fast: float
    rope_beta_slow: float
    rope_attention_factor: float
    rope_original_positions: int
    rope_truncate: bool
    rope_low_frequency_factor: float
    rope_high_frequency_factor: float
    rope_neighbours: bool
    layer_types: tuple[str, ...]


@dataclass(frozen=True)
class TensorInfo:
    """What a tensor is and where.

    dtype and shape: of its array. format: how the file stores it, "BF16", "U8", "Q4_K"; the block
    formats of GGUF files, "Q8_0", "MXFP4" and "Q4_0" to "Q6_K", are uint8 arrays (..., blocks,
    bytes of a block), each block 32 weights along the last axis, or 256 in the formats whose names
    end in K. file_offset: of the first byte, in file. weight_format: format, but of "X_blocks", the
    codes of weights whose scales are "X_scales", what config.json says they are: "MXFP4",
    "MXFP6_E2M3", "MXFP8_E4M3", ...
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    num_bytes: int
    file: Path
    file_offset: int
    format: str
    weight_format: str

    @property
    def element_shape(self) -> tuple[int, ...]:
        """The shape of what it holds: as shape, but with blocks counted in elements."""
        if self.format not in BLOCKS:
            return self.shape
        return (*self.shape[:-2], BLOCKS[self.format][0] * self.shape[-2])


class Model:
    """An open model. Immutable: threads and Generators may share it.

    Args:
        path: a directory (Hugging Face or original layout), a .safetensors or a .gguf file, "demo"
            for the model that comes with gptoss, or a name such as "openai/gpt-oss-20b" in the
            local Hugging Face cache. Nothing is downloaded.
        device: "cpu"; "vulkan", the first discrete GPU or else the first Vulkan device;
            "vulkan:1", by its number; "vulkan:radeon", by a part of its name (gptoss doctor lists
            them). The weights are copied to its memory. Results are the CPU's within a tolerance
            (docs/numerics.md), the same bits from run to run. ["vulkan:0", "vulkan:1"], or with
            commas between them, share the layers in proportion to their memory; with "cpu" as the
            last, what does not fit stays there.
        gpu_memory: the most that the model may take of a GPU's memory, caches of its Generators
            included: bytes, or text such as "6GB" or "512MiB"; of several GPUs a list with one for
            each, or one for all. What does not fit is computed on the CPU: the embedding, then
            experts, of the last layers first, then whole layers. placement tells.
        threads: how many to compute with; by default the physical cores that this process may
            use.
        isa: the instruction set of a CPU, by default the best there is for the precision (gptoss
            doctor lists them). With "fp32" results are the same bits.
        precision: "fp32" anywhere, a CPU's default. A CPU's "bf16": activations are rounded to
            bfloat16 before every matrix product, which AMX ("amx") or AVX512_BF16 ("avx512_bf16")
            then multiplies, on AMX in attention too; processors with neither refuse it; results
            depend on the instruction set, and on nothing else. A GPU's "fp16", the default where it
            multiplies such matrices: so are products of many tokens, with lines scaled by a power
            of two; that keeps three more bits than bfloat16 would, on more devices, at the same
            speed.
        tokenizer: a Tokenizer, or the path of one; by default what a GGUF file holds, else the
            tokenizer.json beside the weights.
        mmap: use the weights in place in the mapped files; False reads them into memory.
        verify: read every weight once and refuse NaN, infinite and reserved values.
        progress: called with (done, total) bytes while weights are read, brought to a GPU or
            verified; may raise to stop.
        profile: count and time every operation, for profile(). Results are the same bits. "counts":
            a GPU is not timed, which would slow it down; its operations take 0 seconds then.
        adapters: low-rank adapters (LoRA) to add to the weights while computing: directories that
            PEFT saved (adapter_config.json, adapter_model.safetensors), or pairs of one and a
            scale. Several add up, in this order; the weights stay as they are. They may change
            attention projections, lm_head and, of dense models, the MLP's. What else an adapter
            may have (DoRA, biases, modules_to_save, experts and router) is an UnsupportedError.

    Raises FileError, FormatError (with file, tensor, offset, expected, found), ArgumentError,
    UnsupportedError (a device, too, that is not there), OutOfMemoryError, DeviceError (a GPU or its
    driver failed).

    After fork() a model on a GPU is the parent's alone: calls in the child raise StateError.

    A context manager: leaving the block closes the model as soon as no array of it and no Generator
    is alive.
    """

    @refuse_unknown_options
    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str | Iterable[str] = "cpu",
        gpu_memory: Size | Sequence[Size] | None = None,
        threads: int | None = None,
        isa: str | None = None,
        precision: str | None = None,
        tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
        mmap: bool = True,
        verify: bool = False,
        progress: Progress | None = None,
        profile: bool | Literal["counts"] = False,
        adapters: Iterable[AdapterLike] = (),
    ) -> None:
        for name, value in (("isa", isa), ("precision", precision)):
            if value is not None and not isinstance(value, str):
                raise ArgumentError(f"{name} must be a str, not {value!r}")
        if not isinstance(profile, bool) and profile != "counts":
            raise ArgumentError(f"profile must be True, False or 'counts', not {profile!r}")
        num_threads = 0 if threads is None else require_integer("threads", threads, 1, 2**31 - 1)
        self.path = locate(path)
        self._tokenizer: Tokenizer | None
        if isinstance(tokenizer, Tokenizer):
            self._tokenizer = tokenizer
        elif tokenizer is not None:
            self._tokenizer = Tokenizer(Path(tokenizer))
        self._adapters = read_adapters(adapters)
        self._core = _core.Model(
            self.path,
            read_devices(device),
            isa,
            precision,
            num_threads,
            read_files=not mmap,
            progress=progress,
            profile=2 if profile == "counts" else int(profile),
            adapters=tuple(
                (os.fsencode(each.file), tuple(each.modules), tuple(each.modules.values()))
                for each in self._adapters
            ),
            gpu_memory=read_limits(gpu_memory),
        )
        if verify:
            self._core.verify(progress)
        values: dict[str, Any] = self._core.config()
        for name in ("rms_norm_eps", "layer_norm_eps", "swiglu_limit", "swiglu_alpha"):
            values[name] = float(str(np.float32(values[name])))  # 1e-05 as it was written
        self._config = Config(**values)
        self._tensors = Tensors(self)
        self._metadata = Metadata(self._core)

    @property
    def config(self) -> Config:
        self._require_open()
        return self._config

    @property
    def tensors(self) -> Tensors:
        """The tensors by name, as read-only arrays over the mapped files."""
        self._require_open()
        return self._tensors

    @property
    def metadata(self) -> Metadata:
        """What the GGUF file says besides tensors, by key; empty for safetensors."""
        self._require_open()
        return self._metadata

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The low-rank adapters that it was opened with."""
        return self._adapters

    @property
    def device(self) -> str:
        """ "cpu", or the name of the GPU; of several, or a GPU and the CPU, joined by " + "."""
        return self._core.device

    @property
    def placement(self) -> tuple[Share, ...]:
        """What each device has of the model. Print the items to read it."""
        return tuple(Share(*each) for each in self._core.shares())

    @property
    def isa(self) -> str:
        """The instruction set that computes; "vulkan" on a GPU."""
        return self._core.isa

    @property
    def precision(self) -> str:
        """The number format of activations and sums."""
        return self._core.precision

    @property
    def threads(self) -> int:
        return self._core.threads

    @property
    def closed(self) -> bool:
        return self._core.closed

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer: that in the metadata of a GGUF file, if its kind is known, else
        the tokenizer.json beside the weights; None if there is neither. Read when first asked for.

        Raises FormatError for a malformed one, UnsupportedError for one of a kind not known.
        """
        self._require_open()
        return self._load_tokenizer()

    def _load_tokenizer(self) -> Tokenizer | None:
        # Two threads may both read it; the first to finish sets what all get.
        if "_tokenizer" not in self.__dict__:
            self.__dict__.setdefault("_tokenizer", self._read_tokenizer())
        return self._tokenizer

    def _read_tokenizer(self) -> Tokenizer | None:
        unknown: UnsupportedError | None = None
        if self._metadata:
            file = min(info.file for _, info in self._tensors._entries.values())
            try:
                inside = Tokenizer.from_gguf(self._metadata, file, self._config.vocab_size)
                if inside is not None:
                    return inside
            except UnsupportedError as error:
                unknown = error
        directory = self.path if self.path.is_dir() else self.path.parent
        # In a download of both layouts the tokenizer is beside original/, not in it.
        beside = [directory.parent] if directory.name == "original" else []
        for place in [directory, *beside]:
            if (place / "tokenizer.json").exists():
                return Tokenizer(place)
        if unknown is not None:
            raise unknown
        return None

    @property
    def _lacks_tokenizer(self) -> str:
        """Why there is no text, for messages."""
        hint = " and no vocabulary in the GGUF file" if self._metadata else ""
        return f"{self.path}: there is no tokenizer.json beside the weights{hint}"

    @property
    def default_sampling(self) -> Sampling:
        """What the model's generation_config.json suggests, else Sampling()."""
        tokenizer = self._load_tokenizer()
        if tokenizer is None:
            return Sampling()
        suggested = tokenizer.suggested_sampling
        if suggested.do_sample is False:
            return Sampling(temperature=0.0)
        names = ("temperature", "top_k", "top_p")
        values: dict[str, Any] = {name: getattr(suggested, name) for name in names}
        try:
            return Sampling(**{name: value for name, value in values.items() if value is not None})
        except ArgumentError as error:
            file = str(tokenizer.path.with_name("generation_config.json"))
            raise FormatError(f"{file}: {error}", file=file) from error

    def tensor_info(self, name: str) -> TensorInfo:
        """dtype, shape, size and place of a tensor. NotFoundError (a KeyError) for a name that is
        not there."""
        return self.tensors._info(name)

    def expert(self, layer: int, expert: int) -> Expert:
        """One expert, decoded when its arrays are first asked for.

        UnsupportedError for a model without experts.
        """
        config = self.config
        if config.num_experts == 0:
            raise UnsupportedError(
                f"a model of the {config.architecture} family has no experts: its MLP is dense, "
                "and its weights are among model.tensors"
            )
        layer = require_integer("layer", layer, 0, config.num_layers - 1)
        return Expert(self, layer, require_integer("expert", expert, 0, config.num_experts - 1))

    def memory(self) -> dict[str, int]:
        """Bytes by category: "mapped" from files, shared with other processes; "read" from files
        into memory; "heap", tables, scratch and activations; "device", all that is on GPUs,
        caches of Generators included. Generator.memory counts those caches by themselves."""
        return self._core.memory()

    def profile(self) -> Profile:
        """What all passes since opening, or reset_profile, spent on each operation: calls, time,
        bytes read, arithmetic. print() shows a table.

        StateError if the model was opened without profile=True.
        """
        entries = self._core.profile()
        if not entries:
            raise StateError("the model counts nothing: open it by Model(..., profile=True)")
        return Profile.of(entries)

    def reset_profile(self) -> None:
        """Begins counting anew."""
        self._core.reset_profile()

    def verify(self, progress: Progress | None = None) -> None:
        """Reads every weight once. FormatError if one is NaN or infinite, or an MX scale is the
        reserved 0xFF.

        progress: called with (done, total) bytes; may raise to stop.
        """
        self._core.verify(progress)

    def close(self) -> None:
        """Unmaps the files. InUseError (a BufferError) while arrays of the model or Generators are
        alive."""
        self._core.close(False)

    def __enter__(self) -> Self:
        self._require_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._core.close(True)

    def __repr__(self) -> str:
        if self.closed:
            return f"<gptoss.Model {str(self.path)!r}, closed>"
        config, memory = self._config, self.memory()
        megabytes = (memory["mapped"] + memory["read"]) / 1e6
        experts = f"{config.experts_per_token} of {config.num_experts} experts, "
        on_cpu = self.device == "cpu"
        where = f"{self.isa}, {self.threads} threads" if on_cpu else self.device
        return (
            f"<gptoss.Model {str(self.path)!r}: {config.architecture}, {config.num_layers} layers, "
            f"{experts if config.num_experts else ''}{megabytes:,.1f} MB, "
            f"{self.precision} on {where}>"
        )

    def __reduce__(self) -> NoReturn:
        raise UnsupportedError(
            "a Model cannot be copied or pickled; threads may share it, and another process opens "
            "the same path: it shares the memory of the mapped files"
        )

    def _require_open(self) -> None:
        if self._core.closed:
            raise StateError("the model is closed")


class Tensors(Mapping[str, Array]):
    """The tensors of a model by name. Each array is a read-only view of the file's own memory and
    keeps it mapped."""

    def __init__(self, model: Model) -> None:
        self._core = model._core
        infos = [
            _tensor_info(name, dtype, shape, num_bytes, Path(file), file_offset, weight_dtype)
            for name, dtype, shape, num_bytes, file, file_offset, weight_dtype in (
                model._core.tensors()
            )
        ]
        self._entries = {info.name: (index, info) for index, info in enumerate(infos)}

    def __getitem__(self, name: str) -> Array:
        index, info = self._entry(name)
        # bfloat16 and 8-bit floats come as their bits, blocks as one row of bytes: no buffer format
        # names them.
        return np.asarray(self._core.tensor(index)).view(info.dtype).reshape(info.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __repr__(self) -> str:
        return f"<{len(self)} tensors: {', '.join(list(self)[:3])}, ...>"

    def _entry(self, name: str) -> tuple[int, TensorInfo]:
        try:
            return self._entries[name]
        except KeyError:
            hint = did_you_mean(str(name), self._entries)
            raise NotFoundError(f"there is no tensor {name!r}{hint}", tensor=str(name)) from None

    def _info(self, name: str) -> TensorInfo:
        return self._entry(name)[1]


def _tensor_info(
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    num_bytes: int,
    file: Path,
    file_offset: int,
    weight_dtype: str,
) -> TensorInfo:
    """dtypes by the engine's names; shape in elements."""
    stored_as = dtype.removesuffix("_GGUF")
    formats = (stored_as, weight_dtype.removesuffix("_GGUF"))
    if stored_as not in BLOCKS:
        return TensorInfo(name, DTYPES[dtype], shape, num_bytes, file, file_offset, *formats)
    elements, block_bytes = BLOCKS[stored_as]
    shape = (*shape[:-1], shape[-1] // elements, block_bytes)
    return TensorInfo(name, DTYPES["U8"], shape, num_bytes, file, file_offset, *formats)


class Expert:
    """One expert of one layer: y = down @ swiglu(gate @ x + gate_bias, up @ x + up_bias) +
    down_bias.

    gate, up, down and their biases are float32 arrays of the caller's own, decoded when first asked
    for and kept here. The packed planes are read-only views of the file's memory, None in
    checkpoints whose experts are not quantised. A GGUF file has no such planes (UnsupportedError):
    its blocks are in model.tensors["blk.3.ffn_gate_exps.weight"][expert].
    """

    def __init__(self, model: Model, layer: int, expert: int) -> None:
        self._model = model
        self.layer = layer
        self.expert = expert

    def __repr__(self) -> str:
        return f"<expert {self.expert} of layer {self.layer}>"

    @cached_property
    def gate(self) -> npt.NDArray[np.float32]:
        """(intermediate_size, hidden_size)"""
        return self._decode(
            "gate", self._model.config.intermediate_size, self._model.config.hidden_size
        )

    @cached_property
    def up(self) -> npt.NDArray[np.float32]:
        """(intermediate_size, hidden_size)"""
        return self._decode(
            "up", self._model.config.intermediate_size, self._model.config.hidden_size
        )

    @cached_property
    def down(self) -> npt.NDArray[np.float32]:
        """(hidden_size, intermediate_size)"""
        return self._decode(
            "down", self._model.config.hidden_size, self._model.config.intermediate_size
        )

    @cached_property
    def gate_bias(self) -> npt.NDArray[np.float32]:
        """(intermediate_size,)"""
        return self._decode("gate_bias", self._model.config.intermediate_size)

    @cached_property
    def up_bias(self) -> npt.NDArray[np.float32]:
        """(intermediate_size,)"""
        return self._decode("up_bias", self._model.config.intermediate_size)

    @cached_property
    def down_bias(self) -> npt.NDArray[np.float32]:
        """(hidden_size,)"""
        return self._decode("down_bias", self._model.config.hidden_size)

    @property
    def gate_up_blocks(self) -> npt.NDArray[np.uint8] | None:
        """(2 * intermediate_size, hidden_size / 32, 16) MXFP4 codes, two a byte, low nibble first;
        even rows are gate, odd rows up. Of MXFP6 and MXFP8 blocks have 24 and 32 bytes:
        gptoss.mx.unpack."""
        return self._plane("gate_up_proj_blocks", "mlp1_weight.blocks")

    @property
    def gate_up_scales(self) -> npt.NDArray[np.uint8] | None:
        """(2 * intermediate_size, hidden_size / 32) E8M0 exponents."""
        return self._plane("gate_up_proj_scales", "mlp1_weight.scales")

    @property
    def down_blocks(self) -> npt.NDArray[np.uint8] | None:
        """(hidden_size, intermediate_size / 32, 16) MXFP4 codes, or as of gate_up_blocks."""
        return self._plane("down_proj_blocks", "mlp2_weight.blocks")

    @property
    def down_scales(self) -> npt.NDArray[np.uint8] | None:
        """(hidden_size, intermediate_size / 32) E8M0 exponents."""
        return self._plane("down_proj_scales", "mlp2_weight.scales")

    def _decode(self, part: str, *shape: int) -> npt.NDArray[np.float32]:
        out = np.empty(shape, np.float32)
        self._model._core.decode_expert(self.layer, self.expert, part, out)
        return out

    def _plane(self, hugging_face: str, original: str) -> npt.NDArray[np.uint8] | None:
        tensors = self._model.tensors
        if f"blk.{self.layer}.ffn_down_exps.weight" in tensors:
            raise UnsupportedError(
                "a GGUF file keeps scales and codes together: take the blocks of an expert from "
                f"model.tensors['blk.{self.layer}.ffn_gate_exps.weight'][{self.expert}], and so on "
                "for ffn_up_exps and ffn_down_exps"
            )
        names = (
            f"model.layers.{self.layer}.mlp.experts.{hugging_face}",
            f"block.{self.layer}.mlp.{original}",
        )
        name = next((name for name in names if name in tensors), None)
        return None if name is None else tensors[name][self.expert]
