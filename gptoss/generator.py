"""One sequence: its tokens, its key-value cache, its logits, and what is drawn from them."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Literal, NoReturn, Self, TypeVar, overload

import numpy as np
import numpy.typing as npt

from gptoss import _core
from gptoss.errors import (
    ArgumentError,
    OutOfMemoryError,
    StateError,
    UnsupportedError,
    refuse_unknown_options,
    require_integer,
)
from gptoss.generation import Continuation, Generation, Processor
from gptoss.model import Model, Progress
from gptoss.sampling import Draw, Sampling, require_sampling
from gptoss.speculation import Drafter, Speculation, SpeculationStats
from gptoss.taps import DEFAULT_MAX_BYTES, Taps

Tokens = Sequence[int] | npt.NDArray[np.integer[Any]]
Logits = npt.NDArray[np.float32]
Array = npt.NDArray[Any]
T = TypeVar("T", bound=Tokens)

_DEFAULT_CONTEXT = 4096
_MAX_INT64 = 2**63 - 1


class Generator:
    """One sequence on a model. Cheap: memory is used as tokens come. For one thread at a time: a
    call while another thread is inside one raises StateError.

    Args:
        model: the Model; several Generators may share it, on several threads.
        max_context: positions there may be, by default 4096 or the model's own limit if that is
            less. More than the model was made for is allowed, with a warning, but for models whose
            positions are learned (gpt2).
        kv_dtype: "f16" or "f32", the number format of the cache. Keys and values are rounded to it
            before any use.
        block_size: rows of one prefill block, by default 2048. Results are the same bits for any.
        speculate: True, or a Speculation, lets generate() guess tokens that the text suggests and
            compute them together. What it gives is the same bits; `speculation` tells what it does.

    A context manager: leaving the block gives the memory back as soon as no array of it is alive.

    After generate() the token that was drawn last is the last of `tokens` but is not fed yet: it
    has no row in the cache, and `position`, the number of rows, does not count it. Whatever is fed
    next is fed after it. Rewinding to `position` takes it back.
    """

    @refuse_unknown_options
    def __init__(
        self,
        model: Model,
        *,
        max_context: int | None = None,
        kv_dtype: str = "f16",
        block_size: int | None = None,
        speculate: Speculation | bool | None = None,
    ) -> None:
        if not isinstance(model, Model):
            raise ArgumentError(f"a Generator needs a gptoss.Model, not {model!r}")
        limit = model.config.max_positions
        if max_context is None:
            max_context = min(_DEFAULT_CONTEXT, limit)
        max_context = require_integer("max_context", max_context, 1, _MAX_INT64)
        if max_context > limit and model.config.rope_scaling != "none":
            message = f"max_context is {max_context}, the model was made for {limit} positions"
            warnings.warn(message, stacklevel=3)
        if kv_dtype not in ("f16", "f32"):
            raise ArgumentError(f"kv_dtype must be 'f16' or 'f32', not {kv_dtype!r}")
        rows = 0 if block_size is None else require_integer("block_size", block_size, 1, 2**31 - 1)
        drafter = Drafter.of(speculate)
        self._attach(model, _core.Generator(model._core, max_context, kv_dtype, rows), drafter)

    def _attach(self, model: Model, core: _core.Generator, drafter: Drafter | None) -> None:
        self.model = model
        self._core = core
        self._taps = Taps(model._core, core)
        self._drafter = drafter
        self._pending: int | None = None  # drawn by generate(), not fed yet
        self._logits: weakref.ref[Logits] | None = None

    # ---- feeding ----

    @overload
    def prefill(
        self, tokens: Tokens, *, all_logits: Literal[False] = ..., progress: Progress | None = ...
    ) -> Logits: ...
    @overload
    def prefill(
        self, tokens: Tokens, *, all_logits: bool, progress: Progress | None = ...
    ) -> Logits: ...
    @refuse_unknown_options
    def prefill(
        self, tokens: Tokens, *, all_logits: bool = False, progress: Progress | None = None
    ) -> Logits:
        """Feeds tokens.

        Args:
            tokens: ids, as a sequence or array of integers.
            all_logits: return the logits of every token, an array (tokens, vocab_size) of the
                caller's own.
            progress: called with (done, total) tokens after each block; may raise to stop.

        Returns: the logits of the last token, as the `logits` attribute gives them, or those of
            all.

        Raises ContextError, before anything is computed, if the tokens do not fit; ArgumentError
        for what is no token; NumericError if logits are NaN. After Ctrl-C, or an exception in
        progress, the Generator stands after the last block that was completed.
        """
        if not isinstance(tokens, str | Sequence | np.ndarray):
            tokens = list(tokens)
        has_pending = self._pending is not None
        if not all_logits:
            self._feed(tokens, None, progress)
            return self.logits
        shape = (len(tokens) + has_pending, self.model._config.vocab_size)
        try:
            every = np.empty(shape, np.float32)
        except (MemoryError, ValueError) as error:
            raise OutOfMemoryError(f"cannot allocate logits of {shape[0]} tokens") from error
        self._feed(tokens, every, progress)
        return every[1:] if has_pending else every

    def step(self, token: int) -> Logits:
        """Feeds one token and returns its logits. Raises as prefill does."""
        if self._pending is None and not self._taps.active:
            self._core.step(token)
        else:
            self._feed([token], None, None)
        return self.logits

    def _feed(self, tokens: Tokens, all_logits: Logits | None, progress: Progress | None) -> None:
        tokens = self._with_pending(tokens)
        self._taps.require_room(len(tokens))
        first = self._core.position
        try:
            self._core.prefill(tokens, all_logits, progress)
        finally:
            self._account(first)

    def _with_pending(self, tokens: T) -> T | list[Any]:
        return tokens if self._pending is None else [self._pending, *tokens]

    def _account(self, first: int) -> None:
        """Takes note of the tokens that were fed, the first of them at position `first`."""
        num_rows = self._core.position - first
        if num_rows > 0:
            self._pending = None
            self._taps.collect(first, num_rows)

    # ---- what there is ----

    @property
    def logits(self) -> Logits:
        """(vocab_size,) float32 of the last token fed: one read-only array over the engine's own
        memory, which the next step overwrites; copy it to keep it. StateError before the first step
        and after rewind or reset."""
        if not self._core.has_logits:
            raise StateError("there are no logits: feed a token first")
        array = self._logits() if self._logits is not None else None
        if array is None:
            array = np.asarray(self._core.logits())
            self._logits = weakref.ref(array)
        return array

    @property
    def position(self) -> int:
        """Tokens that were fed: rows in the cache."""
        return self._core.position

    @property
    def max_context(self) -> int:
        return self._core.max_context

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        """A read-only copy of the sequence: the tokens fed, and the one that generate() drew last
        if it is not yet."""
        data = self._core.tokens()
        if self._pending is not None:
            data += np.int32(self._pending).tobytes()
        return np.frombuffer(data, np.int32)

    def kv(self, layer: int) -> tuple[Array, Array]:
        """Keys (after rotation) and values of a layer: read-only views (kv_heads, positions held,
        head_dim) of the cache, float16 or float32, in the order of positions.

        The rows are those of kv_range(layer) now. What is fed later overwrites none of them, but
        for a rewind; rows that a sliding layer gives up may read as zeros.
        """
        keys, values, _, _ = self._view_kv(layer)
        return np.asarray(keys), np.asarray(values)

    def kv_range(self, layer: int) -> tuple[int, int]:
        """The positions whose keys and values a layer holds: the first, and one past the last."""
        return self._view_kv(layer)[2:]

    def _view_kv(self, layer: int) -> tuple[_core.ArrayView, _core.ArrayView, int, int]:
        layer = require_integer("layer", layer, 0, self.model._config.num_layers - 1)
        return self._core.kv(layer)

    def memory(self) -> dict[str, int]:
        """Bytes of the cache: address space "reserved" for max_context, and "held" in pages with
        rows in them."""
        return self._core.memory()

    # ---- going back, going on elsewhere ----

    def rewind(self, position: int, *, progress: Progress | None = None) -> None:
        """Goes back to an earlier position: later tokens are forgotten.

        Rows that sliding layers gave up are computed again, to the same bits; progress is told and
        may raise, as in prefill. Logits are gone until the next token is fed. ArgumentError for a
        position that is not there yet.
        """
        end = self._core.position
        if self._pending is not None:
            if position == end + 1:
                return
            if position == end:
                self._pending = None
                return
        position = require_integer("position", position, 0, _MAX_INT64)
        self._core.rewind(position, progress)
        self._pending = None
        self._taps.rewind(position)

    def reset(self) -> None:
        """Back to an empty sequence. The memory of the cache is given back."""
        self._core.reset()
        self._pending = None
        self._taps.clear()

    def fork(self) -> Generator:
        """An independent copy of tokens, cache and logits; it captures nothing."""
        copy = object.__new__(type(self))
        drafter = None if self._drafter is None else Drafter(self._drafter.settings)
        copy._attach(self.model, self._core.fork(), drafter)
        copy._pending = self._pending
        return copy

    # ---- activations ----

    def capture(
        self,
        *patterns: str,
        keep: Literal["last", "all"] = "last",
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        """Chooses the activations to keep in `taps` from the next call on. Without patterns: none.

        Args:
            patterns: names as fnmatch knows them: "layers.*.router*", "final_norm", "*".
            keep: "last" keeps the rows of the latest prefill or step, "all" gathers those of all
                calls.
            max_bytes: a call that would keep more raises OutOfMemoryError before it computes
                anything.

        Raises ArgumentError for a pattern that matches nothing.
        """
        self._taps.select(patterns, keep, max_bytes)

    @property
    def taps(self) -> Taps:
        """The captured activations by name, arrays (rows, ...) of the reader's own."""
        return self._taps

    # ---- drawing ----

    @refuse_unknown_options
    def draw(self, sampling: Sampling | None = None) -> Draw:
        """Draws a token from the logits, and tells its log-probability. Nothing is fed.

        sampling: by default what the model suggests. Without a seed a new one is drawn each time.
        """
        sampling = self.model.default_sampling if sampling is None else require_sampling(sampling)
        return sampling.draw(self.logits, np.frombuffer(self._core.tokens(), np.int32))

    @refuse_unknown_options
    def sample(self, sampling: Sampling | None = None) -> int:
        """Draws a token from the logits. Nothing is fed."""
        return self.draw(sampling).token

    @refuse_unknown_options
    def generate(
        self,
        prompt: str | Tokens | None = None,
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: str | Sequence[str] = (),
        stop_tokens: Iterable[int] | None = None,
        top_logprobs: int = 0,
        processors: Sequence[Processor] = (),
        progress: Progress | None = None,
    ) -> Generation:
        """Continues the sequence, a token each time the result is asked for one. Nothing is
        computed before.

        Args:
            prompt: what to feed first: text for the model's tokenizer, in which special tokens are
                plain text, or token ids; None goes on from where the Generator is.
            max_tokens: how many at most; None: as many as the context holds.
            sampling: by default what the model suggests.
            stop: strings that end the text. They are not part of it, wherever tokens begin and end.
            stop_tokens: ids that end it, by default the tokenizer's. Their text is not part of it.
            top_logprobs: how many of the likeliest tokens each output tells.
            processors: functions of (tokens, logits), applied in order before sampling. tokens:
                int32, the sequence; logits: (vocab_size,) float32, a copy to change in place, or to
                answer with another array.
            progress: as in prefill, for the prompt.

        Raises ContextError when max_tokens asks for more than the context holds, once it is full;
        StateError if the Generator was moved by another call between two outputs, or if there is
        nothing to continue.
        """
        continuation = Continuation(
            self.model,
            max_tokens=max_tokens,
            sampling=self.model.default_sampling if sampling is None else sampling,
            stop=stop,
            stop_tokens=stop_tokens,
            top_logprobs=top_logprobs,
            processors=processors,
        )
        return Generation(self, prompt, continuation, progress)

    @property
    def speculation(self) -> SpeculationStats | None:
        """What speculation did so far; None if it is off. A fork counts anew."""
        return None if self._drafter is None else self._drafter.stats

    # ---- end ----

    def close(self) -> None:
        """Gives the memory back. InUseError (a BufferError) while arrays of it are alive."""
        self._core.close(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._core.close(True)

    def __repr__(self) -> str:
        try:
            where = f"at position {self.position} of {self.max_context}"
            return f"<gptoss.Generator {where}, {self.model!r}>"
        except StateError as error:
            return f"<gptoss.Generator: {error}>"

    def __reduce__(self) -> NoReturn:
        raise UnsupportedError(
            "a Generator cannot be pickled or copied by copy; fork() makes a copy"
        )
