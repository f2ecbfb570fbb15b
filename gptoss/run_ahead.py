"""Decoding on a device that guesses tokens: it computes several in a row, each from its guess at
the one before, without waiting for the host, which draws as it always does, from one row while the
device computes the next. A guess is what will be drawn but for the rounding of sums, so next to
none is wrong, and one that is costs only time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gptoss.errors import OutOfMemoryError
from gptoss.sampling import Draw, Sampling

if TYPE_CHECKING:
    from gptoss.generator import Generator

_MAX_TOKENS = 8
# Tokens that come in one go may take so long, in seconds: people read along, may press Ctrl-C, and
# the last tokens computed are in vain. A device that is slower than that gains nothing, either.
_MAX_SECONDS = 0.03


def can_guess(sampling: Sampling) -> bool:
    """Whether a device can tell what these settings will draw."""
    return (
        sampling.top_k == 0
        and sampling.top_p == 1
        and sampling.repetition_penalty == 1
        and sampling.frequency_penalty == 0
        and sampling.presence_penalty == 0
        and not sampling.logit_bias
    )


class RunAhead:
    """How far to run ahead of one generation. sampling: with a seed, of which can_guess is true."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._length = 2
        self._first = 0  # the position of the first draw
        self._draws: list[tuple[int, float]] = []
        self._fastest = 0.0  # seconds a token took at least; the first passes make pipelines

    def prepare(self, generator: Generator, num_left: int) -> None:
        """Before the token that was drawn last is fed: has its row and some of those that follow
        computed, unless they are. num_left: tokens yet to be drawn."""
        core, token = generator._core, generator._pending
        if core.next_ahead == token or token is None:
            return
        self._draws = []
        count = min(self._length, num_left)
        if self._fastest > 0:  # of a turn, not the latest: any may be held up
            count = min(count, int(_MAX_SECONDS / self._fastest))
        if count < 2:
            return
        start = time.perf_counter()
        try:
            generator._taps.require_room(count)
            self._first = generator.position + 1
            self._draws = core.run_ahead(
                token, count, self._sampling.temperature, self._sampling.min_p, self._sampling.seed
            )
        except OutOfMemoryError:
            return  # there is enough for one row, perhaps
        seconds = (time.perf_counter() - start) / count
        if self._length > 2:
            self._fastest = min(self._fastest or seconds, seconds)
        self._length = min(2 * self._length, _MAX_TOKENS)

    def drawn(self, generator: Generator) -> Draw | None:
        """What was drawn from the logits that the Generator has, if that was computed ahead."""
        index = generator.position - self._first
        return Draw(*self._draws[index]) if 0 <= index < len(self._draws) else None
