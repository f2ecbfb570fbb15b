"""The engine, as gptoss wraps it. Not a public interface: options are positional, checks are those
that keep memory safe, and sentences are left to the callers."""

import os
from collections.abc import Callable
from typing import Any, final

import numpy.typing as npt

_Progress = Callable[[int, int], object]
_Buffer = npt.NDArray[Any] | bytes
_Matrix = tuple[str, int, int, int, _Buffer, _Buffer]

def version() -> str: ...
def isas() -> list[tuple[str, bool]]:
    """Compiled instruction sets and whether this machine has them, best last."""

def bf16_isas() -> list[tuple[str, bool]]:
    """The same of those that compute with precision bf16."""

def cpu_features() -> dict[str, bool]: ...
def usable_cpus() -> int: ...
def fail_allocation(n: int, /) -> int:
    """Test hook: the n-th allocation from now fails, once; 0 switches it off. Allocations since the
    last call."""

def sample(
    logits: _Buffer,
    history: _Buffer,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    frequency_penalty: float,
    presence_penalty: float,
    seed: int,
    bias_tokens: _Buffer,
    bias_values: _Buffer,
    /,
) -> tuple[int, float]: ...
def top_logprobs(logits: _Buffer, k: int, /) -> list[tuple[int, float]]: ...

# Kernels one at a time, for tests and the self-test; their arguments are told in csrc/python.

def kernels() -> list[dict[str, Any]]: ...
def kernel_matvec(
    isa: str,
    matrix: _Matrix,
    first_row: int,
    num_rows: int,
    x: _Buffer,
    num_vectors: int,
    out: _Buffer,
    /,
) -> None: ...
def kernel_expand_panel(
    isa: str, matrix: _Matrix, first_row: int, num_rows: int, values: _Buffer, scales: _Buffer, /
) -> None: ...
def kernel_multiply_panel(
    isa: str,
    num_columns: int,
    values: _Buffer,
    scales: _Buffer,
    x: _Buffer,
    num_tiles: int,
    out: _Buffer,
    /,
) -> None: ...
def kernel_product_bf16(
    isa: str,
    form: str,
    matrix: _Matrix,
    num_rows: int,
    x: _Buffer,
    num_tokens: int,
    out: _Buffer,
    /,
) -> None: ...
def kernel_attention_tile(
    isa: str,
    is_f16: bool,
    head_dim: int,
    row_bytes: int,
    scale: float,
    arrays: tuple[_Buffer, ...],
    /,
) -> None: ...
def kernel_elementwise(
    isa: str, operation: str, a: float, b: float, /, *arrays: _Buffer
) -> None: ...
def math_expf(x: _Buffer, out: _Buffer, /) -> None: ...
def math_exp_log(x: _Buffer, exp_out: _Buffer, log_out: _Buffer, /) -> None: ...
def math_sincos(x: _Buffer, sine_out: _Buffer, cosine_out: _Buffer, /) -> None: ...
def rope_table(
    head_dim: int,
    theta: float,
    yarn: tuple[()] | tuple[float, float, float, int, float, bool],
    position: int,
    outs: tuple[_Buffer, _Buffer, _Buffer],
    /,
) -> None: ...
def measure_fma(isa: str, num_rounds: int, /) -> int: ...
def measure_read(isa: str, buffer: _Buffer, /) -> int: ...

@final
class ArrayView:
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Model:
    def __new__(
        cls,
        path: str | os.PathLike[str],
        device: str | None = None,
        isa: str | None = None,
        precision: str | None = None,
        threads: int = 0,
        read_files: bool = False,
        progress: _Progress | None = None,
    ) -> Model: ...
    @property
    def isa(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    def close(self, defer: bool, /) -> None: ...
    def config(self) -> dict[str, Any]: ...
    def tensors(self) -> list[tuple[str, str, tuple[int, ...], int, str, int]]: ...
    def tensor(self, index: int, /) -> ArrayView: ...
    def decode_expert(self, layer: int, expert: int, part: str, out: _Buffer, /) -> None: ...
    def verify(self, progress: _Progress | None, /) -> None: ...
    def memory(self) -> dict[str, int]: ...
    def taps(self) -> list[tuple[str, str, tuple[int, ...]]]: ...

@final
class Generator:
    def __new__(
        cls, model: Model, max_context: int, kv_dtype: str, block_size: int
    ) -> Generator: ...
    @property
    def position(self) -> int: ...
    @property
    def max_context(self) -> int: ...
    @property
    def has_logits(self) -> bool: ...
    def close(self, defer: bool, /) -> None: ...
    def prefill(
        self, tokens: object, all_logits: _Buffer | None, progress: _Progress | None, /
    ) -> None: ...
    def step(self, token: int, /) -> None: ...
    def logits(self) -> ArrayView: ...
    def kv(self, layer: int, /) -> tuple[ArrayView, ArrayView, int, int]: ...
    def tokens(self) -> bytes: ...
    def rewind(self, position: int, progress: _Progress | None, /) -> None: ...
    def reset(self) -> None: ...
    def fork(self) -> Generator: ...
    def capture(self, mask: bytes | None, /) -> None: ...
    def take_tap(self, index: int, /) -> ArrayView | None: ...
    def memory(self) -> dict[str, int]: ...
