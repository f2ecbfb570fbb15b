"""The generate loop: feed, draw, decode, stop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gptoss import _core
from gptoss.errors import ArgumentError, StateError, require_integer
from gptoss.run_ahead import RunAhead, can_guess
from gptoss.sampling import Draw, Sampling, require_sampling
from gptoss.tokenizer import StreamDecoder

if TYPE_CHECKING:
    from gptoss.generator import Generator, Logits, Tokens
    from gptoss.model import Model, Progress

Processor = Callable[[npt.NDArray[np.int32], npt.NDArray[np.float32]], "npt.ArrayLike | None"]


class TokenLogprob(NamedTuple):
    """A token, its log-probability by the model's own logits, and its text."""

    token: int
    logprob: float
    text: str


@dataclass(frozen=True, slots=True)
class Output:
    """One token of a generation.

    Attributes:
        token: its id.
        text: what it adds to the text: whole characters, perhaps none while a character is
            incomplete or a stop string is possible. The texts of all outputs, joined, are the text.
        bytes: the token's own bytes.
        logprob: log-softmax, at the token, of the model's logits before processors, penalties and
            temperature.
        top_logprobs: the likeliest tokens, best first, as many as asked for.
        finish_reason: None; on the last output "stop" (stop string or stop token) or "length".
        stop_reason: the stop string or stop token that ended it, else None.
    """

    token: int
    text: str
    bytes: bytes
    logprob: float
    top_logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class StopMatcher:
    """Finds stop strings in a text that comes in pieces, and holds back what may become one.

    Where pieces begin and end makes no difference: the string that is complete first wins; of
    several, the longest.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = sorted(set(stops), key=len, reverse=True)
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Takes a piece; returns text that can no longer be part of a stop string, and the string
        that was found."""
        self._held += text
        found = [
            (self._held.find(stop) + len(stop), stop) for stop in self._stops if stop in self._held
        ]
        if found:
            end, stop = min(found, key=lambda match: match[0])  # the first of equals is the longest
            return self._held[: end - len(stop)], stop
        possible = max((self._overlap(stop) for stop in self._stops), default=0)
        settled = len(self._held) - possible
        text, self._held = self._held[:settled], self._held[settled:]
        return text, None

    def flush(self) -> str:
        """Ends the text; returns what was held back."""
        text, self._held = self._held, ""
        return text

    def _overlap(self, stop: str) -> int:
        """The length of the longest end of the held text that is a beginning of stop."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)


class Continuation:
    """Draws the tokens of one continuation and decodes them: generate() but for the feeding.

    Attributes:
        sampling: the settings in use, with the seed that was drawn if none was given.
        max_tokens: how many at most; None until begin() if the context decides.
        num_tokens: how many were drawn.
        is_over: whether the last one was.
        is_plain: whether a device can guess what is drawn.
    """

    def __init__(
        self,
        model: Model,
        *,
        max_tokens: int | None,
        sampling: Sampling,
        stop: str | Sequence[str],
        stop_tokens: Iterable[int] | None,
        top_logprobs: int,
        processors: Sequence[Processor],
    ) -> None:
        tokenizer = model._load_tokenizer()
        stops = _stop_strings(stop)
        if tokenizer is None and stops:
            raise _no_tokenizer(model)
        if not isinstance(processors, Sequence) or not all(map(callable, processors)):
            raise ArgumentError("processors must be a list of functions of (tokens, logits)")
        if stop_tokens is None:
            stop_tokens = () if tokenizer is None else tokenizer.stop_token_ids
        if max_tokens is not None:
            max_tokens = require_integer("max_tokens", max_tokens, 0)

        self.sampling = require_sampling(sampling).with_seed()
        self.max_tokens = max_tokens
        self.num_tokens = 0
        self.is_over = max_tokens == 0
        self._stop_tokens = frozenset(require_integer("a stop token", t, 0) for t in stop_tokens)
        self._num_top = require_integer("top_logprobs", top_logprobs, 0, model._config.vocab_size)
        self._processors = tuple(processors)
        self.is_plain = not processors and can_guess(self.sampling)
        self._tokenizer = tokenizer
        self._decoder = None if tokenizer is None else StreamDecoder(tokenizer)
        self._matcher = StopMatcher(stops)

    def begin(self, generator: Generator) -> None:
        """The Generator has the logits to draw the first token from."""
        if self.max_tokens is None:
            # The last token drawn need not be fed: there may be one more than there are positions.
            self.max_tokens = generator.max_context - generator.position + 1

    def draw(self, generator: Generator, known: Draw | None = None) -> Output:
        """The next token; it becomes the one that the Generator has yet to be fed.

        known: what these logits give, if that was drawn already.
        """
        logits = generator.logits
        token, logprob = known or self._draw(logits, generator.tokens)
        top = _core.top_logprobs(logits, self._num_top) if self._num_top else ()
        generator._pending = token
        self.num_tokens += 1
        text, finish_reason, stop_reason = self._advance_text(token)
        self.is_over = finish_reason is not None
        return Output(
            token=token,
            text=text,
            bytes=b"" if self._tokenizer is None else self._tokenizer.token_bytes(token),
            logprob=logprob,
            top_logprobs=tuple(TokenLogprob(t, p, self._text_of(t)) for t, p in top),
            finish_reason=finish_reason,
            stop_reason=stop_reason,
        )

    def _draw(self, logits: Logits, tokens: npt.NDArray[np.int32]) -> Draw:
        if not self._processors:
            return self.sampling.draw(logits, tokens)
        scores = logits.copy()
        for processor in self._processors:
            answer = processor(tokens, scores)
            if answer is not None:
                scores = np.array(answer, np.float32)
            if scores.shape != logits.shape:
                raise ArgumentError(
                    f"a processor answered with shape {scores.shape}, not {logits.shape}"
                )
        token, _ = self.sampling.draw(scores, tokens)
        # The log-probability is the model's own, as without processors.
        [(best, best_logprob)] = _core.top_logprobs(logits, 1)
        return Draw(token, best_logprob + float(logits[token]) - float(logits[best]))

    def _advance_text(self, token: int) -> tuple[str, str | None, str | int | None]:
        """The text that a token settles, and whether and why it is the last."""
        if token in self._stop_tokens:
            return self._end_text()[0], "stop", token
        piece = "" if self._decoder is None else self._decoder.push(token)[0]
        text, found = self._matcher.push(piece)
        if found is None and self.num_tokens == self.max_tokens:
            tail, found = self._end_text()
            return text + tail, "length" if found is None else "stop", found
        return text, None if found is None else "stop", found

    def _end_text(self) -> tuple[str, str | None]:
        """The rest of the text: an incomplete character as U+FFFD, and what was held back."""
        text, found = self._matcher.push("" if self._decoder is None else self._decoder.flush())
        return (text if found is not None else text + self._matcher.flush()), found

    def _text_of(self, token: int) -> str:
        return "" if self._tokenizer is None else self._tokenizer.decode([token])


class Generation(Iterator[Output]):
    """The outputs of Generator.generate, made as they are asked for.

    Attributes:
        sampling: the settings in use, with the seed that was drawn if none was given.
        prompt_tokens: the ids of the prompt.
    """

    def __init__(
        self,
        generator: Generator,
        prompt: str | Tokens | None,
        continuation: Continuation,
        progress: Progress | None,
    ) -> None:
        self.sampling = continuation.sampling
        self.prompt_tokens = prompt_ids(prompt, generator)
        self._generator = generator
        self._continuation = continuation
        self._progress = progress
        self._run_ahead = (
            RunAhead(self.sampling)
            if generator._core.runs_ahead and continuation.is_plain
            else None
        )
        self._position = -1  # of the Generator at the last output
        self._last_token = -1
        self._ended = False

    @property
    def seed(self) -> int | None:
        """Gives the same tokens again."""
        return self.sampling.seed

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> Output:
        if self._ended:
            raise StopIteration
        self._ended = True  # whatever is raised below ends it, too
        if self._position < 0:
            self._start()
        else:
            self._go_on()
        if self._continuation.is_over:
            raise StopIteration  # of 0 tokens
        ahead = self._run_ahead
        known = None if ahead is None else ahead.drawn(self._generator)
        output = self._continuation.draw(self._generator, known)
        self._position, self._last_token = self._generator.position, output.token
        self._ended = self._continuation.is_over
        return output

    def _start(self) -> None:
        """Brings the Generator to where it has logits."""
        generator = self._generator
        if len(self.prompt_tokens) > 0:
            generator.prefill(self.prompt_tokens, progress=self._progress)
        elif generator._pending is not None:
            generator._feed((), None, self._progress)
        elif not generator._core.has_logits:
            if generator.position == 0:
                raise StateError(
                    "there is nothing to continue: give a prompt, or feed tokens first"
                )
            last = int(generator.tokens[-1])
            generator.rewind(generator.position - 1, progress=self._progress)
            generator.step(last)
        self._continuation.begin(generator)

    def _go_on(self) -> None:
        generator, continuation = self._generator, self._continuation
        if generator._pending != self._last_token or generator.position != self._position:
            raise StateError("the Generator was moved since the last output: call generate() again")
        assert continuation.max_tokens is not None
        num_left = continuation.max_tokens - continuation.num_tokens
        if generator._drafter is not None:
            generator._drafter.prepare(generator, num_left)
        elif self._run_ahead is not None:
            self._run_ahead.prepare(generator, num_left)
        generator._feed((), None, None)


def _stop_strings(stop: str | Sequence[str]) -> list[str]:
    stops: list[Any] = [stop] if isinstance(stop, str) else list(stop)
    for text in stops:
        if not isinstance(text, str) or not text:
            raise ArgumentError(
                f"a stop string must be a text of at least one character, not {text!r}"
            )
    return stops


def encode_prompt(prompt: str | Tokens | None, model: Model) -> Tokens:
    """The ids of a prompt that is text, or ids, or None."""
    if prompt is None:
        return ()
    if not isinstance(prompt, str):
        return prompt
    tokenizer = model._load_tokenizer()
    if tokenizer is None:
        raise _no_tokenizer(model)
    return tokenizer.encode(prompt)


def prompt_ids(prompt: str | Tokens | None, generator: Generator) -> Tokens:
    """The same for a generator: text at the beginning follows BOS, if the model was made for
    that."""
    ids = encode_prompt(prompt, generator.model)
    tokenizer = generator.model._load_tokenizer() if isinstance(prompt, str) else None
    if tokenizer is None or generator.position > 0:
        return ids
    return [*tokenizer.opening_ids, *ids]


def _no_tokenizer(model: Model) -> ArgumentError:
    return ArgumentError(f"{model._lacks_tokenizer}: give token ids, and no stop strings")
