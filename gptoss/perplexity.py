"""Perplexity and divergence of long texts, as llama.cpp's llama-perplexity defines them.

tokens, has_bos = encode_pieces(model.tokenizer, pieces)
chunks = Chunks.cut(len(tokens), context=512)
statistics = Statistics()
with Scorer(model, None, chunks.size) as scorer:
    for start in chunks:
        statistics.add(scorer.score(chunks.tokens(tokens, start, has_bos), chunks.first))
print(statistics.perplexity)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gptoss.errors import ArgumentError, require_integer
from gptoss.score import Ids, Moments, Score, Values, exp, require_equal
from gptoss.spool import Spool
from gptoss.tokenizer import StreamEncoder, Tokenizer

KL_PERCENTILES = (99.9, 99, 95, 90, 50, 10, 5, 1, 0.1)
DELTA_PERCENTILES = (99.9, 99, 95, 90, 75, 50, 25, 10, 5, 1, 0.1)


def encode_pieces(
    tokenizer: Tokenizer, pieces: Iterable[str], reference: Tokenizer | None = None
) -> tuple[Ids, bool]:
    """The ids of a text, mapped from a temporary file, behind the BOS token where the tokenizer
    adds one, and whether it does. Memory depends on the size of the pieces, not on their number
    (see StreamEncoder).

    Raises ArgumentError if the reference, another tokenizer, makes other tokens of the text.
    """
    tokenizers = [tokenizer] if reference is None else [tokenizer, reference]
    writers = [(StreamEncoder(each), Spool(np.int32)) for each in tokenizers]
    opening = tokenizer.opening_ids
    writers[0][1].add(opening)
    for piece in pieces:
        for encoder, spool in writers:
            spool.add(encoder.push(piece))
    for encoder, spool in writers:
        spool.add(encoder.flush())
    ids, *others = (spool.array() for _, spool in writers)
    for theirs in others:
        require_equal(ids[len(opening) :], theirs)
    return ids, bool(opening)


@dataclass(frozen=True)
class Chunks:
    """Where the chunks of a text begin (iterating tells), and what of each is scored.

    Attributes:
        count: how many there are.
        size: tokens of each.
        step: from the beginning of one to that of the next.
        first: the first token of each that is scored; the last scored is its last.
        begins_with_bos: whether a BOS token takes the place of each chunk's first token.
    """

    count: int
    size: int
    step: int
    first: int
    begins_with_bos: bool

    @staticmethod
    def cut(
        num_tokens: int, context: int, stride: int | None = None, max_chunks: int | None = None
    ) -> Chunks:
        """Without stride: chunks of `context` tokens, one behind the other, what is left dropped;
        tokens context // 2 + 1 and on are scored. With stride: chunks of context + stride // 2
        tokens, stride apart; the last `stride` tokens of each are scored.

        Raises ArgumentError if there are not tokens enough for one chunk.
        """
        context = require_integer("the context", context, 3, 2**31 - 1)
        if stride is None:
            size = step = context
            first, needed, count = context // 2 + 1, size, num_tokens // context
        else:
            step = require_integer("the stride", stride, 1, context)
            size = context + step // 2
            # The chunk that would end with the text is the last one that is left out.
            first, needed, count = size - step, size + 1, -((size - num_tokens) // step)
        if num_tokens < needed:
            raise ArgumentError(
                f"the text has {num_tokens:,} tokens, and one chunk takes {needed:,}: choose a "
                "longer text or a smaller context"
            )
        if max_chunks is not None:
            count = min(count, require_integer("the number of chunks", max_chunks, 1))
        return Chunks(count, size, step, first, begins_with_bos=stride is None)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(range(0, self.count * self.step, self.step))

    @property
    def num_scored(self) -> int:
        return self.count * (self.size - self.first)

    def tokens(self, tokens: Ids, start: int, has_bos: bool) -> Ids:
        """The tokens of one chunk. has_bos: whether tokens[0] is a BOS token."""
        chunk = tokens[start : start + self.size].copy()
        if has_bos and self.begins_with_bos:
            chunk[0] = tokens[0]
        return chunk


class Estimate(NamedTuple):
    """A mean, or what is computed from means, and its standard error."""

    value: float
    error: float


class Statistics:
    """Statistics of scored tokens that come in parts, in memory that does not depend on their
    number. With a reference two numbers a token are kept for the percentiles, in temporary files.
    """

    def __init__(self) -> None:
        self.loss = Moments()
        self.has_reference = False
        self._reference_loss, self._log_ratio = Moments(), Moments()
        self._kl, self._delta, self._squared_delta = Moments(), Moments(), Moments()
        self._num_same_top = 0
        self._spools: dict[str, Spool] = {}

    def add(self, score: Score) -> None:
        self.loss.add(-score.logprobs)
        if score.reference_logprobs is None or score.kl is None or score.same_top is None:
            return
        self.has_reference = True
        self._reference_loss.add(-score.reference_logprobs)
        with np.errstate(invalid="ignore"):  # -inf - -inf
            self._log_ratio.add(score.reference_logprobs - score.logprobs)
        delta = np.exp(score.logprobs) - np.exp(score.reference_logprobs)
        self._kl.add(score.kl)
        self._delta.add(delta)
        self._squared_delta.add(delta * delta)
        self._num_same_top += int(score.same_top.sum())
        for name, values in (("kl", score.kl), ("delta", delta)):
            if name not in self._spools:
                self._spools[name] = Spool(np.float64)
            self._spools[name].add(values)

    @property
    def num_tokens(self) -> int:
        return self.loss.count

    @property
    def perplexity(self) -> Estimate:
        return _exp(self.loss)

    @property
    def reference_perplexity(self) -> Estimate:
        return _exp(self._reference_loss)

    @property
    def log_ratio(self) -> Estimate:
        """ln(perplexity / the reference's). The error is that of paired values."""
        return Estimate(self._log_ratio.mean, self._log_ratio.error)

    @property
    def ratio(self) -> Estimate:
        return _exp(self._log_ratio)

    @property
    def difference(self) -> Estimate:
        """perplexity - the reference's."""
        ours, theirs = self.perplexity.value, self.reference_perplexity.value
        # The variances of both less their covariance, without its cancellation.
        apart = ours * self.loss.error**2 - theirs * self._reference_loss.error**2
        variance = (ours - theirs) * apart + ours * theirs * self._log_ratio.error**2
        return Estimate(ours - theirs, math.sqrt(max(variance, 0.0)))

    @property
    def correlation(self) -> float:
        """Of the two log-perplexities. NaN where one of them is constant."""
        product = self.loss.error * self._reference_loss.error
        return self._covariance / product if product > 0 else math.nan

    @property
    def _covariance(self) -> float:
        errors = self.loss.error, self._reference_loss.error, self._log_ratio.error
        return (errors[0] ** 2 + errors[1] ** 2 - errors[2] ** 2) / 2

    @property
    def kl(self) -> Estimate:
        return Estimate(self._kl.mean, self._kl.error)

    @property
    def delta(self) -> Estimate:
        """Of the probability of the right token: the model's less the reference's."""
        return Estimate(self._delta.mean, self._delta.error)

    @property
    def rms_delta(self) -> Estimate:
        rms = math.sqrt(self._squared_delta.mean)
        return Estimate(rms, 0.5 / rms * self._squared_delta.error if rms > 0 else 0.0)

    @property
    def same_top(self) -> Estimate:
        """The share of tokens where both models find the same one likeliest."""
        share = self._num_same_top / self.num_tokens
        count = self.num_tokens - 1
        return Estimate(share, math.sqrt(share * (1 - share) / count) if count else math.nan)

    def kl_distribution(self) -> dict[str, float]:
        """Minimum, maximum and percentiles by name: "max", "99.9%", ..."""
        return _distribution(self._spools["kl"], KL_PERCENTILES)

    def delta_distribution(self) -> dict[str, float]:
        return _distribution(self._spools["delta"], DELTA_PERCENTILES)

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON types; what is not finite is None."""
        facts: dict[str, Any] = {"scored": self.num_tokens, "perplexity": _pair(self.perplexity)}
        facts["mean_logprob"] = _pair(Estimate(-self.loss.mean, self.loss.error))
        if not self.has_reference:
            return facts
        names = ("reference_perplexity", "log_ratio", "ratio", "difference", "kl", "delta")
        facts |= {name: _pair(getattr(self, name)) for name in (*names, "rms_delta", "same_top")}
        facts["correlation"] = _finite(self.correlation)
        for name in ("kl", "delta"):
            values = getattr(self, f"{name}_distribution")()
            facts[f"{name}_distribution"] = {key: _finite(v) for key, v in values.items()}
        return facts


def _exp(loss: Moments) -> Estimate:
    value = exp(loss.mean)
    return Estimate(value, value * loss.error)


def _distribution(spool: Spool, percentiles: tuple[float, ...]) -> dict[str, float]:
    values: Values = spool.array()
    values.sort()  # in the file
    named = {f"{percent:g}%": _percentile(values, percent) for percent in percentiles}
    return {"max": float(values[-1]), **named, "min": float(values[0])}


def _percentile(values: Values, percent: float) -> float:
    """Interpolates between neighbours, which may be infinite. values: ascending."""
    place = percent / 100 * (len(values) - 1)
    low = float(values[int(place)])
    high = float(values[min(int(place) + 1, len(values) - 1)])
    weight = place - int(place)
    return low if weight == 0 or low == high else low + (high - low) * weight


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _pair(estimate: Estimate) -> dict[str, float | None]:
    return {"value": _finite(estimate.value), "error": _finite(estimate.error)}
