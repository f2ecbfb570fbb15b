"""What the tests of the engine share: generators, tokens, comparing bits, Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gptoss

Array = NDArray[Any]


def open_generator(model: gptoss.Model, max_context: int, **options: Any) -> gptoss.Generator:
    """A generator that may go beyond the model's positions, without the warning that it does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gptoss.Generator(model, max_context=max_context, **options)


def random_tokens(model: gptoss.Model, count: int, seed: int = 0) -> list[int]:
    rng = np.random.default_rng(seed)
    return [int(token) for token in rng.integers(0, model.config.vocab_size, count)]


@contextmanager
def ctrl_c_after(seconds: float) -> Iterator[None]:
    """For a block of work that Ctrl-C, which comes so long after it began, is to stop."""
    sender = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    sender.start()
    with pytest.raises(KeyboardInterrupt):
        yield
        time.sleep(10)  # it was done before the signal
    sender.join()


def feed(generator: gptoss.Generator, tokens: list[int], sizes: Iterable[int]) -> Array:
    """Every token's logits (n, vocab_size), fed by calls of these sizes, the last one repeated."""
    rows, at, size = [], 0, 1
    sizes = iter(sizes)
    while at < len(tokens):
        size = next(sizes, size)
        rows.append(generator.prefill(tokens[at : at + size], all_logits=True))
        at += size
    return np.concatenate(rows)


def step_through(generator: gptoss.Generator, tokens: list[int]) -> Array:
    return np.stack([generator.step(token).copy() for token in tokens])


def assert_same_bits(actual: Array, expected: Array, what: str = "") -> None:
    """Equal to the last bit; says where the first difference is and how many there are."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype, what
    unsigned = f"u{actual.itemsize}"
    different = np.ascontiguousarray(actual).view(unsigned) != np.ascontiguousarray(expected).view(
        unsigned
    )
    if different.any():
        first = tuple(int(i) for i in np.argwhere(different)[0])
        raise AssertionError(
            f"{what}: {different.sum()} of {different.size} values differ, the first at {first}: "
            f"{actual[first]!r} instead of {expected[first]!r}"
        )


def conditioning(trace: dict[str, Array], centred: bool = False) -> float:
    """What norms of a reference's activations make of errors, 1 for all but narrow models.

    A norm divides a row by its root mean square (centred: by its deviation), so errors of the
    size of the largest entries grow where a row has nearly cancelled. With dozens of entries none
    does; with two, by chance, one is a hundredth of the others.
    """
    worst = 16.0
    for name, x in trace.items():
        if name.endswith(("embedding", "residual")):
            rows = x - x.mean(axis=-1, keepdims=True) if centred else x
            spread = np.sqrt((rows * rows).mean(axis=-1) + 1e-6)
            worst = max(worst, float(np.abs(x).max() / spread.min()))
    return worst / 16
