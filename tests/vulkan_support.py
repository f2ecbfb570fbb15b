"""What the tests of the Vulkan back end share: whether there is a device, and comparing it with the
CPU tap by tap."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakSet

import numpy as np
import pytest
from support import Array

import gptoss
from gptoss import _core


def _why_none() -> str | None:
    try:
        return None if _core.vulkan_devices() else "there is no Vulkan device"
    except gptoss.Error as error:
        return str(error)


_REASON = _why_none()
needs_vulkan = pytest.mark.skipif(_REASON is not None, reason=f"no Vulkan device: {_REASON}")

# Largest difference of a tap's row, relative to the row's largest magnitude. Sums are float32 in
# both, in other orders. A key or a value near the middle of two float16 numbers may become the one
# here and the other there, which float32 caches cannot show.
TOLERANCE = {"f32": 1e-4, "f16": 4e-3}
# Router logits that are nearer than this may be ranked either way.
TIE = 1e-2


def difference(actual: Array, expected: Array) -> float:
    """The largest of all rows, relative to the row's largest magnitude."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (actual, expected))
    assert np.isfinite(a).all() and a.shape == b.shape
    scale = np.maximum(np.abs(b).max(axis=1), 1e-6)
    return float((np.abs(a - b).max(axis=1) / scale).max(initial=0))


def assert_close(actual: Array, expected: Array, tolerance: float, what: str = "") -> None:
    found = difference(actual, expected)
    assert found <= tolerance, f"{what}: relative difference {found:.2e}, allowed {tolerance:.0e}"


def assert_same_taps(
    ours: gptoss.Generator, theirs: gptoss.Generator, tolerance: float, what: str = ""
) -> bool:
    """Compares all that both captured, in the order of computation, and tells whether routes are
    the same. Rows from the first on whose near ties the router broke differently say nothing and
    are left out."""
    end: int | None = None
    assert list(ours.taps) == list(theirs.taps) and len(theirs.taps) > 8
    for name in theirs.taps:
        actual, expected = ours.taps[name][:end], theirs.taps[name][:end]
        if not name.endswith("router_experts"):
            assert_close(actual, expected, tolerance, f"{what}, {name}")
            continue
        assert actual.dtype == expected.dtype == np.int32
        for row in np.flatnonzero((actual != expected).any(axis=1)):
            logits = theirs.taps[name.replace("experts", "logits")][row]
            ranked = np.sort(logits)[::-1][: expected.shape[1] + 1]
            gap = (ranked[:-1] - ranked[1:]).min()
            assert gap < TIE * np.abs(logits).max(), f"{what}, {name}, row {row}"
            end = int(row)
            break
        if end == 0:
            break
    return end is None


# Generators whose caches differ since the router broke a near tie differently.
_parted: WeakSet[gptoss.Generator] = WeakSet()


def feed_both(
    pair: Sequence[gptoss.Generator], tokens: Sequence[int], tolerance: float, what: str
) -> None:
    """The same tokens, with all taps, to both; logits and taps are to agree, unless a near tie
    before has parted the two."""
    ours, theirs = pair
    for generator in pair:
        generator.capture("*")
        generator.prefill(list(tokens))
    if ours in _parted:
        print(f"{what}: not compared")
    elif assert_same_taps(ours, theirs, tolerance, what):
        assert_close(ours.logits[None], theirs.logits[None], tolerance, f"{what}, logits")
    else:
        print(f"{what}: a near tie of the router")
        _parted.add(ours)
