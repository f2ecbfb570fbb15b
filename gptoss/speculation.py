"""Speculation without loss: tokens that the text itself suggests are computed in one pass with the
token that is due, and used where they turn out to be the ones that are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gptoss.errors import ArgumentError, OutOfMemoryError, refuse_unknown_fields, require_integer

if TYPE_CHECKING:
    from gptoss.generator import Generator

_MAX_DRAFT = 256
_MAX_NGRAM = 64
_FIRST_DRAFT = 3
_MAX_PAUSE = 63  # tokens; a text that does not repeat itself pays for one wrong draft in so many


@refuse_unknown_fields
@dataclass(frozen=True)
class Speculation:
    """Settings of prompt-lookup drafting: what followed the latest earlier occurrence of the text's
    last n-gram may follow again. Longer n-grams are tried first.

    Attributes:
        draft_tokens: how many tokens are guessed at once, at most, from 1 to 256. Drafts grow as
            they come true, shrink as they fail, and pause where nothing comes true.
        max_ngram, min_ngram: lengths of the n-grams, in tokens.

    Raises ArgumentError for values out of range.
    """

    draft_tokens: int = 8
    max_ngram: int = 4
    min_ngram: int = 2

    def __post_init__(self) -> None:
        require_integer("draft_tokens", self.draft_tokens, 1, _MAX_DRAFT)
        require_integer("max_ngram", self.max_ngram, 1, _MAX_NGRAM)
        require_integer("min_ngram", self.min_ngram, 1, self.max_ngram)

    def draft(self, tokens: npt.NDArray[np.int32], count: int) -> npt.NDArray[Any]:
        """The count tokens that an earlier occurrence suggests after tokens; none without one."""
        ends = np.flatnonzero(tokens[:-1] == tokens[-1]) if count > 0 else np.empty(0, np.intp)
        latest = -1
        for length in range(1, min(self.max_ngram, len(tokens) - 1) + 1):
            ends = ends[ends >= length - 1]
            ends = ends[tokens[ends - (length - 1)] == tokens[-length]]
            if len(ends) == 0:
                break
            if length >= self.min_ngram:
                latest = int(ends[-1])
        # Where the occurrence reaches the end of the text, the draft goes on as it began.
        return tokens[:0] if latest < 0 else np.resize(tokens[latest + 1 :], count)


@dataclass(frozen=True, slots=True)
class SpeculationStats:
    """What speculation did since the Generator was made, counted over generate().

    Attributes:
        tokens: tokens fed after the first one that was drawn.
        passes: forward passes that took; as many as tokens without speculation.
        drafted: tokens that were guessed.
        accepted: those that were drawn then.
    """

    tokens: int = 0
    passes: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def acceptance_rate(self) -> float:
        """Of the tokens guessed, the part that was right; 0 if there were none."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_pass(self) -> float:
        return self.tokens / self.passes if self.passes else 0.0

    def since(self, earlier: SpeculationStats) -> SpeculationStats:
        """What was done after `earlier` was read."""
        return SpeculationStats(
            *(getattr(self, name) - getattr(earlier, name) for name in self.__slots__)
        )


class Drafter:
    """Drafts for one Generator, and learns from what became of the drafts."""

    def __init__(self, settings: Speculation) -> None:
        self.settings = settings
        self._length = min(_FIRST_DRAFT, settings.draft_tokens)  # of the next draft
        self._pause = 0  # tokens to wait after a draft that failed as a whole
        self._wait = 0
        self._num_drafted = self._num_right = 0  # of the latest draft
        self._tokens = self._passes = self._drafted = self._accepted = 0

    @staticmethod
    def of(speculate: Speculation | bool | None) -> Drafter | None:
        """What Generator(speculate=...) asks for."""
        if speculate is None or speculate is False:
            return None
        settings = Speculation() if speculate is True else speculate
        if not isinstance(settings, Speculation):
            raise ArgumentError(
                f"speculate must be True, False or a gptoss.Speculation, not {settings!r}"
            )
        return Drafter(settings)

    @property
    def stats(self) -> SpeculationStats:
        return SpeculationStats(self._tokens, self._passes, self._drafted, self._accepted)

    def prepare(self, generator: Generator, num_left: int) -> None:
        """Before the token that generate() drew last is fed: has its row and those of a draft
        computed, if they are not and a draft promises to pay. num_left: tokens yet to be drawn."""
        self._tokens += 1
        if generator._core.next_ahead == generator._pending:
            self._num_right += 1
            self._accepted += 1
            return
        self._learn()
        self._passes += 1
        if self._wait > 0:
            self._wait -= 1
            return
        room = generator.max_context - generator.position - 1
        count = min(self._length, num_left - 1, room)
        draft = self.settings.draft(generator.tokens, count)
        if len(draft) == 0:
            return
        try:
            generator._taps.require_room(1 + len(draft))
            generator._core.look_ahead([generator._pending, *draft.tolist()])
        except OutOfMemoryError:
            return  # there is enough for one row, perhaps
        self._num_drafted = len(draft)
        self._drafted += len(draft)

    def _learn(self) -> None:
        if self._num_drafted == 0:
            return
        if self._num_right == 0:
            self._pause = min(2 * self._pause + 1, _MAX_PAUSE)
            self._length = max(1, self._length // 2)
        else:
            self._pause = 0
            all_right = self._num_right == self._num_drafted
            length = 2 * self._num_right if all_right else self._num_right + 1
            self._length = min(length, self.settings.draft_tokens)
        self._wait = self._pause
        self._num_drafted = self._num_right = 0
