"""Decoding ahead on a Vulkan device: what is drawn, and all that can be seen of the Generator at
each output, is what decoding token by token gives."""

from __future__ import annotations

import secrets
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import Spec, random_tensors, write_model, write_safetensors
from support import assert_same_bits, ctrl_c_after, open_generator, random_tokens
from test_speculation import observed
from vulkan_support import needs_vulkan

import gptoss
from gptoss import _core, run_ahead

pytestmark = needs_vulkan

SEED = secrets.randbelow(2**32)
GREEDY = gptoss.Sampling(temperature=0)
SAMPLINGS = [
    GREEDY,
    gptoss.Sampling(seed=SEED),
    gptoss.Sampling(seed=SEED + 1, temperature=0.6, min_p=0.05),
    gptoss.Sampling(seed=SEED + 2, temperature=3.0),
]
SPEC = Spec(num_layers=2, window=8, vocab_size=1237, max_positions=400)


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the device is."""
    monkeypatch.setattr(run_ahead, "_MAX_SECONDS", 1e9)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    print(f"seed {SEED}")
    return write_model(tmp_path_factory.mktemp("v") / "m", SPEC, np.random.default_rng(SEED))


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[gptoss.Model]:
    with gptoss.Model(path, device="vulkan", precision="fp32") as opened:
        yield opened


def start(model: gptoss.Model, num_tokens: int = 5, context: int = 400) -> gptoss.Generator:
    generator = open_generator(model, context)
    generator.prefill(random_tokens(model, num_tokens, SEED))
    return generator


def without(generator: gptoss.Generator, **options: Any) -> gptoss.Generation:
    """A generation that steps token by token: a processor that changes nothing hides the draw."""
    return generator.generate(processors=[lambda tokens, logits: None], **options)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_outputs_are_those_of_steps(model: gptoss.Model, sampling: gptoss.Sampling) -> None:
    ours, theirs = start(model), start(model)
    for generator in (ours, theirs):
        generator.capture("layers.1.residual", "layers.0.router_experts", keep="all")
    options = {"max_tokens": 40, "sampling": sampling, "stop_tokens": ()}
    pairs = zip(
        observed(ours, ours.generate(**options)),
        observed(theirs, without(theirs, **options)),
        strict=True,
    )
    for n, (one, other) in enumerate(pairs):
        assert one[0].token == other[0].token, f"output {n}"
        assert one[1:] == other[1:], f"output {n}"


@pytest.mark.parametrize("vocab_size", [2, 63, 64, 65, 257, 16384 + 7])
def test_guesses_are_what_is_drawn(tmp_path: Path, vocab_size: int) -> None:
    """All of them, or nearly: a random number may lie next to the border of two shares."""
    spec = Spec(num_layers=1, vocab_size=vocab_size, hidden_size=32, intermediate_size=32)
    write_model(tmp_path, spec, np.random.default_rng(SEED))
    num_right = num_guessed = 0
    with gptoss.Model(tmp_path, device="vulkan", precision="fp32") as model:
        for sampling in SAMPLINGS:
            generator = start(model, 3)
            for _ in range(4):
                token = generator.sample(sampling)
                seed = sampling.seed or 0
                generator._core.run_ahead(token, 8, sampling.temperature, sampling.min_p, seed)
                for position in range(8):
                    num_right += generator._core.next_ahead == token
                    num_guessed += 1
                    if generator._core.next_ahead != token:
                        break
                    generator.step(token)
                    token = generator.sample(sampling) if position < 7 else token
    assert num_guessed > 100 and num_right >= num_guessed - 1


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_draws_ahead_are_the_draws(model: gptoss.Model, sampling: gptoss.Sampling) -> None:
    generator, num_drawn = start(model), 0
    sampling = sampling.with_seed()
    options = sampling.temperature, sampling.min_p, sampling.seed
    for num_tokens in (1, 2, 8, 8):
        token = generator.sample(sampling)
        draws = generator._core.run_ahead(token, num_tokens, *options)
        assert 1 <= len(draws) <= num_tokens
        for expected in draws:
            generator.step(token)
            assert tuple(generator.draw(sampling)) == expected
            token = expected[0]
        num_drawn += len(draws)
    assert num_drawn >= 10  # all 19 but for those behind a guess that was wrong


def test_equal_logits_are_the_first_token(tmp_path: Path) -> None:
    tensors = random_tensors(SPEC, np.random.default_rng(SEED))
    write_model(tmp_path, SPEC, np.random.default_rng(SEED))
    tensors["lm_head.weight"] = np.zeros_like(tensors["lm_head.weight"])
    write_safetensors(tmp_path / "model.safetensors", tensors)
    with gptoss.Model(tmp_path, device="vulkan", precision="fp32") as model:
        generator = start(model)
        generator._core.run_ahead(9, 3, 0.0, 0.0, 0)
        for token in (9, 0, 0):
            assert generator._core.next_ahead == token
            generator.step(token)


def test_another_token_than_the_guess(model: gptoss.Model) -> None:
    ours, theirs = start(model), start(model)
    ours._core.run_ahead(7, 6, 0.0, 0.0, 0)
    for generator in (ours, theirs):
        generator.step(7)
    guessed = ours._core.next_ahead
    assert guessed == theirs.sample(GREEDY)
    other = (guessed + 1) % SPEC.vocab_size
    assert_same_bits(ours.step(other), theirs.step(other))
    assert ours._core.next_ahead is None
    assert_same_bits(ours.prefill([1, 2, 3]), theirs.prefill([1, 2, 3]))
    assert ours.tokens.tolist() == theirs.tokens.tolist()
    for layer in range(SPEC.num_layers):
        for one, other_view in zip(ours.kv(layer), theirs.kv(layer), strict=True):
            assert_same_bits(one, other_view)


def test_what_ends_a_run(model: gptoss.Model) -> None:
    """The context, the device's own limit, a token that is none."""
    generator = start(model, 5, context=8)
    generator._core.run_ahead(1, 8, 0.0, 0.0, 0)
    for _ in range(3):
        token = generator._core.next_ahead
        assert token is not None
        generator.step(token)
    assert generator._core.next_ahead is None and generator.position == 8
    with pytest.raises(gptoss.ContextError):
        generator._core.run_ahead(1, 2, 0.0, 0.0, 0)
    generator = start(model)
    generator._core.run_ahead(1, 1000, 0.0, 0.0, 0)
    taken = 0
    while (token := generator._core.next_ahead) is not None:
        generator.step(token)
        taken += 1
    assert taken == 8
    for bad in (-1, SPEC.vocab_size):
        with pytest.raises(gptoss.ArgumentError, match="outside the vocabulary"):
            generator._core.run_ahead(bad, 2, 0.0, 0.0, 0)


def test_a_text_may_stop_and_go_on(model: gptoss.Model) -> None:
    ours, theirs = start(model), start(model)
    for count in (1, 2, 3, 9):
        results = []
        for generator, begin in ((ours, ours.generate), (theirs, None)):
            options = {"max_tokens": 30, "sampling": GREEDY, "stop_tokens": ()}
            outputs = begin(**options) if begin else without(generator, **options)
            results.append([next(outputs).token for _ in range(count)])
        assert results[0] == results[1]
        assert ours.tokens.tolist() == theirs.tokens.tolist()
        assert ours.position == theirs.position
    fork = ours.fork()
    assert_same_bits(fork.prefill([4]), theirs.prefill([4]))
    assert_same_bits(ours.prefill([4]), theirs.logits)


def test_nan_is_reported_when_its_token_is_due(tmp_path: Path) -> None:
    """Token 0 leads to 1 and so on; the embedding of 3 is NaN."""
    spec = Spec(num_layers=1, vocab_size=64, hidden_size=64, intermediate_size=32)
    write_model(tmp_path, spec, np.random.default_rng(SEED))
    tensors = random_tensors(spec, np.random.default_rng(SEED))
    for name, tensor in tensors.items():
        if "o_proj" in name or "down_proj" in name:  # the residual stays the embedding
            tensors[name] = np.zeros_like(tensor)
    embedding = np.eye(64, dtype=np.float32)
    embedding[3] = np.nan
    dtype = tensors["model.embed_tokens.weight"].dtype
    tensors["model.embed_tokens.weight"] = embedding.astype(dtype)
    tensors["model.norm.weight"] = np.ones(64, dtype)
    tensors["lm_head.weight"] = np.roll(np.eye(64, dtype=np.float32), 1, axis=0).astype(dtype)
    write_safetensors(tmp_path / "model.safetensors", tensors)
    with gptoss.Model(tmp_path, device="vulkan", precision="fp32") as model:
        generator = open_generator(model, 50)
        found = []
        with pytest.raises(gptoss.NumericError):
            for output in generator.generate([0], max_tokens=20, sampling=GREEDY, stop_tokens=()):
                found.append(output.token)
        assert found == [1, 2, 3]
        assert generator.tokens.tolist() == [0, 1, 2, 3] and generator.position == 3


def test_ctrl_c(model: gptoss.Model) -> None:
    generator = start(model)
    expected = [out.token for out in generator.fork().generate(max_tokens=300, sampling=GREEDY)]

    with ctrl_c_after(0.2):
        for _ in range(1000):
            generator.rewind(5)
            for _ in generator.generate([3], max_tokens=300, sampling=GREEDY):
                pass
    generator.reset()
    generator.prefill(random_tokens(model, 5, SEED))
    again = [out.token for out in generator.generate(max_tokens=300, sampling=GREEDY)]
    assert again == expected


def test_memory_refused_anywhere(path: Path) -> None:
    def work(model: gptoss.Model) -> Any:
        generator = start(model)
        options = {"max_tokens": 12, "sampling": GREEDY, "stop_tokens": ()}
        return [out.token for out in generator.generate(**options)]

    with gptoss.Model(path, device="vulkan", threads=2) as model:
        expected = work(model)
    with gptoss.Model(path, device="vulkan", threads=2) as model:
        failing = 0
        while True:
            failing += 1
            _core.fail_allocation(failing)
            try:
                tokens = work(model)
            except gptoss.OutOfMemoryError:
                tokens = expected
            finally:
                total = _core.fail_allocation(0)
            assert tokens == expected, f"allocation {failing}"
            if total < failing:
                break
        assert failing > 10


@pytest.mark.parametrize(("seconds", "expected"), [(1e9, [2, 4, 8, 8, 8, 3]), (0.0, [2, 4])])
def test_turns_grow_unless_the_device_is_slow(
    monkeypatch: pytest.MonkeyPatch, seconds: float, expected: list[int]
) -> None:
    monkeypatch.setattr(run_ahead, "_MAX_SECONDS", seconds)
    counts: list[int] = []
    core = types.SimpleNamespace(
        next_ahead=None, run_ahead=lambda _, n, *rest: counts.append(n) or []
    )
    taps = types.SimpleNamespace(require_room=lambda rows: None)
    generator: Any = types.SimpleNamespace(_core=core, _pending=1, _taps=taps, position=5)
    ahead = run_ahead.RunAhead(GREEDY)
    for num_left in (100, 98, 94, 86, 78, 3, 1):
        ahead.prepare(generator, num_left)
    core.next_ahead = 1
    ahead.prepare(generator, 100)
    assert counts == expected


def test_what_does_not_run_ahead(path: Path) -> None:
    with gptoss.Model(path) as model:
        generator = start(model)
        assert not generator._core.runs_ahead
        with pytest.raises(gptoss.UnsupportedError):
            generator._core.run_ahead(1, 2, 0.0, 0.0, 0)
    for sampling in (
        gptoss.Sampling(top_k=5),
        gptoss.Sampling(top_p=0.9),
        gptoss.Sampling(repetition_penalty=1.1),
        gptoss.Sampling(frequency_penalty=0.1),
        gptoss.Sampling(presence_penalty=0.1),
        gptoss.Sampling(logit_bias={1: 2.0}),
    ):
        assert not run_ahead.can_guess(sampling)
