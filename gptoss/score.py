"""How likely a model finds a text: log-probabilities, ranks and entropies of its tokens, and how
far two models are apart. The engine reduces the logits a few rows at a time; none are kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from gptoss.errors import ArgumentError, refuse_unknown_options, require_integer
from gptoss.generation import encode_prompt
from gptoss.generator import Generator, Tokens
from gptoss.model import Model, Progress

Ids = npt.NDArray[np.int32]
Values = npt.NDArray[np.float64]

_DEFAULT_CONTEXT = 4096


class Moments:
    """Count, mean and sum of squared deviations of values that come in parts.

    Sums of a part are rounded once, so that they do not depend on the machine.
    """

    def __init__(self, *parts: npt.NDArray[Any]) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0
        for part in parts:
            self.add(part)

    def add(self, values: npt.NDArray[Any]) -> None:
        count = len(values)
        if count == 0:
            return
        mean = math.fsum(values.tolist()) / count
        with np.errstate(invalid="ignore"):  # infinite values deviate by NaN
            squares = math.fsum(np.square(values - mean).tolist())
        total, shift = self.count + count, mean - self.mean
        self._squares += squares + shift * shift * self.count * count / total
        self.mean = mean if self.count == 0 else self.mean + shift * count / total
        self.count = total

    @property
    def error(self) -> float:
        """The standard error of the mean; NaN for fewer than two values."""
        if self.count < 2:
            return math.nan
        return math.sqrt(self._squares / self.count / (self.count - 1))


@dataclass(frozen=True, eq=False)
class Score:
    """What score() found, an element for each token that was predicted.

    Attributes:
        tokens: int32, the tokens that were predicted.
        logprobs: float64, the natural log-probability of each.
        ranks: int32, how many tokens the model found likelier (of equals those of lower id).
        entropies: float64, of the distribution each was predicted from, in nats.
        reference_logprobs: float64, by the reference; None without one, as the next two.
        kl: float64, Kullback-Leibler divergence of the reference from the model, in nats: the mean
            of log p_reference - log p under p_reference.
        same_top: bool, whether both find the same token likeliest.
    """

    tokens: Ids
    logprobs: Values
    ranks: Ids
    entropies: Values
    reference_logprobs: Values | None = None
    kl: Values | None = None
    same_top: npt.NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def mean_logprob(self) -> float:
        return Moments(self.logprobs).mean

    @property
    def standard_error(self) -> float:
        """Of mean_logprob, as if tokens were independent. NaN for a single one."""
        return Moments(self.logprobs).error

    @property
    def perplexity(self) -> float:
        """exp(-mean_logprob)"""
        return exp(-self.mean_logprob)

    @property
    def perplexity_error(self) -> float:
        """perplexity * standard_error"""
        return self.perplexity * self.standard_error

    @property
    def mean_kl(self) -> float | None:
        return None if self.kl is None else Moments(self.kl).mean

    @property
    def agreement(self) -> float | None:
        """The share of tokens where both find the same one likeliest."""
        return None if self.same_top is None else float(self.same_top.mean())

    def __repr__(self) -> str:
        text = f"{len(self)} tokens, perplexity {self.perplexity:.4f} ± {self.perplexity_error:.4f}"
        if self.mean_kl is not None and self.agreement is not None:
            text += f", KL {self.mean_kl:.6f}, same top token {self.agreement:.2%}"
        return f"<gptoss.Score: {text}>"

    @staticmethod
    def join(parts: Sequence[Score]) -> Score:
        """One Score of consecutive ones, all with a reference or all without."""
        columns: dict[str, Any] = {}
        for field in fields(Score):
            values = [getattr(part, field.name) for part in parts]
            columns[field.name] = None if values[0] is None else np.concatenate(values)
        return Score(**columns)


def exp(x: float) -> float:
    """e^x, infinite where it overflows."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


class Scorer:
    """Scores windows of tokens on Generators of its own; a context manager that closes them.

    Args:
        model: the Model.
        reference: None, or a Model with the same vocabulary to compare with.
        max_context: tokens of a window at most.
        options: of both Generators.
    """

    def __init__(
        self, model: Model, reference: Model | None, max_context: int, **options: Any
    ) -> None:
        models = _require_models(model, reference)
        self._open = ExitStack()
        with ExitStack() as stack:
            self._generators = [
                stack.enter_context(Generator(each, max_context=max_context, **options))
                for each in models
            ]
            self._open = stack.pop_all()

    def score(self, tokens: Ids, first: int, progress: Progress | None = None) -> Score:
        """Scores tokens[first:], each in the context of all before it; first >= 1.

        progress: called with (done, total) tokens; may raise to stop.
        """
        num_rows = len(tokens) - 1  # the last token predicts nothing
        targets = tokens[1:].copy()
        targets[: first - 1] = -1
        floats = [np.empty(num_rows, np.float64) for _ in range(4)]
        ranks, same_top = np.empty(num_rows, np.int32), np.empty(num_rows, np.bool_)
        logprobs, entropies, reference_logprobs, kl = floats
        outs = (logprobs, ranks, entropies, reference_logprobs, kl, same_top.view(np.uint8))
        for generator in self._generators:
            generator.reset()
        generator, *others = self._generators
        reference = others[0] if others else None
        generator._core.score(
            tokens[:-1],
            targets,
            None if reference is None else reference._core,
            outs if reference is not None else (*outs[:3], None, None, None),
            _scaled(progress, len(self._generators)),
        )
        rows = slice(first - 1, None)
        score = Score(tokens[first:], logprobs[rows], ranks[rows], entropies[rows])
        if reference is None:
            return score
        compared = (reference_logprobs[rows], kl[rows], same_top[rows])
        return Score(score.tokens, score.logprobs, score.ranks, score.entropies, *compared)

    def close(self) -> None:
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _require_models(model: Model, reference: Model | None) -> list[Model]:
    models = [model] if reference is None else [model, reference]
    for name, value in zip(("model", "reference"), models, strict=False):
        if not isinstance(value, Model):
            raise ArgumentError(f"the {name} must be a gptoss.Model, not {value!r}")
    return models


def _scaled(progress: Progress | None, num_models: int) -> Progress | None:
    """progress in tokens, of calls that count the rows of all models."""
    if progress is None or not callable(progress):
        return progress
    return lambda done, total: progress(done // num_models, total // num_models)


def text_ids(model: Model, text: str | Tokens, reference: Model | None = None) -> tuple[Ids, bool]:
    """The ids of a text, behind the BOS token where the tokenizer adds one, and whether it does.
    Ids stay as they are.

    Raises ArgumentError if the reference's tokenizer makes other tokens of the text.
    """
    low, high = -(2**31), 2**31 - 1
    tokens = [require_integer("a token", i, low, high) for i in encode_prompt(text, model)]
    ids, tokenizer = np.array(tokens, np.int32), model._load_tokenizer()
    if not isinstance(text, str) or tokenizer is None:
        return ids, False
    other = None if reference is None else reference._load_tokenizer()
    if other is not None:
        require_equal(ids, np.array(other.encode(text), np.int32))
    opening = tokenizer.opening_ids
    return np.concatenate([np.array(opening, np.int32), ids]), bool(opening)


def require_equal(ids: Ids, reference_ids: Ids) -> None:
    """ArgumentError unless two tokenizers made the same of a text."""
    step = 1 << 16  # at a time, of arrays on disk
    for begin in range(0, max(len(ids), len(reference_ids)), step):
        ours, theirs = ids[begin : begin + step], reference_ids[begin : begin + step]
        if np.array_equal(ours, theirs):
            continue
        length = min(len(ours), len(theirs))
        differ = np.flatnonzero(ours[:length] != theirs[:length])
        place = begin + (int(differ[0]) if len(differ) else length)
        raise ArgumentError(
            f"the vocabularies differ: the reference's tokenizer makes other tokens of the text "
            f"than the model's, from number {place} on"
        )


def windows(num_tokens: int, max_context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, end, first token to score) of windows that score every token but the first once."""
    begin, first = 0, 1
    while first < num_tokens:
        end = min(begin + max_context, num_tokens)
        yield begin, end, first
        begin, first = begin + stride, end


@refuse_unknown_options
def score(
    model: Model,
    text: str | Tokens,
    *,
    max_context: int | None = None,
    stride: int | None = None,
    reference: Model | None = None,
    kv_dtype: str = "f16",
    progress: Progress | None = None,
) -> Score:
    """How likely the model finds a text: every token but the first, given those before it.

    Args:
        model: the Model.
        text: a text for the model's tokenizer, in which special tokens are plain text, or token
            ids. A text is put behind the BOS token where the tokenizer's files ask for one.
        max_context: tokens of context at most, by default 4096, or the models' limit if that is
            less.
        stride: a text longer than max_context is read in windows of so many tokens, each beginning
            `stride` tokens (by default half a window) after the one before, and scoring what that
            one did not. So every token is scored once and, after the first window, with
            max_context - stride tokens of context or more. The BOS token stands in place of a
            window's first token.
        reference: another Model with the same vocabulary, to compare with. Both compute at once.
        kv_dtype: as in Generator.
        progress: called with (done, total) tokens; may raise to stop.

    Logits take memory for 64 tokens at a time. Each value is the same bits for any window that
    begins at the same token, any number of threads, any instruction set.

    Raises ArgumentError for fewer than two tokens, for ids outside the vocabulary and for
    vocabularies that differ; NumericError for NaN logits.
    """
    models = _require_models(model, reference)
    tokens, has_bos = text_ids(model, text, reference)
    if len(tokens) < 2:
        raise ArgumentError(
            f"there are {len(tokens)} tokens to score; it takes 2, since the first is not predicted"
        )
    if max_context is None:
        max_context = min(_DEFAULT_CONTEXT, *(each.config.max_positions for each in models))
    max_context = require_integer("max_context", max_context, 2, 2**31 - 1)
    if stride is None:
        stride = max_context // 2
    stride = require_integer("stride", stride, 1, max_context - 1)
    with Scorer(model, reference, max_context, kv_dtype=kv_dtype) as scorer:
        spans = list(windows(len(tokens), max_context, stride))
        return _score_windows(scorer, tokens, has_bos, spans, progress)


def _score_windows(
    scorer: Scorer,
    tokens: Ids,
    has_bos: bool,
    spans: Sequence[tuple[int, int, int]],
    progress: Progress | None,
) -> Score:
    total, done, parts = sum(end - begin for begin, end, _ in spans), 0, []
    for begin, end, first in spans:
        window = tokens[begin:end].copy()
        if has_bos:
            window[0] = tokens[0]
        shifted = None if progress is None else _shifted(progress, done, total)
        parts.append(scorer.score(window, first - begin, shifted))
        done += end - begin
    if progress is not None:
        progress(total, total)
    return Score.join(parts)


def _shifted(progress: Progress, before: int, total: int) -> Progress:
    """progress of a part with `before` tokens before it."""
    if not callable(progress):
        return progress
    return lambda done, _: progress(before + done, total)
