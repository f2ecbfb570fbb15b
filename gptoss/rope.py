"""Scalings of rotary positions, as config.json spells them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from gptoss.errors import UnsupportedError
from gptoss.model import Config

Divisors = npt.NDArray[np.float32]

# What Llama 3's models have, and what to look for where only its divisors are stored.
_LOW, _HIGH = 1.0, 4.0
_FACTORS = (8.0, 32.0, 2.0, 4.0, 16.0, 64.0)
_POSITIONS = (8192, *(1 << n for n in range(4, 21) if n != 13))


def yarn_attention_factor(config: Config) -> float:
    """What multiplies cosine and sine if nothing else is said."""
    if config.rope_scaling != "yarn" or config.rope_factor <= 1:
        return 1.0
    return 0.1 * math.log(config.rope_factor) + 1


def settings(config: Config, divisors: Divisors | None = None) -> dict[str, Any] | None:
    """rope_scaling of config.json. divisors: rope_freqs.weight, where that is the scaling;
    UnsupportedError for those that Llama 3's scaling does not give."""
    if config.rope_scaling == "divisors":
        assert divisors is not None
        return _settings_of(config, divisors)
    if config.rope_scaling == "linear":
        return {"factor": config.rope_factor, "rope_type": "linear"}
    if config.rope_scaling == "llama3":
        return _llama3(
            config.rope_factor,
            config.rope_low_frequency_factor,
            config.rope_high_frequency_factor,
            config.rope_original_positions,
        )
    if config.rope_scaling != "yarn":
        return None
    values = {
        "beta_fast": config.rope_beta_fast,
        "beta_slow": config.rope_beta_slow,
        "factor": config.rope_factor,
        "original_max_position_embeddings": config.rope_original_positions,
        "rope_type": "yarn",
        "truncate": config.rope_truncate,
    }
    if not math.isclose(config.rope_attention_factor, yarn_attention_factor(config)):
        values["attention_factor"] = config.rope_attention_factor
    return values


# ---- Llama 3's, which GGUF files store as numbers that divide the frequencies ----


def _llama3(factor: float, low: float, high: float, positions: int) -> dict[str, Any]:
    return {
        "factor": factor,
        "high_freq_factor": high,
        "low_freq_factor": low,
        "original_max_position_embeddings": positions,
        "rope_type": "llama3",
    }


def llama3_divisors(config: Config, scaling: dict[str, Any]) -> Divisors:
    """(head_dim / 2,) for the settings of a scaling: 1 for frequencies that turn often over the
    original positions, the factor for those that turn seldom."""
    frequencies = config.rope_theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)
    divisors: Divisors = (1 / ((1 - kept) / scaling["factor"] + kept)).astype(np.float32)
    return divisors


def _settings_of(config: Config, divisors: Divisors) -> dict[str, Any]:
    largest = float(divisors.max())
    # Others compute them in float32, to a few units of the last place.
    for tolerance, factor, positions in itertools.product(
        (0, 1e-5) if config.rope_factor == 1 else (), (largest, *_FACTORS), _POSITIONS
    ):
        scaling = _llama3(factor, _LOW, _HIGH, positions)
        found = llama3_divisors(config, scaling)
        if np.allclose(found, divisors, rtol=tolerance, atol=0):
            return scaling
    raise UnsupportedError(
        "config.json cannot say how rope_freqs.weight scales positions: it is not Llama 3's "
        f"scaling with frequency factors of {_LOW:g} and {_HIGH:g}",
        tensor="rope_freqs.weight",
        expected="divisors of Llama 3's scaling",
        found=f"from {float(divisors.min()):g} to {largest:g}",
    )
