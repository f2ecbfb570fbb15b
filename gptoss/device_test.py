"""Whether a device computes what the CPU does, activation by activation."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gptoss.generator import Generator
from gptoss.model import Model, Progress
from gptoss.placement import Size

# Largest difference of a row, relative to the row's largest magnitude (docs/numerics.md).
TOLERANCES = {"fp32": 2e-3, "fp16": 5e-2}

_TEXT = "What is 17 + 25? Once upon a time there was a small model that could add, and it said: "
_NUM_TOKENS = 24
_NUM_STEPS = 3  # of them: one by one, since many at once are computed otherwise

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TapDifference:
    """name: of the activation, or "logits". layer: None outside of layers. largest: the largest
    difference of a row, relative to the row's largest magnitude; NaN where one is not finite."""

    name: str
    layer: int | None
    largest: float


@dataclass
class DeviceComparison:
    """What compare_device found. num_tokens: that were fed; num_compared: of them, the rows before
    the first whose nearly equal experts were ranked otherwise, after which nothing can agree."""

    device: str
    precision: str
    tolerance: float
    num_tokens: int
    num_compared: int
    differences: list[TapDifference] = field(default_factory=list)

    @property
    def first_beyond(self) -> TapDifference | None:
        """The first in the order of computation that is beyond the tolerance."""
        beyond = (each for each in self.differences if not each.largest <= self.tolerance)
        return next(beyond, None)

    @property
    def passed(self) -> bool:
        return self.first_beyond is None and self.num_compared > 0


def relative_difference(actual: Array, expected: Array) -> float:
    """The largest difference of a row, relative to the row's largest magnitude."""
    ours, theirs = (
        array.reshape(len(array), -1).astype(np.float64) for array in (actual, expected)
    )
    if not np.isfinite(ours).all():
        return float("nan")
    scale = np.maximum(np.abs(theirs).max(axis=1), 1e-6)
    return float((np.abs(ours - theirs).max(axis=1) / scale).max())


def _tokens(model: Model) -> list[int]:
    tokenizer = model.tokenizer
    if tokenizer is not None:
        ids = [*tokenizer.opening_ids, *tokenizer.encode(_TEXT)][:_NUM_TOKENS]
        if len(ids) > _NUM_STEPS:
            return ids
    return list(np.random.default_rng(0).integers(0, model.config.vocab_size, _NUM_TOKENS))


def _run(model: Model, tokens: list[int], progress: Progress | None) -> dict[str, Array]:
    """All activations of all tokens, and the logits."""
    generator = Generator(model, max_context=len(tokens), kv_dtype="f32")
    generator.capture("*", keep="all")
    count = len(tokens) - _NUM_STEPS
    logits = [generator.prefill(tokens[:count], all_logits=True, progress=progress)]
    logits += [generator.step(token)[None].copy() for token in tokens[count:]]
    return {name: generator.taps[name] for name in generator.taps} | {
        "logits": np.concatenate(logits)
    }


def _nearly_equal(logits: Array, num_chosen: int, tolerance: float) -> bool:
    """Whether errors within the tolerance may rank the experts of a row otherwise."""
    ranked = np.sort(logits)[::-1][: num_chosen + 1].astype(np.float64)
    return bool((ranked[:-1] - ranked[1:]).min() <= 2 * tolerance * np.abs(logits).max())


def _compare(
    ours: dict[str, Array], theirs: dict[str, Array], result: DeviceComparison
) -> Iterator[TapDifference]:
    for name, expected in theirs.items():
        rows = result.num_compared
        if rows == 0:
            return
        actual, expected = ours[name][:rows], expected[:rows]
        parts = name.split(".")
        layer = int(parts[1]) if parts[0] == "layers" else None
        if not name.endswith("router_experts"):
            yield TapDifference(name, layer, relative_difference(actual, expected))
            continue
        for row in np.flatnonzero((actual != expected).any(axis=1)):
            logits = theirs[name.removesuffix("experts") + "logits"][row]
            if not _nearly_equal(logits, expected.shape[1], result.tolerance):
                yield TapDifference(name, layer, 1.0)
            result.num_compared = int(row)
            break


def compare_device(
    path: str | os.PathLike[str],
    device: str | Iterable[str],
    precision: str | None = None,
    loading: Progress | None = None,
    progress: Progress | None = None,
    gpu_memory: Size | Sequence[Size] | None = None,
) -> DeviceComparison:
    """Feeds the same tokens to a model on a device and on the CPU, some at once and some one by
    one, and compares every activation.

    Args:
        path, device, precision, gpu_memory: as of Model; the CPU computes with "fp32".
        loading: with bytes, while weights are brought to the device. progress: with tokens.
    """
    with Model(
        path, device=device, gpu_memory=gpu_memory, precision=precision, progress=loading
    ) as model:
        tokens = _tokens(model)
        ours = _run(model, tokens, progress)
        name, used = model.device, model.precision
    with Model(path) as model:
        theirs = _run(model, tokens, progress)
    tolerance = TOLERANCES.get(used, TOLERANCES["fp16"])
    result = DeviceComparison(name, used, tolerance, len(tokens), len(tokens))
    result.differences += _compare(ours, theirs, result)
    return result
