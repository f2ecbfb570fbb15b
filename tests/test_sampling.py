"""The sampler against one written in NumPy from its description, and against chance."""

from __future__ import annotations

import dataclasses
import math
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import gptoss
from gptoss import _core

Floats = NDArray[np.float64]


def distribution(logits: Any, sampling: gptoss.Sampling, history: list[int]) -> Floats:
    """The probabilities that a draw follows, in float64."""
    values = np.array(logits, np.float64)
    for token, bias in sampling.logit_bias:  # type: ignore[union-attr]
        values[token] += bias
    for token in set(history):
        penalty = sampling.repetition_penalty
        values[token] = values[token] / penalty if values[token] > 0 else values[token] * penalty
        values[token] -= history.count(token) * sampling.frequency_penalty
        values[token] -= sampling.presence_penalty
    order = np.lexsort((np.arange(len(values)), -values))  # descending, ties by lowest id
    if sampling.temperature == 0:
        return np.eye(len(values))[order[0]]
    weights = np.exp((values - values[order[0]]) / sampling.temperature)
    kept = np.zeros(len(values), bool)
    kept[order[: sampling.top_k or None]] = True
    weights[~kept] = 0
    if sampling.top_p < 1:
        mass = np.cumsum(weights[order]) / weights.sum()
        reached = mass[:-1] >= sampling.top_p - 1e-9  # by the tokens before
        weights[order[1:][reached]] = 0
    weights[weights < sampling.min_p * (1 - 1e-9)] = 0
    return weights / weights.sum()


def draws(logits: Any, sampling: gptoss.Sampling, count: int, history: list[int]) -> list[int]:
    """One draw for each of the seeds 0, 1, 2, ..."""
    seeded = [dataclasses.replace(sampling, seed=seed) for seed in range(count)]
    return [one.draw(logits, history).token for one in seeded]


def assert_follows(
    logits: Any, sampling: gptoss.Sampling, history: list[int] | None = None
) -> None:
    """Chi-square of 4000 draws: a value this far out comes once in a million by chance. The seeds
    are fixed."""
    count = 4000
    history = history or []
    expected = distribution(logits, sampling, history) * count
    found = np.bincount(draws(logits, sampling, count, history), minlength=len(expected))
    assert found[expected == 0].sum() == 0
    common = expected >= 5
    pairs = [(found[common], expected[common])]
    if rest := expected[~common].sum():
        pairs.append((np.array([found[~common].sum()]), np.array([rest])))
    chi2 = sum(float(((f - e) ** 2 / e).sum()) for f, e in pairs)
    freedom = max(1, int(common.sum()) + len(pairs) - 2)
    # Wilson and Hilferty's approximation of the quantile.
    bound = freedom * (1 - 2 / (9 * freedom) + 4.75 * math.sqrt(2 / (9 * freedom))) ** 3
    assert chi2 < max(bound, 24), f"chi2 {chi2:.1f}, {freedom} degrees, seeds 0 to {count - 1}"


LOGITS = np.random.default_rng(11).normal(0, 2, 40).astype(np.float32)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"top_k": 1},
        {"top_k": 5},
        {"top_k": 1000},
        {"top_p": 0.5},
        {"top_p": 0.95},
        {"top_p": 0.0},
        {"min_p": 0.1},
        {"min_p": 1.0},
        {"top_k": 10, "top_p": 0.8, "min_p": 0.05, "temperature": 1.5},
        {"logit_bias": {3: 4.0, 7: -math.inf, 39: -2.0}},
        {"repetition_penalty": 1.5},
        {"repetition_penalty": 0.7, "frequency_penalty": -0.4},
        {"frequency_penalty": 0.5, "presence_penalty": 1.0},
    ],
    ids=str,
)
def test_draws_follow_the_distribution(options: dict[str, Any]) -> None:
    assert_follows(LOGITS, gptoss.Sampling(**options), [0, 1, 2, 2, 2, 5, 39])


@given(
    values=st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0, 2.5]), min_size=1, max_size=30),
    top_k=st.integers(0, 8),
    top_p=st.sampled_from([0.05, 0.3, 0.7, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    temperature=st.sampled_from([0.0, 0.1, 1.0, 5.0]),
    seed=st.integers(0, 2**64 - 1),
)
def test_nothing_outside_the_filters(
    values: list[float], top_k: int, top_p: float, min_p: float, temperature: float, seed: int
) -> None:
    """With many ties: what is cut off among equals is what has the highest ids."""
    sampling = gptoss.Sampling(
        top_k=top_k, top_p=top_p, min_p=min_p, temperature=temperature, seed=seed
    )
    token, logprob = sampling.draw(np.array(values, np.float32))
    assert distribution(values, sampling, [])[token] > 0
    exact = values[token] - np.log(np.exp(values).sum())
    assert logprob == pytest.approx(exact, abs=1e-6)


def test_greedy_takes_the_lowest_of_equals() -> None:
    sampling = gptoss.Sampling(temperature=0)
    assert sampling.draw([1, 5, 5, 2]).token == 1
    assert sampling.draw([-0.0, 0.0]).token == 0
    assert sampling.draw([1, 2, math.inf, 3]).token == 2
    assert sampling.draw([-math.inf, -math.inf, -7]).token == 2


def test_a_seed_repeats_and_positions_differ() -> None:
    sampling = gptoss.Sampling(seed=2**64 - 1)
    tokens = [sampling.draw(LOGITS, range(n)).token for n in range(40)]
    assert tokens == [sampling.draw(LOGITS, range(n)).token for n in range(40)]
    assert len(set(tokens)) > 5
    other = gptoss.Sampling(seed=2**64 - 2)
    assert tokens != [other.draw(LOGITS, range(n)).token for n in range(40)]


def test_draws_of_one_seed_over_positions_are_independent() -> None:
    """Neighbouring positions: their joint distribution is the product. Seed 5."""
    sampling = gptoss.Sampling(seed=5)
    logits = np.log(np.array([0.1, 0.2, 0.3, 0.4], np.float32))
    tokens = np.array([sampling.draw(logits, np.zeros(n, np.int32)).token for n in range(4001)])
    found = np.bincount(tokens[:-1] * 4 + tokens[1:], minlength=16)
    expected = 4000 * np.outer([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]).ravel()
    assert ((found - expected) ** 2 / expected).sum() < 50


def test_without_a_seed_draws_differ() -> None:
    sampling = gptoss.Sampling()
    assert len({sampling.draw(np.zeros(1000, np.float32)).token for _ in range(20)}) > 5
    seeded = sampling.with_seed()
    assert seeded.seed is not None and seeded.with_seed() is seeded and sampling.seed is None


def test_log_probabilities_are_of_the_logits_as_given() -> None:
    exact = LOGITS.astype(np.float64) - np.log(np.exp(LOGITS.astype(np.float64)).sum())
    sampling = gptoss.Sampling(temperature=0.3, top_k=2, logit_bias={9: 50.0}, seed=1)
    token, logprob = sampling.draw(LOGITS, [1, 2])
    assert token == 9 and logprob == pytest.approx(exact[9], abs=1e-6)
    top = _core.top_logprobs(LOGITS, 40)
    order = np.lexsort((np.arange(40), -LOGITS))
    assert [t for t, _ in top] == order.tolist()
    assert [p for _, p in top] == pytest.approx(exact[order].tolist(), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_is_an_error(temperature: float) -> None:
    logits = LOGITS.copy()
    logits[17] = math.nan
    for use in (gptoss.Sampling(temperature=temperature).draw, lambda x: _core.top_logprobs(x, 2)):
        with pytest.raises(gptoss.NumericError, match="17") as caught:
            use(logits)
        assert isinstance(caught.value, ArithmeticError)


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(gptoss.NumericError):
        gptoss.Sampling(logit_bias={0: -math.inf, 1: -math.inf}).draw([1.0, 2.0])


def test_logits_of_any_kind() -> None:
    sampling = gptoss.Sampling(seed=3)
    expected = sampling.draw(LOGITS, [1, 2, 3])
    unaligned = np.frombuffer(b"x" + LOGITS.tobytes(), np.uint8)[1:].view(np.float32)
    strided = np.repeat(LOGITS, 2)[::2]
    for logits in (LOGITS.tolist(), LOGITS.astype(np.float64), unaligned, strided):
        assert sampling.draw(logits, np.array([1, 2, 3])) == expected
    assert sampling.draw(LOGITS, (1, 2, 3)) == expected
    assert LOGITS.flags.writeable  # and unchanged
    with pytest.raises(gptoss.ArgumentError):
        sampling.draw([])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -0.1}, "temperature must be 0 or more, not -0.1"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": 1e300}, "temperature"),
        ({"temperature": "hot"}, "temperature must be a number, not 'hot'"),
        ({"top_k": -1}, "top_k must be from 0"),
        ({"top_k": 2.5}, "top_k must be an integer, not 2.5"),
        ({"top_k": 2**31}, "top_k"),
        ({"top_p": 1.01}, "top_p must be from 0 to 1"),
        ({"min_p": -0.5}, "min_p must be from 0 to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0"),
        ({"frequency_penalty": math.inf}, "frequency_penalty must be finite"),
        ({"presence_penalty": None}, "presence_penalty must be a number"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"logit_bias": {-1: 2.0}}, "token in logit_bias"),
        ({"logit_bias": {1: math.nan}}, "token 1"),
        ({"logit_bias": {1: math.inf}}, "token 1"),
        ({"logit_bias": 7}, "logit_bias must map"),
        ({"temprature": 1.0}, "did you mean 'temperature'"),
    ],
)
def test_bad_settings(options: dict[str, Any], words: str) -> None:
    with pytest.raises(gptoss.ArgumentError, match=words):
        gptoss.Sampling(**options)


def test_bias_outside_the_vocabulary() -> None:
    with pytest.raises(gptoss.ArgumentError, match="40"):
        gptoss.Sampling(logit_bias={40: 1.0}).draw(LOGITS)


def test_is_a_value() -> None:
    sampling = gptoss.Sampling(temperature=1, logit_bias={9: 1, 3: -2.5})
    assert isinstance(sampling.temperature, float)
    assert sampling.logit_bias == ((3, -2.5), (9, 1.0))
    assert sampling == gptoss.Sampling(logit_bias=[(3, -2.5), (9, 1.0)])
    assert hash(sampling) == hash(pickle.loads(pickle.dumps(sampling)))
    assert dataclasses.replace(sampling, top_k=3).logit_bias == sampling.logit_bias
    with pytest.raises(dataclasses.FrozenInstanceError):
        sampling.top_k = 3  # type: ignore[misc]
