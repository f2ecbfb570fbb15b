"""How far the weights of two models are from each other, tensor by tensor."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gptoss.conversion import Progress
from gptoss.errors import FormatError, did_you_mean, refuse_unknown_options
from gptoss.weights import Source, Weight, in_order


@dataclass(frozen=True)
class TensorError:
    """b against a, of one weight.

    name: llama.cpp's. shape: in elements. formats: of a and of b. max_abs: the largest difference.
    relative_rms: root mean square of b - a over that of a; 0 if both are zero, infinite if a alone
    is. cosine: of the angle between them; NaN if one is zero. NaN anywhere makes all three NaN.
    """

    name: str
    shape: tuple[int, ...]
    formats: tuple[str, str]
    max_abs: float
    relative_rms: float
    cosine: float


@refuse_unknown_options
def compare(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[TensorError]:
    """The error of b's weights against a's, in the order of a's, in whatever layouts and formats.

    Sums are in double; memory use does not depend on the models' sizes.

    progress: called with (done, total) bytes of a; may raise to stop. FormatError if a weight is in
    one alone or of another shape; FileError.
    """
    pairs = list(_pairs(Source(a).weights(), Source(b).weights(), str(a), str(b)))
    total, done = sum(first.num_bytes for first, _ in pairs), 0
    sums, largest = np.zeros((len(pairs), 3)), np.zeros(len(pairs))
    for index, squares, difference, num_bytes in in_order(_jobs(pairs), threads):
        sums[index] += squares
        largest[index] = np.maximum(largest[index], difference)  # which passes NaN on
        done += num_bytes
        if progress is not None:
            progress(done, total)
    return [
        _result(*pair, squares.tolist(), float(difference))
        for pair, squares, difference in zip(pairs, sums, largest, strict=True)
    ]


def _pairs(
    firsts: list[Weight], seconds: list[Weight], a: str, b: str
) -> Iterator[tuple[Weight, Weight]]:
    by_name = {weight.name: weight for weight in seconds}
    for first in firsts:
        second = by_name.pop(first.name, None)
        if second is None:
            hint = did_you_mean(first.name, by_name)
            raise FormatError(
                f"{b} has no weight {first.name}, which {a} has{hint}", file=b, tensor=first.name
            )
        if first.shape != second.shape:
            raise FormatError(
                f"{first.name} has the shape {first.shape} in {a}, but {second.shape} in {b}",
                file=b,
                tensor=first.name,
                expected=str(first.shape),
                found=str(second.shape),
            )
        yield first, second
    if by_name:
        name = next(iter(by_name))
        raise FormatError(f"{a} has no weight {name}, which {b} has", file=a, tensor=name)


_Sums = tuple[int, npt.NDArray[np.float64], float, int]


def _jobs(pairs: list[tuple[Weight, Weight]]) -> Iterator[Callable[[], _Sums]]:
    for index, (first, second) in enumerate(pairs):
        for pieces in zip(first.pieces(), second.pieces(), strict=True):
            yield functools.partial(_sums, index, *pieces)


def _sums(index: int, first: Weight, second: Weight) -> _Sums:
    """The index; squares of a, of b, of the difference, summed; the largest difference; bytes of
    a."""
    a, b = (weight.floats().astype(np.float64).ravel() for weight in (first, second))
    with np.errstate(invalid="ignore"):
        difference = np.abs(b - a)
        squares = np.array([a @ a, b @ b, difference @ difference])
    return index, squares, float(difference.max(initial=0.0)), first.num_bytes


def _result(first: Weight, second: Weight, squares: list[float], largest: float) -> TensorError:
    of_a, of_b, of_difference = squares
    if of_a > 0 or math.isnan(of_difference):
        relative = math.sqrt(of_difference / of_a) if of_a else math.nan
    else:
        relative = math.inf if of_difference > 0 else 0.0
    # From the difference, so that it is exactly 1 for equal weights.
    product = math.sqrt(of_a * of_b)
    cosine = (of_a + of_b - of_difference) / 2 / product if product else math.nan
    formats = (first.format, second.format)
    return TensorError(first.name, first.shape, formats, largest, relative, cosine)
