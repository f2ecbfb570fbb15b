"""Many sequences as one batch of rows: each to the bits it would have alone."""

from __future__ import annotations

import importlib
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

from gptoss import _core
from gptoss.errors import (
    ArgumentError,
    ContextError,
    Error,
    OutOfMemoryError,
    StateError,
    UnsupportedError,
    refuse_unknown_options,
    require_integer,
)
from gptoss.generation import Continuation, Output, Processor, TokenLogprob, prompt_ids
from gptoss.generator import Generator, Logits, Tokens
from gptoss.model import Model, Progress
from gptoss.sampling import Sampling

_MAX_TOKEN = 2**31 - 1
# Rows of one pass of generate_batch: what is drawn, and prompts as far as there is room.
_PASS_ROWS = 512


@refuse_unknown_options
def forward(
    generators: Sequence[Generator],
    tokens: Sequence[SupportsIndex] | Sequence[Tokens] | Tokens,
    *,
    progress: Progress | None = None,
) -> list[Logits]:
    """Feeds tokens to many Generators at once: one pass reads the weights once for all of them.

    Args:
        generators: Generators of one model, each given once.
        tokens: for each Generator a token, or a sequence of them.
        progress: called with (done, total) tokens of all; may raise to stop.

    Returns: each Generator's `logits`, those of its last token.

    The logits, rows and taps are those, bit for bit, that each would have by prefill alone. All
    tokens are checked before anything is computed; exceptions are those of prefill and name the
    generator by its index. Up to 512 rows are one block, which counts for all its Generators or for
    none: after Ctrl-C, or an exception in progress, `position` tells where each one stands.
    """
    generators = _require_generators(generators)
    every = _tokens_of_each(tokens, len(generators))
    for i, generator in enumerate(generators):
        every[i] = generator._with_pending(every[i])
        try:
            generator._taps.require_room(len(every[i]))
        except OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"generator {i}: {error}", expected=error.expected, found=error.found
            ) from None
    first = [generator.position for generator in generators]
    flat = [token for tokens_of_one in every for token in tokens_of_one]
    cores = [generator._core for generator in generators]
    try:
        _core.forward(cores, flat, [len(tokens_of_one) for tokens_of_one in every], progress)
    finally:
        for generator, position in zip(generators, first, strict=True):
            generator._account(position)
    return [generator.logits for generator in generators]


def _require_generators(generators: Iterable[Generator]) -> list[Generator]:
    known: dict[int, int] = {}
    generators = list(generators)
    for i, generator in enumerate(generators):
        if not isinstance(generator, Generator):
            raise ArgumentError(f"generator {i} must be a gptoss.Generator, not {generator!r}")
        if (other := known.setdefault(id(generator), i)) != i:
            raise ArgumentError(
                f"generator {i} is generator {other}, too: give each once, with all its tokens"
            )
    return generators


def _tokens_of_each(tokens: Any, count: int) -> list[list[int]]:
    if isinstance(tokens, str) or not isinstance(tokens, Iterable):
        raise ArgumentError(f"tokens must be a sequence with one item a generator, not {tokens!r}")
    every = [_token_list(i, item) for i, item in enumerate(tokens)]
    if len(every) != count:
        raise ArgumentError(f"there are {count} generators, but tokens for {len(every)}")
    return every


def _token_list(index: int, item: Any) -> list[int]:
    try:
        item = [operator.index(item)]
    except TypeError:
        if isinstance(item, str) or not isinstance(item, Iterable):
            raise ArgumentError(
                f"generator {index}: tokens must be integers, not {item!r}"
            ) from None
    name = f"generator {index}: a token"
    return [require_integer(name, token, -_MAX_TOKEN, _MAX_TOKEN) for token in item]


# ---- generating ----


@dataclass(frozen=True, slots=True)
class Completion:
    """What became of one prompt of generate_batch.

    Attributes:
        index: the prompt's number, from 0.
        prompt_tokens: its ids.
        tokens: the ids that were drawn.
        text: their text, as Generator.generate gives it.
        finish_reason: "stop" (stop string or stop token), "length" or "error".
        stop_reason: the stop string or stop token that ended it, else None.
        logprobs: of each token, by the model's own logits.
        top_logprobs: of each token, the likeliest, if asked for.
        seed: gives the same tokens again; None if there was no start.
        error: the exception that ended it, else None.
    """

    index: int
    prompt_tokens: tuple[int, ...] = field(repr=False)
    tokens: tuple[int, ...]
    text: str
    finish_reason: str
    stop_reason: str | int | None = None
    logprobs: tuple[float, ...] = field(default=(), repr=False)
    top_logprobs: tuple[tuple[TokenLogprob, ...], ...] = field(default=(), repr=False)
    seed: int | None = None
    error: Exception | None = None


class _Sequence:
    """One prompt under way in a place of the batch."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.generator: Generator | None = None
        self.error: Exception | None = None
        self._continuation: Continuation | None = None
        self._prompt: list[int] = []
        self._num_fed = 0
        self._outputs: list[Output] = []

    def begin(self, prompt: str | Tokens, continuation: Continuation) -> None:
        assert self.generator is not None
        self._continuation = continuation
        ids = prompt_ids(prompt, self.generator)
        self._prompt = _token_list(self.index, ids)
        limit = self.generator.max_context
        if not self._prompt:
            raise StateError("there is nothing to continue: the prompt is empty")
        if len(self._prompt) > limit:
            raise ContextError(
                f"the context is full: {len(self._prompt)} tokens do not fit in "
                f"max_context={limit}",
                max_context=limit,
                requested=len(self._prompt),
            )

    @property
    def is_fed(self) -> bool:
        """Whether the whole prompt is."""
        return self._num_fed == len(self._prompt)

    @property
    def is_over(self) -> bool:
        if self.error is not None:
            return True
        assert self._continuation is not None
        return self.is_fed and self._continuation.is_over

    def take_tokens(self, room: int) -> list[int]:
        """The next tokens of the prompt, as many as there is room for."""
        tokens = self._prompt[self._num_fed : self._num_fed + max(0, room)]
        self._num_fed += len(tokens)
        return tokens

    def draw(self) -> None:
        """Goes on by one token, if the prompt is fed."""
        if self.error is not None or not self.is_fed:
            return
        assert self._continuation is not None and self.generator is not None
        try:
            self._continuation.begin(self.generator)
            if not self._continuation.is_over:  # of 0 tokens
                self._outputs.append(self._continuation.draw(self.generator))
        except Exception as error:  # a processor's may be of any class
            self.error = error

    def completion(self) -> Completion:
        last = self._outputs[-1] if self._outputs else None
        finish = "length" if last is None else last.finish_reason
        return Completion(
            index=self.index,
            prompt_tokens=tuple(self._prompt),
            tokens=tuple(out.token for out in self._outputs),
            text="".join(out.text for out in self._outputs),
            finish_reason="error" if self.error is not None else str(finish),
            stop_reason=None if last is None else last.stop_reason,
            logprobs=tuple(out.logprob for out in self._outputs),
            top_logprobs=tuple(out.top_logprobs for out in self._outputs),
            seed=None if self._continuation is None else self._continuation.sampling.seed,
            error=self.error,
        )


@refuse_unknown_options
def generate_batch(
    model: Model,
    prompts: Iterable[str | Tokens],
    *,
    max_tokens: int | None = None,
    sampling: Sampling | Sequence[Sampling] | None = None,
    stop: str | Sequence[str] = (),
    stop_tokens: Iterable[int] | None = None,
    top_logprobs: int = 0,
    processors: Sequence[Processor] = (),
    batch_size: int = 16,
    max_context: int | None = None,
    kv_dtype: str = "f16",
    progress: Progress | bool | None = None,
) -> Iterator[Completion]:
    """Continues many prompts, several at a time; yields each result when it is finished.

    Each is, bit for bit, what Generator.generate gives for its prompt and its seed: what runs
    beside it makes no difference. A sequence that has ended gives its place to the next prompt at
    once, whose tokens are fed along with what the others drew.

    Args:
        model: the Model.
        prompts: texts or sequences of token ids; an iterator is read as places become free.
        max_tokens, stop, stop_tokens, top_logprobs, processors: as in Generator.generate, for each.
        sampling: for all prompts, or one for each. Without a seed each draws its own, which
            Completion.seed tells.
        batch_size: sequences at a time. More of them use the weights that a pass reads better, and
            take memory for their caches.
        max_context, kv_dtype: as in Generator, for each.
        progress: called with (done, total) prompts when one is finished; with an iterator of
            unknown length, total is how many were read. True draws a bar by tqdm.

    An exception in one sequence (a prompt that does not fit, a full context, a processor that
    raises) ends that sequence alone: its result has finish_reason "error", the exception in `error`
    and the tokens up to there. Options that are wrong for all raise ArgumentError at once; Ctrl-C
    ends the iteration.
    """
    batch_size = require_integer("batch_size", batch_size, 1)
    _require_prompts(model, prompts)
    stop_tokens = None if stop_tokens is None else tuple(stop_tokens)

    def continuation(index: int) -> Continuation:
        return Continuation(
            model,
            max_tokens=max_tokens,
            sampling=_sampling_of(model, sampling, index),
            stop=stop,
            stop_tokens=stop_tokens,
            top_logprobs=top_logprobs,
            processors=processors,
        )

    continuation(0)  # so that bad options are refused now
    empty = Generator(model, max_context=max_context, kv_dtype=kv_dtype)
    report = _Report(progress, len(prompts) if isinstance(prompts, Sized) else None)
    return _run(iter(prompts), continuation, empty, batch_size, report)


def _require_prompts(model: Model, prompts: Iterable[str | Tokens]) -> None:
    if not isinstance(model, Model):
        raise ArgumentError(f"generate_batch needs a gptoss.Model, not {model!r}")
    if isinstance(prompts, str) or not isinstance(prompts, Iterable):
        raise ArgumentError(f"prompts must be a list of texts or token ids, not {prompts!r}")


def _sampling_of(
    model: Model, sampling: Sampling | Sequence[Sampling] | None, index: int
) -> Sampling:
    if sampling is None:
        return model.default_sampling
    if not isinstance(sampling, Sequence):
        return sampling
    if index >= len(sampling):
        raise ArgumentError(f"there are {len(sampling)} samplings, none for prompt {index}")
    return sampling[index]


def _run(
    prompts: Iterator[str | Tokens],
    continuation: Callable[[int], Continuation],
    empty: Generator,
    batch_size: int,
    report: _Report,
) -> Iterator[Completion]:
    """empty: stands for the options of every place, and stays empty."""
    active: list[_Sequence] = []
    free: list[Generator] = []
    num_read = 0
    try:
        while True:
            for prompt in itertools.islice(prompts, batch_size - len(active)):
                sequence = _Sequence(num_read)
                num_read += 1
                active.append(sequence)
                try:
                    sequence.generator = free.pop() if free else empty.fork()
                    sequence.begin(prompt, continuation(sequence.index))
                except Exception as error:
                    sequence.error = error
            if not active:
                return
            _feed([sequence for sequence in active if sequence.error is None])
            for sequence in active:
                sequence.draw()
            finished = [sequence for sequence in active if sequence.is_over]
            active = [sequence for sequence in active if not sequence.is_over]
            for sequence in finished:
                if sequence.generator is not None:
                    sequence.generator.reset()
                    free.append(sequence.generator)
            for sequence in finished:
                report.finished(num_read)
                yield sequence.completion()
    finally:
        report.close()
        for generator in (empty, *free, *(sequence.generator for sequence in active)):
            if generator is not None:
                generator.__exit__(None, None, None)


def _feed(sequences: list[_Sequence]) -> None:
    """One pass: what each sequence drew, and of the prompts what there is room for."""
    room = _PASS_ROWS - sum(sequence.is_fed for sequence in sequences)
    parts: list[tuple[_Sequence, Generator, list[int]]] = []
    for sequence in sequences:
        is_fed = sequence.is_fed
        tokens = sequence.take_tokens(room)
        room -= len(tokens)
        if (is_fed or tokens) and sequence.generator is not None:
            parts.append((sequence, sequence.generator, tokens))
    before = [(generator.position, generator._pending is not None) for _, generator, _ in parts]
    try:
        if parts:
            forward([generator for _, generator, _ in parts], [tokens for _, _, tokens in parts])
    except Error:
        # One spoils a pass for all: fed alone, the others go on, to the same bits.
        for (sequence, generator, tokens), (position, was_pending) in zip(
            parts, before, strict=True
        ):
            rest = tokens[max(0, generator.position - position - was_pending) :]
            try:
                if rest or generator._pending is not None:
                    generator._feed(rest, None, None)
            except Error as error:
                sequence.error = error


class _Report:
    """Tells how many prompts are finished, to a callable or by a bar."""

    def __init__(self, progress: Progress | bool | None, total: int | None) -> None:
        self._bar: Any = None
        self._progress = progress if callable(progress) else None
        self._total = total
        self._num_done = 0
        if progress is True:
            try:
                tqdm = importlib.import_module("tqdm.auto").tqdm
            except ImportError:
                raise UnsupportedError(
                    "progress=True needs tqdm: pip install 'gptoss-engine[notebook]'"
                ) from None
            self._bar = tqdm(total=total, unit="prompt")
        elif progress not in (None, False) and self._progress is None:
            raise ArgumentError(
                "progress must be a callable taking (done, total), True, False or None"
            )

    def finished(self, num_read: int) -> None:
        self._num_done += 1
        if self._bar is not None:
            self._bar.update()
        if self._progress is not None:
            self._progress(self._num_done, num_read if self._total is None else self._total)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
