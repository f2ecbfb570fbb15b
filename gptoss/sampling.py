"""How the next token is chosen."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gptoss import _core
from gptoss.errors import ArgumentError, refuse_unknown_fields, require_integer

_MAX_TOKEN = 2**31 - 1
_MAX_SEED = 2**64 - 1


class Draw(NamedTuple):
    """A token that was drawn, and its log-probability: log-softmax of the logits before any setting
    changed them."""

    token: int
    logprob: float


@refuse_unknown_fields
@dataclass(frozen=True)
class Sampling:
    """Settings of one way to draw tokens. Steps in order: logit bias, penalties, temperature,
    top-k, top-p, min-p.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token, ties to the lowest id.
        top_k: keeps the k most likely tokens; 0 keeps all.
        top_p: keeps the fewest tokens whose probabilities reach p; 1 keeps all.
        min_p: keeps tokens at least min_p times as likely as the most likely one; 0 keeps all.
        repetition_penalty: divides positive logits of tokens that occurred and multiplies negative
            ones; 1 is off.
        frequency_penalty: subtracted from a token's logit once for each time it occurred; 0 is off.
        presence_penalty: subtracted once if the token occurred; 0 is off.
        seed: from 0 to 2**64 - 1. Draws are a function of the logits, the tokens so far and the
            seed: the same seed gives the same text. None draws a seed once per generation, which
                Generation.seed tells.
        logit_bias: added to the logits of tokens, as a mapping from token to bias; -inf bans a
            token. Kept as a tuple of (token, bias) pairs in the order of tokens.

    Raises ArgumentError for values out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    logit_bias: Mapping[int, float] | Iterable[tuple[int, float]] | None = None

    def __post_init__(self) -> None:
        self._check("temperature", lambda v: v >= 0, "0 or more")
        self._check("top_p", lambda v: 0 <= v <= 1, "from 0 to 1")
        self._check("min_p", lambda v: 0 <= v <= 1, "from 0 to 1")
        self._check("repetition_penalty", lambda v: v > 0, "above 0")
        self._check("frequency_penalty", lambda v: True, "finite")
        self._check("presence_penalty", lambda v: True, "finite")
        self._set("top_k", require_integer("top_k", self.top_k, 0, _MAX_TOKEN))
        if self.seed is not None:
            self._set("seed", require_integer("seed", self.seed, 0, _MAX_SEED))
        self._set("logit_bias", _bias_pairs(self.logit_bias))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check(self, name: str, in_range: Callable[[float], bool], bound: str) -> None:
        value = _number(name, getattr(self, name))
        if (
            not math.isfinite(value)
            or abs(value) > float(np.finfo(np.float32).max)
            or not in_range(value)
        ):
            raise ArgumentError(f"{name} must be {bound}, not {value:g}")
        self._set(name, value)

    def with_seed(self) -> Sampling:
        """These settings with a seed: their own, or one drawn now."""
        if self.seed is not None:
            return self
        return replace(self, seed=secrets.randbits(32))

    def draw(self, logits: npt.ArrayLike, tokens: npt.ArrayLike = ()) -> Draw:
        """Draws a token. Without a seed a new one is drawn each time.

        Args:
            logits: (vocab,) float32, not changed.
            tokens: the tokens so far, for the penalties; their number is also the position the draw
                belongs to.

        Raises NumericError if a logit is NaN.
        """
        pairs: Any = self.logit_bias
        token, logprob = _core.sample(
            np.require(logits, np.float32, ["C", "A"]),
            np.require(tokens, np.int32, ["C", "A"]),
            self.temperature,
            self.top_k,
            self.top_p,
            self.min_p,
            self.repetition_penalty,
            self.frequency_penalty,
            self.presence_penalty,
            secrets.randbits(32) if self.seed is None else self.seed,
            np.array([token for token, _ in pairs], np.int32),
            np.array([bias for _, bias in pairs], np.float32),
        )
        return Draw(token, logprob)


def _number(name: str, value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise ArgumentError(f"{name} must be a number, not {value!r}") from None


def _bias_pairs(
    bias: Mapping[int, float] | Iterable[tuple[int, float]] | None,
) -> tuple[tuple[int, float], ...]:
    try:
        pairs = dict(bias or ())
    except (TypeError, ValueError):
        raise ArgumentError(f"logit_bias must map tokens to numbers, not be {bias!r}") from None
    checked: dict[int, float] = {}
    for token, value in pairs.items():
        index = require_integer("a token in logit_bias", token, 0, _MAX_TOKEN)
        number = _number(f"logit_bias of token {index}", value)
        if math.isnan(number) or number == math.inf:
            raise ArgumentError(f"logit_bias of token {index} must be finite or -inf, not {number}")
        checked[index] = number
    return tuple(sorted(checked.items()))


def require_sampling(value: Sampling) -> Sampling:
    """value, or ArgumentError if it is no Sampling."""
    if not isinstance(value, Sampling):
        raise ArgumentError(
            f"sampling must be a gptoss.Sampling, such as Sampling(temperature=0.8), not {value!r}"
        )
    return value
