"""TokenGenerator: the interface of openai/gpt-oss's back ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import gptoss

PROMPT = "<|start|>user<|message|>Who are you?<|end|><|start|>assistant"


@pytest.fixture(scope="module")
def generator() -> gptoss.TokenGenerator:
    return gptoss.TokenGenerator("demo", device="cpu")


@pytest.fixture(scope="module")
def prompt(generator: gptoss.TokenGenerator) -> list[int]:
    return generator.model.tokenizer.encode(PROMPT, allow_special=True)


def test_the_oracle(generator: gptoss.TokenGenerator, shared: Path) -> None:
    entries = json.loads((shared / "oracle" / "demo_generations.json").read_text())
    for entry in entries:
        if entry["min_top2_margin"] < 5e-3:
            continue  # another arithmetic may choose otherwise there
        tokens = generator.generate(
            entry["prompt_ids"], [4084, 4081, 4094], 0.0, entry["max_new_tokens"]
        )
        assert list(tokens) == entry["generated_ids"]


def test_a_stop_token_is_yielded_and_ends(
    generator: gptoss.TokenGenerator, prompt: list[int]
) -> None:
    tokens = list(generator.generate(prompt, stop_tokens=[4084], temperature=0.0))
    assert tokens.count(4084) == 1 and tokens[-1] == 4084
    beyond = list(generator.generate(prompt, temperature=0.0, max_tokens=len(tokens) + 2))
    assert beyond[: len(tokens)] == tokens and len(beyond) == len(tokens) + 2


@pytest.mark.parametrize("max_tokens", [1, 5])
def test_max_tokens_counts_what_is_yielded(
    generator: gptoss.TokenGenerator, prompt: list[int], max_tokens: int
) -> None:
    assert len(list(generator.generate(prompt, temperature=1.0, max_tokens=max_tokens))) == (
        max_tokens
    )


def test_logprobs(generator: gptoss.TokenGenerator, prompt: list[int]) -> None:
    pairs = list(generator.generate(prompt, None, 0.7, 6, return_logprobs=True))
    tokens = [pair[0] for pair in pairs if isinstance(pair, tuple)]
    reference = gptoss.Generator(generator.model)
    logits = reference.prefill(prompt + tokens, all_logits=True).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = [logprobs[len(prompt) - 1 + i, token] for i, token in enumerate(tokens)]
    assert [p[1] for p in pairs if isinstance(p, tuple)] == pytest.approx(expected, abs=1e-4)


def test_calls_do_not_depend_on_each_other(
    generator: gptoss.TokenGenerator, prompt: list[int]
) -> None:
    def first(ids: list[int]) -> list[object]:
        return list(generator.generate(ids, [4084], 0.0, 12))

    expected = first(prompt)
    first(prompt[:-1])
    first(prompt[:5] + prompt)
    assert first(prompt) == expected == first(prompt)
    unfinished: Iterator[object] = generator.generate(prompt, [4084], 0.0)
    next(unfinished)
    assert first(prompt) == expected


def test_no_limit_goes_to_the_end_of_the_context(prompt: list[int]) -> None:
    generator = gptoss.TokenGenerator("demo", context=len(prompt) + 4)
    tokens = []
    with pytest.raises(gptoss.ContextError) as caught:
        for token in generator.generate(prompt, temperature=0.0, max_tokens=0):
            tokens.append(token)
    assert len(tokens) == 5  # the last one needs no position
    assert caught.value.max_context == len(prompt) + 4


def test_arguments(generator: gptoss.TokenGenerator, prompt: list[int]) -> None:
    with pytest.raises(gptoss.ArgumentError, match="empty"):
        next(generator.generate([]))
    with pytest.raises(gptoss.ArgumentError, match="max_tokens"):
        next(generator.generate(prompt, max_tokens=-1))
    with pytest.raises(gptoss.ArgumentError, match="temperature"):
        next(generator.generate(prompt, temperature=-1.0))
    with pytest.raises(gptoss.UnsupportedError, match="device"):
        gptoss.TokenGenerator("demo", device="abacus")
    with pytest.raises(gptoss.ArgumentError, match="did you mean 'threads'"):
        gptoss.TokenGenerator("demo", thread=1)
