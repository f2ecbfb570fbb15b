"""exp, log, sine and cosine of the engine against NumPy's long double, and the rotary tables."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import pytest
import reference
from kernel_support import expf
from numpy.typing import NDArray

from gptoss import _core

Array = NDArray[Any]

needs_long_double = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant <= np.finfo(np.float64).nmant, reason="long double is double here"
)


def errors_in_ulp(actual: Array, exact: Array) -> Array:
    info = np.finfo(actual.dtype)
    magnitude = np.maximum(np.abs(exact), np.longdouble(info.smallest_normal))
    ulp = np.exp2(np.floor(np.log2(magnitude)) - info.nmant)
    return np.abs(actual.astype(np.longdouble) - exact) / ulp


def exp_log(x: Array) -> tuple[Array, Array]:
    exp, log = np.empty_like(x), np.empty_like(x)
    _core.math_exp_log(x, exp, log)
    return exp, log


def sincos(x: Array) -> tuple[Array, Array]:
    x = np.asarray(x, np.float32)
    sine, cosine = np.empty(x.shape), np.empty(x.shape)
    _core.math_sincos(x, sine, cosine)
    return sine, cosine


# ---- single precision ----


def test_expf_over_the_whole_range() -> None:
    x = np.arange(0, 2**32, 997, dtype=np.uint64).astype(np.uint32).view(np.float32)
    result, is_nan = expf(x), np.isnan(x)
    assert np.isnan(result[is_nan]).all()
    with np.errstate(over="ignore"):
        exact = np.exp(x[~is_nan].astype(np.float64))
        rounded = exact.astype(np.float32)
    finite = np.isfinite(rounded)
    assert (np.isfinite(result[~is_nan]) == finite).all()
    assert errors_in_ulp(result[~is_nan][finite], exact[finite].astype(np.longdouble)).max() < 0.9


def test_expf_at_the_edges() -> None:
    x = np.array([0, -0.0, np.inf, -np.inf, 88.72283, 88.72284, -87.33655, -103.97, -103.98, -200])
    result = expf(x)
    assert result[0] == result[1] == 1
    assert result[2] == np.inf and result[3] == 0
    assert np.isfinite(result[4]) and result[5] == np.inf
    assert result[7] == np.float32(1e-45) and result[8] == 0 and result[9] == 0


def test_expf_is_monotone_near_zero() -> None:
    x = np.linspace(-1, 1, 400_001, dtype=np.float32)
    assert (np.diff(expf(x)) >= 0).all()


# ---- double precision ----


@needs_long_double
@pytest.mark.parametrize("low, high", [(-745, 709.7), (-1, 1), (-40, 0), (-745.1, -708)])
def test_exp(low: float, high: float) -> None:
    x = np.random.default_rng(1).uniform(low, high, 200_000)
    exp, _ = exp_log(x)
    assert errors_in_ulp(exp, np.exp(x.astype(np.longdouble))).max() < 0.95


@needs_long_double
def test_log() -> None:
    rng = np.random.default_rng(2)
    cases = [
        rng.integers(1, 0x7FF0000000000000, 200_000).view(np.float64),
        rng.integers(1, 0x0010000000000000, 20_000).view(np.float64),  # subnormal
        1 + rng.uniform(-0.3, 0.5, 200_000),
        1 + rng.uniform(-1e-6, 1e-6, 100_000),
    ]
    x = np.concatenate(cases)
    _, log = exp_log(x)
    assert errors_in_ulp(log, np.log(x.astype(np.longdouble))).max() < 0.95


def test_exp_and_log_at_the_edges() -> None:
    x = np.array([0.0, -0.0, 1.0, np.inf, -np.inf, np.nan, -1.0, 709.78, 709.79, -745.13, -745.14])
    exp, log = exp_log(x)
    assert exp[0] == exp[1] == 1
    assert exp[3] == np.inf and exp[4] == 0 and np.isnan(exp[5])
    assert np.isfinite(exp[7]) and exp[8] == np.inf
    assert exp[9] == 5e-324 and exp[10] == 0
    assert log[0] == log[1] == -np.inf and log[2] == 0 and log[3] == np.inf
    assert np.isnan(log[[4, 5, 6]]).all()


@needs_long_double
@pytest.mark.parametrize("limit", [1.0, 100.0, 131072.0, 2.0**31])
def test_sincos(limit: float) -> None:
    x = np.random.default_rng(3).uniform(-limit, limit, 200_000).astype(np.float32)
    sine, cosine = sincos(x)
    assert errors_in_ulp(sine, np.sin(x.astype(np.longdouble))).max() < 0.95
    assert errors_in_ulp(cosine, np.cos(x.astype(np.longdouble))).max() < 0.95


@needs_long_double
def test_sincos_near_multiples_of_half_pi() -> None:
    n = np.concatenate(
        [np.arange(1, 100_000), np.random.default_rng(4).integers(1, 2**30, 100_000)]
    )
    x = (n * (np.pi / 2)).astype(np.float32)
    sine, cosine = sincos(x)
    assert errors_in_ulp(sine, np.sin(x.astype(np.longdouble))).max() < 0.95
    assert errors_in_ulp(cosine, np.cos(x.astype(np.longdouble))).max() < 0.95


def test_sincos_at_the_edges() -> None:
    sine, cosine = sincos(np.array([0.0, np.inf, -np.inf, np.nan, 2.0**31, 2.0**31 + 256]))
    assert sine[0] == 0 and cosine[0] == 1
    assert np.isnan(sine[[1, 2, 3, 5]]).all() and np.isnan(cosine[[1, 2, 3, 5]]).all()
    assert np.isfinite(sine[4]) and np.isfinite(cosine[4])


# Of expf, exp, log, sine and cosine over the grid below, wherever it runs.
CRC = [421770684, 3910908918, 4283250259, 4266007245, 3089507032]


def test_every_machine_has_these_bits() -> None:
    grid = np.arange(-200, 200, 0.37)
    exp, log = exp_log(grid)
    sine, cosine = sincos(grid * 1000)
    log = log[grid > 0]
    crc = [zlib.crc32(x.tobytes()) for x in (expf(grid), exp, log, sine, cosine)]
    assert crc == CRC


# ---- rotary tables ----

YARN = (32.0, 32.0, 1.0, 4096, 0.1 * math.log(32) + 1, False)


def rope_table(
    head_dim: int, theta: float, yarn: tuple[Any, ...], position: int
) -> tuple[Array, ...]:
    outs = tuple(np.empty(head_dim // 2, np.float32) for _ in range(3))
    _core.rope_table(head_dim, theta, yarn, position, outs)
    return outs


def test_frequencies_of_gpt_oss() -> None:
    inverse, cosine, sine = rope_table(64, 150000, YARN, 0)
    known = {
        8: 0.0508132748,
        9: 0.0317056962,
        13: 0.00386035932,
        17: 1.29318701e-4,
        18: 3.83088124e-5,
        31: 3.02351143e-7,
    }
    for i, value in known.items():
        assert inverse[i] == pytest.approx(value, rel=1e-8)
    assert inverse[0] == 1
    assert (cosine == np.float32(1.3465735902799727)).all() and (sine == 0).all()


@pytest.mark.parametrize("head_dim", [2, 6, 20, 64, 80, 128])
@pytest.mark.parametrize("theta", [150000, 10000.0, 3.5])
@pytest.mark.parametrize(
    "yarn",
    [None, (32.0, 32.0, 1.0, 4096), (4.0, 8.0, 2.0, 64), (2.0, 4.0, 4.0, 64), (8.0, 32.0, 1.0, 4)],
)
@pytest.mark.parametrize("truncate", [False, True])
def test_frequencies_against_the_reference(
    head_dim: int, theta: float, yarn: tuple[Any, ...] | None, truncate: bool
) -> None:
    raw: dict[str, Any] = {
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": head_dim,
        "num_experts_per_tok": 1,
        "sliding_window": 1,
        "rope_theta": theta,
    }
    options: tuple[Any, ...] = ()
    if yarn is not None:
        names = ("factor", "beta_fast", "beta_slow", "original_max_position_embeddings")
        raw["rope_scaling"] = dict(zip(names, yarn, strict=True)) | {
            "rope_type": "yarn",
            "truncate": truncate,
        }
        options = (*yarn, 0.1 * math.log(yarn[0]) + 1, truncate)
    expected, concentration = reference.inverse_frequencies(reference.Config.read(raw))
    inverse, cosine, sine = rope_table(head_dim, theta, options, 1234567)
    np.testing.assert_allclose(inverse, expected, rtol=1.2e-7)
    angles = (np.float32(1234567) * inverse).astype(np.float64)
    np.testing.assert_allclose(
        cosine, np.cos(angles) * concentration, rtol=0, atol=1.2e-7 * concentration
    )
    np.testing.assert_allclose(
        sine, np.sin(angles) * concentration, rtol=0, atol=1.2e-7 * concentration
    )


@pytest.mark.parametrize("position", [1, 4095, 131071, 10**6 + 1, 2**24 + 1, 2**31])
def test_cosine_and_sine_are_rounded_once(position: int) -> None:
    inverse, cosine, sine = rope_table(64, 150000, YARN, position)
    angles = np.float32(position) * inverse
    exact_sine, exact_cosine = sincos(angles)
    assert (cosine == (exact_cosine * YARN[4]).astype(np.float32)).all()
    assert (sine == (exact_sine * YARN[4]).astype(np.float32)).all()
