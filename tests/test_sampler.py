"""The sampler against its definition (docs/numerics.md, Sampling) written again in Python."""

from __future__ import annotations

import ctypes
import math
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gptoss import _core
from gptoss.errors import ArgumentError, NumericError, OutOfMemoryError

Array = NDArray[Any]
ISAS = [name for name, available in _core.isas() if available]


@dataclass(frozen=True)
class Options:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = 0


def sample(
    logits: Any,
    options: Options = Options(),
    history: Any = (),
    bias: dict[int, float] | None = None,
    isa: str | None = None,
) -> tuple[int, float]:
    bias = bias or {}
    return _core.sample(
        np.array(logits, np.float32),
        np.array(history, np.int32),
        options.temperature,
        options.top_k,
        options.top_p,
        options.min_p,
        options.repetition_penalty,
        options.frequency_penalty,
        options.presence_penalty,
        options.seed,
        np.array(list(bias), np.int32),
        np.array(list(bias.values()), np.float32),
        isa,
    )


# ---- the definition, once more ----


def philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011)."""
    low = 0xFFFFFFFF
    for _ in range(10):
        first, second = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = (
            (second >> 32) ^ counter[1] ^ key[0],
            second & low,
            (first >> 32) ^ counter[3] ^ key[1],
            first & low,
        )
        key = ((key[0] + 0x9E3779B9) & low, (key[1] + 0xBB67AE85) & low)
    return counter


def random_bits(seed: int, position: int) -> int:
    low = 0xFFFFFFFF
    words = philox((position & low, position >> 32, 0, 0), (seed & low, seed >> 32))
    return words[1] << 32 | words[0]


def exp(x: Array) -> Array:
    out, unused = np.empty_like(x), np.empty_like(x)
    _core.math_exp_log(x, out, unused)
    return out


def distances(values: Array) -> Array:
    top = values.max()
    with np.errstate(invalid="ignore"):
        return np.where(values == top, 0.0, values.astype(np.float64) - np.float64(top))


def expected_token(logits: Any, options: Options, history: Any, bias: dict[int, float]) -> int:
    f32 = np.float32
    values = np.array(logits, f32)
    for token, value in bias.items():
        values[token] += f32(value)
    for token, count in zip(*np.unique(np.array(history, int), return_counts=True), strict=True):
        penalty = f32(options.repetition_penalty)
        values[token] = values[token] / penalty if values[token] > 0 else values[token] * penalty
        values[token] -= f32(count) * f32(options.frequency_penalty)
        values[token] -= f32(options.presence_penalty)
    order = np.lexsort((np.arange(values.size), -values))
    if options.temperature == 0:
        return int(order[0])
    if options.top_k:
        order = order[: options.top_k]
    exponents = distances(values) / np.float64(f32(options.temperature))
    weights = np.rint(exp(exponents) * 2.0**40).astype(np.int64)
    if options.top_p < 1:
        goal = max(1, math.ceil(float(f32(options.top_p)) * float(weights[order].sum())))
        reached = np.cumsum(weights[order]) >= goal
        order = order[: int(np.argmax(reached)) + 1]
    kept = np.sort(order)
    kept = kept[weights[kept] >= float(f32(options.min_p)) * 2.0**40]
    target = int(weights[kept].sum()) * random_bits(options.seed, len(history)) >> 64
    return int(kept[np.argmax(np.cumsum(weights[kept]) > target)])


def expected_logprob(logits: Array, token: int) -> float:
    """The sum in the documented order, which cumsum keeps."""
    distance = distances(logits)
    unused, log = np.empty(1), np.empty(1)
    _core.math_exp_log(np.cumsum(exp(distance))[-1:].copy(), unused, log)
    return float(np.float32(distance[token] - log[0]))


def test_philox_gives_the_published_numbers() -> None:
    ones = 0xFFFFFFFF
    assert philox((0,) * 4, (0,) * 2) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox((ones,) * 4, (ones,) * 2) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    assert philox(*pi) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 + 12345, 2**64 - 1])
def test_the_draw_is_philox_of_seed_and_position(seed: int) -> None:
    """Of 2^20 equal tokens the one drawn is the first 20 bits of the random number."""
    logits = np.zeros(2**20, np.float32)
    for position in (0, 1, 1000):
        token, _ = sample(logits, Options(seed=seed), np.zeros(position, np.int32))
        assert token == random_bits(seed, position) >> 44


options_strategy = st.builds(
    Options,
    temperature=st.sampled_from([0.0, 1e-30, 0.3, 1.0, 1.7, 50.0]),
    top_k=st.sampled_from([0, 0, 1, 2, 5, 1000]),
    top_p=st.sampled_from([1.0, 0.0, 0.1, 0.5, 0.9, 0.999]),
    min_p=st.sampled_from([0.0, 0.0, 0.01, 0.3, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
    frequency_penalty=st.sampled_from([0.0, 0.5, -0.25]),
    presence_penalty=st.sampled_from([0.0, 1.5, -0.5]),
    seed=st.integers(0, 2**64 - 1),
)
# Few distinct values, so that there are ties.
logit = st.sampled_from([-math.inf, -20.0, -3.0, -1.5, -0.0, 0.0, 0.25, 1.0, 1.0000001, 4.0, 30.0])


@given(
    logits=st.lists(logit, min_size=1, max_size=40),
    options=options_strategy,
    history=st.lists(st.integers(0, 39), max_size=20),
    bias=st.dictionaries(st.integers(0, 39), st.sampled_from([-5.0, 0.5, 100.0]), max_size=3),
)
def test_sampling_as_defined(
    logits: list[float], options: Options, history: list[int], bias: dict[int, float]
) -> None:
    logits[0] = max(logits[0], -20.0)  # not all masked
    history = [token % len(logits) for token in history]
    bias = {token % len(logits): value for token, value in bias.items()}
    token, _ = sample(logits, options, history, bias)
    assert token == expected_token(logits, options, history, bias)


@pytest.mark.parametrize(
    "top_k, top_p, min_p", [(0, 1, 0), (50, 1, 0), (0, 0.9, 0), (0, 1, 0.05), (1000, 0.95, 0.001)]
)
@pytest.mark.parametrize("spread", [0.001, 1.0, 8.0])
def test_a_large_vocabulary(top_k: int, top_p: float, min_p: float, spread: float) -> None:
    rng = np.random.default_rng(11)
    for seed in range(5):
        logits = (spread * rng.standard_normal(201088)).astype(np.float32)
        options = Options(top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
        assert sample(logits, options)[0] == expected_token(logits, options, (), {})


def test_top_p_where_roundings_outweigh_the_rest() -> None:
    """100,000 weights of 0.6, each rounded to 1, are more than the 2^-24 of the total that may be
    left away, though their exact values are less."""
    logits = np.full(100_001, math.log(0.6 * 2.0**-40), np.float32)
    logits[77_777] = 0
    seed = 10_710_051  # one in 26 million, whose number is below 2^38
    options = Options(top_p=float(np.nextafter(np.float32(1), np.float32(0))), seed=seed)
    assert random_bits(seed, 0) < 2**38
    assert sample(logits, options)[0] == expected_token(logits, options, (), {}) == 13_838


# ---- every instruction set ----


def odd_logits(rng: np.random.Generator, size: int) -> Array:
    """Logits of any spread and order, with ties, zeros of both signs, infinities."""
    x = rng.standard_normal(size) * 10.0 ** rng.uniform(-4, 3)
    kind = rng.integers(10)
    if kind == 0:
        x = np.round(3 * rng.standard_normal(size)) * math.log(2)
    elif kind == 1:
        x = np.where(rng.random(size) < 0.5, -0.0, 0.0)
    elif kind == 2:
        x[1:] = np.where(rng.random(size - 1) < 0.6, -math.inf, x[1:])
    elif kind == 3:
        x = np.where(rng.random(size) < 0.01, math.inf, x)
    elif kind == 4:
        x = x * rng.choice([1e-42, 1e35])
    elif kind == 5:
        x = np.sort(x)
    elif kind == 6:
        x = -np.log(np.arange(1.0, size + 1))
    elif kind == 7:
        x = 2.5 * rng.standard_normal(size)
        x[rng.integers(size, size=3)] += 25
    return x.astype(np.float32)


BORDERS = [1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 255, 256, 257, 511, 513, 1000, 8191, 50_000]


@pytest.mark.parametrize("size", BORDERS)
def test_every_instruction_set_gives_what_is_defined(size: int) -> None:
    rng = np.random.default_rng(size)
    for seed in range(12 if size < 10_000 else 4):
        logits = odd_logits(rng, size)
        options = Options(
            temperature=rng.choice([0.0, 1.0, 1.0, 0.7, 1.3, 1e-30, 30.0]),
            top_k=int(rng.choice([0, 0, 1, 40, size])),
            top_p=rng.choice([1.0, 1.0, 0.9, 0.5]),
            min_p=rng.choice([0.0, 0.0, 0.05, 1e-12]),
            seed=seed,
        )
        history = rng.integers(0, size, 3)
        bias = {0: -3.0} if seed % 3 == 0 else {}
        token = expected_token(logits, options, history, bias)
        expected = token, expected_logprob(logits, token)
        for isa in ISAS:
            assert sample(logits, options, history, bias, isa) == expected, isa
        best = [_core.top_logprobs(logits, min(size, 20), isa) for isa in ISAS]
        assert best == [best[0]] * len(ISAS)
        assert all(p == expected_logprob(logits, t) for t, p in best[0])


@pytest.mark.parametrize("isa", ISAS)
def test_nan_anywhere_is_found(isa: str) -> None:
    logits = np.zeros(1000, np.float32)
    for token in (0, 63, 64, 255, 256, 767, 768, 998, 999):
        damaged = logits.copy()
        damaged[token:] = math.nan
        with pytest.raises(NumericError, match=f"token {token} is NaN"):
            sample(damaged, isa=isa)


# ---- what the options mean ----


def drawn(logits: Any, options: Options, draws: int = 2000) -> Array:
    tokens = [sample(logits, replace(options, seed=seed))[0] for seed in range(draws)]
    return np.bincount(tokens, minlength=len(logits))


def test_frequencies_follow_the_probabilities() -> None:
    logits = np.array([0.0, 1.0, -1.0, 2.0, 0.5, -math.inf])
    for temperature in (0.5, 1.0, 2.0):
        counts = drawn(logits, Options(temperature=temperature), 4000)
        weights = np.exp(logits / temperature)
        expected = 4000 * weights / weights.sum()
        assert counts[5] == 0
        chi_square = ((counts - expected)[:5] ** 2 / expected[:5]).sum()
        assert (
            chi_square < 18.5
        )  # 4 degrees of freedom: one in a thousand is above; the draws are fixed


def test_greedy_takes_the_lowest_of_equals() -> None:
    assert sample([1, 3, 3, 2], Options(temperature=0))[0] == 1
    assert sample([-0.0, 0.0], Options(temperature=0))[0] == 0
    assert sample([0.0, math.inf, math.inf], Options(temperature=0))[0] == 1


def test_top_k_takes_the_lowest_of_equals() -> None:
    assert set(np.flatnonzero(drawn([0, 1, 1, 1, 0], Options(top_k=2), 200))) == {1, 2}


def test_top_p_is_the_smallest_prefix_that_reaches_it() -> None:
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    for top_p, kept in [(0.0, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.96, 4), (1.0, 4)]:
        assert np.count_nonzero(drawn(logits, Options(top_p=top_p), 400)) == kept


def test_top_p_counts_what_top_k_left() -> None:
    logits = np.log([0.4, 0.3, 0.2, 0.1])
    assert np.count_nonzero(drawn(logits, Options(top_k=2, top_p=0.6), 200)) == 2
    assert np.count_nonzero(drawn(logits, Options(top_k=2, top_p=0.55), 200)) == 1


def test_min_p_is_relative_to_the_maximum() -> None:
    logits = np.log([0.5, 0.26, 0.24])
    assert np.count_nonzero(drawn(logits, Options(min_p=0.5), 200)) == 2
    assert np.count_nonzero(drawn(logits, Options(min_p=1.0), 50)) == 1


def test_infinite_logits_share_the_draw() -> None:
    counts = drawn([math.inf, 5.0, math.inf, -math.inf], Options(), 400)
    assert counts[1] == counts[3] == 0 and min(counts[0], counts[2]) > 150


def test_bias_bans_and_forces() -> None:
    assert sample([3, 2, 1], Options(temperature=0), bias={0: -math.inf})[0] == 1
    assert sample([3, 2, 1], Options(), bias={2: math.inf})[0] == 2


# ---- log-probabilities ----


def log_softmax(logits: Array) -> Array:
    logits = logits.astype(np.float64)
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def test_logprob_is_of_the_unchanged_logits() -> None:
    logits = np.random.default_rng(12).standard_normal(1000).astype(np.float32) * 5
    token, logprob = sample(logits, Options(top_k=3, temperature=3), [1, 2], {5: 50.0})
    assert token == 5
    assert logprob == np.float32(log_softmax(logits)[5])


@given(logits=st.lists(logit, min_size=1, max_size=50), data=st.data())
def test_top_logprobs(logits: list[float], data: st.DataObject) -> None:
    logits[0] = max(logits[0], -20.0)
    k = data.draw(st.integers(1, len(logits)))
    array = np.array(logits, np.float32)
    result = _core.top_logprobs(array, k)
    order = np.lexsort((np.arange(array.size), -array))[:k]
    assert [token for token, _ in result] == order.tolist()
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(
            [p for _, p in result], log_softmax(array)[order], rtol=1e-6, atol=1e-7
        )


def test_top_logprobs_of_infinite_logits() -> None:
    result = _core.top_logprobs(np.array([1, math.inf, math.inf], np.float32), 3)
    assert [token for token, _ in result] == [1, 2, 0]
    assert result[0][1] == result[1][1] == pytest.approx(-math.log(2)) and result[2][1] == -math.inf


# ---- refusals ----


@pytest.mark.parametrize(
    "option, values",
    [
        ("temperature", [-1.0, math.nan, math.inf]),
        ("top_k", [-1]),
        ("top_p", [-0.1, 1.1, math.nan]),
        ("min_p", [-0.1, 1.1, math.nan]),
        ("repetition_penalty", [0.0, -1.0, math.nan, math.inf]),
        ("frequency_penalty", [math.nan, math.inf]),
        ("presence_penalty", [math.nan, -math.inf]),
    ],
)
def test_options_out_of_range_are_named(option: str, values: list[float]) -> None:
    for value in values:
        with pytest.raises(ArgumentError, match=option) as caught:
            sample([1, 2], replace(Options(), **{option: value}))
        assert caught.value.expected and caught.value.found


def test_tokens_out_of_range_are_named() -> None:
    with pytest.raises(ArgumentError, match="bias token 2"):
        sample([1, 2], bias={2: 1.0})
    with pytest.raises(ArgumentError, match="bias token -1"):
        sample([1, 2], bias={-1: 1.0})
    with pytest.raises(ArgumentError, match="history token 7"):
        sample([1, 2], Options(presence_penalty=1.0), [0, 7])
    with pytest.raises(ArgumentError, match="vocab_size"):
        sample([])


def test_nan_is_an_error_that_names_the_token() -> None:
    for call in (lambda x: sample(x), lambda x: _core.top_logprobs(x, 1)):
        with pytest.raises(NumericError, match="token 2 is NaN"):
            call(np.array([1, 2, math.nan, math.nan], np.float32))
    with pytest.raises(NumericError, match="token 1 is NaN"):
        sample([1, math.inf], bias={1: -math.inf})


def test_nothing_to_draw_is_an_error() -> None:
    for call in (lambda x: sample(x), lambda x: _core.top_logprobs(x, 1)):
        with pytest.raises(NumericError, match="all 3"):
            call(np.full(3, -math.inf, np.float32))
    with pytest.raises(NumericError, match="all 2"):
        sample([1, -math.inf], bias={0: -math.inf})


def test_every_allocation_may_fail() -> None:
    penalised = Options(presence_penalty=1.0)
    for options, num_allocations in [
        (Options(), 2),  # maxima, sums of weights
        (Options(top_p=0.5), 4),  # candidates, those with a digit
        (replace(penalised, top_k=1), 7),  # and the logits, token counts, maxima again, blocks
    ]:
        for n in range(1, num_allocations + 1):
            _core.fail_allocation(n)
            with pytest.raises(OutOfMemoryError):
                sample([1, 2], options, [0])
            assert _core.fail_allocation(0) >= n
        assert sample([1, 2], options, [0]) == sample([1, 2], options, [0])
        assert _core.fail_allocation(0) == 2 * num_allocations
    for n in (1, 2, 3):
        _core.fail_allocation(n)
        with pytest.raises(OutOfMemoryError):
            _core.top_logprobs(np.ones(2, np.float32), 1)
        assert _core.fail_allocation(0) >= n


# ---- the host's floating-point environment ----


@contextmanager
def dirty_environment() -> Iterator[None]:
    """Rounds upwards and flushes subnormals to zero, as MXCSR says it."""
    libm = ctypes.CDLL("libm.so.6")
    saved = (ctypes.c_uint32 * 8)()  # fenv_t of x86-64: the x87 state in 28 bytes, then MXCSR
    libm.fegetenv(saved)
    dirty = (ctypes.c_uint32 * 8)(*saved)
    dirty[7] |= 0x8040 | 0x4000
    libm.fesetenv(dirty)
    try:
        yield
    finally:
        libm.fesetenv(saved)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="sets MXCSR")
def test_the_environment_changes_nothing() -> None:
    logits = (np.random.default_rng(13).standard_normal(5000) * 3).astype(np.float32)
    tiny = np.array([0, 1e-42], np.float32)
    options = Options(top_p=0.75, repetition_penalty=1.25)

    def draw() -> list[tuple[int, float]]:
        draws = [sample(logits, replace(options, seed=seed), range(50)) for seed in range(20)]
        return [*draws, sample(tiny, Options(temperature=0))]

    clean = draw()
    with dirty_environment():
        dirty = draw()
    assert dirty == clean
    assert clean[-1][0] == 1
