"""gptoss.score: against NumPy on all logits, against the reference, bit-equal however it is cut."""

from __future__ import annotations

import json
import math
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dense_models
import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from models import Spec, hf_config, random_tensors, write_safetensors
from support import assert_same_bits, open_generator, random_tokens

import gptoss
from gptoss import _core
from gptoss.score import Moments, Scorer, windows

SPEC = Spec(num_layers=2, vocab_size=301, max_positions=256)
SEED = secrets.randbelow(2**32)
ARRAYS = ("logprobs", "ranks", "entropies", "reference_logprobs", "kl", "same_top")


@pytest.fixture(scope="module")
def other(make_directory: Callable[..., Path]) -> Iterator[gptoss.Model]:
    with gptoss.Model(make_directory(SPEC, seed=1), threads=2) as opened:
        yield opened


def write_with_head(directory: Path, head: Any, spec: Spec = SPEC) -> Path:
    """A model whose unembedding head(random one) makes, in float32."""
    tensors = random_tensors(spec, np.random.default_rng(0))
    tensors["lm_head.weight"] = head(tensors["lm_head.weight"].astype(np.float32))
    (directory / "config.json").write_text(json.dumps(hf_config(spec)))
    write_safetensors(directory / "model.safetensors", tensors)
    return directory


def swinging_column(model: gptoss.Model, tokens: list[int]) -> int:
    """The element of the final norm that goes farthest to both sides: times 3e38 it is infinite
    of either sign."""
    generator = open_generator(model, len(tokens))
    generator.capture("final_norm")
    generator.prefill(tokens)
    values = generator.taps["final_norm"]
    column = int(np.minimum(values.max(axis=0), -values.min(axis=0)).argmax())
    assert values[:, column].max() > 1.2 and values[:, column].min() < -1.2
    return column


def all_logits(model: gptoss.Model, tokens: list[int]) -> np.ndarray:
    return open_generator(model, len(tokens)).prefill(tokens, all_logits=True)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def expected(logits: np.ndarray, reference_logits: np.ndarray, tokens: list[int]) -> dict[str, Any]:
    """What score() gives, from the logits of every token."""
    rows, targets = np.arange(len(tokens) - 1), np.array(tokens[1:])
    ours, theirs = log_softmax(logits[:-1]), log_softmax(reference_logits[:-1])
    values = logits[:-1]
    right = values[rows, targets][:, None]
    ids = np.arange(values.shape[1])
    before = (values > right) | ((values == right) & (ids < targets[:, None]))
    return {
        "logprobs": ours[rows, targets],
        "ranks": before.sum(axis=1),
        "entropies": -(np.exp(ours) * ours).sum(axis=1),
        "reference_logprobs": theirs[rows, targets],
        "kl": (np.exp(theirs) * (theirs - ours)).sum(axis=1),
        "same_top": values.argmax(axis=1) == reference_logits[:-1].argmax(axis=1),
    }


# ---- numbers ----


@pytest.mark.parametrize("count", [2, 3, 64, 65, 66, 129, 200])
def test_against_numpy_on_all_logits(model: gptoss.Model, other: gptoss.Model, count: int) -> None:
    tokens = random_tokens(model, count, SEED)
    found = gptoss.score(model, tokens, reference=other)
    assert found.tokens.tolist() == tokens[1:]
    for name, values in expected(
        all_logits(model, tokens), all_logits(other, tokens), tokens
    ).items():
        array = getattr(found, name)
        assert array.dtype == {"ranks": np.int32, "same_top": np.bool_}.get(name, np.float64)
        np.testing.assert_allclose(array, values, rtol=1e-12, atol=1e-12, err_msg=name)
    assert found.perplexity == pytest.approx(math.exp(-found.logprobs.mean()), rel=1e-12)
    error = found.logprobs.std(ddof=1) / math.sqrt(count - 1) if count > 2 else math.nan
    assert found.standard_error == pytest.approx(error, rel=1e-9, nan_ok=True)
    assert found.mean_kl == pytest.approx(found.kl.mean(), rel=1e-12)
    assert found.agreement == found.same_top.mean()
    assert f"{count - 1} tokens" in repr(found) and "KL" in repr(found)


def test_against_the_reference_implementation(directory: Path, model: gptoss.Model) -> None:
    """Float32 sums differ from float64 ones by some 1e-6; a route that is a near tie by more."""
    tokens = random_tokens(model, 60, SEED)
    logits = reference.forward(reference.Model(directory), tokens)["logits"]
    values = log_softmax(logits[:-1])[np.arange(59), tokens[1:]]
    found = gptoss.score(model, tokens, kv_dtype="f32")
    near = np.abs(found.logprobs - values) < 1e-4
    assert near.mean() > 0.9


@pytest.mark.parametrize("spec", [dense_models.Llama(), dense_models.Gpt2()], ids=["llama", "gpt2"])
def test_dense_families(tmp_path: Path, spec: Any) -> None:
    path = dense_models.write_hf(tmp_path, spec, np.random.default_rng(SEED), "BF16")
    with gptoss.Model(path) as model:
        tokens = random_tokens(model, 70, SEED)
        values = log_softmax(all_logits(model, tokens)[:-1])[np.arange(69), tokens[1:]]
        found = gptoss.score(model, tokens)
    np.testing.assert_allclose(found.logprobs, values, rtol=1e-12, atol=1e-12)


def test_logprobs_are_those_of_the_sampler(tmp_path: Path, model: gptoss.Model) -> None:
    """Rounded to float32 the same bits, infinite logits included."""
    tokens = random_tokens(model, 100, SEED)
    tokens[1::9] = [7] * len(tokens[1::9])
    column = swinging_column(model, tokens)

    def head(weights: np.ndarray) -> np.ndarray:
        weights[7] = 0
        weights[7, column] = 3e38
        return weights

    with gptoss.Model(write_with_head(tmp_path, head)) as broken:
        found = gptoss.score(broken, tokens)
        logits = all_logits(broken, tokens)
    assert np.isinf(logits).any()
    for row, token in enumerate(tokens[1:]):
        every = dict(_core.top_logprobs(logits[row], SPEC.vocab_size))
        assert np.float32(found.logprobs[row]) == np.float32(every[token])
        assert [*every].index(token) == found.ranks[row]
    assert np.isfinite(found.entropies).all()


def test_infinite_divergence(tmp_path: Path, model: gptoss.Model) -> None:
    """A token that only the reference allows."""
    tokens = random_tokens(model, 60, SEED)
    column = swinging_column(model, tokens)

    def head(weights: np.ndarray) -> np.ndarray:
        weights[7] = 0
        weights[7, column] = 3e38
        return weights

    with gptoss.Model(write_with_head(tmp_path, head)) as broken:
        impossible = np.isneginf(all_logits(broken, tokens)[:-1, 7])
        certain = np.isposinf(all_logits(broken, tokens)[:-1, 7])
        found = gptoss.score(broken, tokens, reference=model)
        back = gptoss.score(model, tokens, reference=broken)
    assert impossible.any() and certain.any()
    assert np.array_equal(np.isinf(found.kl), impossible | certain)
    assert np.isfinite(back.kl).all()  # of a certain token: -log of its probability
    np.testing.assert_array_equal(back.reference_logprobs, found.logprobs)
    assert found.mean_kl == math.inf


def test_a_text_whose_perplexity_is_known(tmp_path: Path) -> None:
    """Logits that are all equal: every token has probability 1 / vocab_size."""
    with gptoss.Model(write_with_head(tmp_path, np.zeros_like)) as model:
        tokens = random_tokens(model, 150, SEED)
        found = gptoss.score(model, tokens)
    assert found.perplexity == pytest.approx(SPEC.vocab_size, rel=1e-14)
    assert found.standard_error == 0
    np.testing.assert_allclose(found.entropies, math.log(SPEC.vocab_size), rtol=1e-14)
    assert found.ranks.tolist() == tokens[1:]  # of equals the lowest id is first


def test_a_model_compared_with_itself(directory: Path, model: gptoss.Model) -> None:
    tokens = random_tokens(model, 80, SEED)
    with gptoss.Model(directory, isa="scalar", threads=1) as again:
        found = gptoss.score(model, tokens, reference=again)
    assert (found.kl == 0).all() and found.same_top.all()
    assert_same_bits(found.reference_logprobs, found.logprobs)


# ---- the same bits ----


def raw_score(
    model: gptoss.Model, reference: gptoss.Model, tokens: list[int], **options: Any
) -> gptoss.Score:
    with Scorer(model, reference, len(tokens), **options) as scorer:
        return scorer.score(np.array(tokens, np.int32), 1)


@pytest.mark.parametrize("block_size", [1, 7, 63, 64, 65, 149])
def test_block_sizes_give_the_same_bits(
    model: gptoss.Model, other: gptoss.Model, block_size: int
) -> None:
    tokens = random_tokens(model, 150, SEED)
    whole = raw_score(model, other, tokens)
    found = raw_score(model, other, tokens, block_size=block_size)
    for name in ARRAYS:
        assert_same_bits(getattr(found, name), getattr(whole, name), name)


@pytest.mark.parametrize("isa", [name for name, available in _core.isas() if available])
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_isas_give_the_same_bits(
    directory: Path, model: gptoss.Model, other: gptoss.Model, isa: str, threads: int
) -> None:
    tokens = random_tokens(model, 100, SEED)
    whole = gptoss.score(model, tokens, reference=other)
    with gptoss.Model(directory, isa=isa, threads=threads) as same:
        found = gptoss.score(same, tokens, reference=other)
    for name in ARRAYS:
        assert_same_bits(getattr(found, name), getattr(whole, name), name)


def test_a_scoring_generator_goes_on(model: gptoss.Model) -> None:
    """Rows that are not scored are fed alike; outs of others are left alone."""
    tokens = random_tokens(model, 100, SEED)
    plain, scoring = gptoss.Generator(model), gptoss.Generator(model, block_size=33)
    plain.prefill(tokens)
    targets = [5 if i % 3 == 0 else -1 for i in range(100)]
    logprobs = np.full(100, 1.0)
    scoring._core.score(tokens, targets, None, (logprobs, *[None] * 5), None)
    assert_same_bits(scoring.logits, plain.logits)
    assert_same_bits(scoring.step(3), plain.step(3))
    assert np.array_equal(logprobs < 0, np.arange(100) % 3 == 0)
    values = log_softmax(all_logits(model, tokens))[::3, 5]
    np.testing.assert_allclose(logprobs[::3], values, rtol=1e-12)


# ---- windows ----


@given(st.integers(0, 300), st.integers(2, 60), st.integers(1, 59))
def test_windows_score_every_token_once(count: int, size: int, stride: int) -> None:
    stride = min(stride, size - 1)
    scored, last = [], 0
    for begin, end, first in windows(count, size, stride):
        assert 0 <= begin < first < end <= count and end - begin <= size
        assert begin == 0 or first - begin >= size - stride
        scored += range(first, end)
        last = end
    assert scored == list(range(1, count))
    assert last == (count if count > 1 else 0)


@pytest.mark.parametrize("stride", [1, 10, 19])
def test_a_text_longer_than_the_context(model: gptoss.Model, stride: int) -> None:
    tokens = random_tokens(model, 47, SEED)
    found = gptoss.score(model, tokens, max_context=20, stride=stride)
    pieces = []
    for begin, end, first in windows(47, 20, stride):
        whole = gptoss.score(model, tokens[begin:end])
        pieces.append(whole.logprobs[first - begin - 1 :])
    assert_same_bits(found.logprobs, np.concatenate(pieces))
    assert found.tokens.tolist() == tokens[1:]


def test_progress_rises_to_the_total(model: gptoss.Model, other: gptoss.Model) -> None:
    calls: list[tuple[int, int]] = []
    tokens = random_tokens(model, 100, SEED)
    gptoss.score(
        model,
        tokens,
        max_context=30,
        reference=other,
        progress=lambda done, total: calls.append((done, total)),
    )
    total = sum(end - begin for begin, end, _ in windows(100, 30, 15))
    done = [call[0] for call in calls]
    assert done == sorted(done) and calls[-1] == (total, total)
    assert {call[1] for call in calls} == {total}


def test_texts_and_the_bos_token(demo: gptoss.Model, tmp_path: Path) -> None:
    text = "Once upon a time there was a small cat. " * 6
    ids = demo.tokenizer.encode(text)
    plain = gptoss.score(demo, text)
    assert_same_bits(plain.logprobs, gptoss.score(demo, ids).logprobs)
    assert not demo.tokenizer.adds_bos
    for file in demo.path.iterdir():
        if file.name != "tokenizer_config.json":
            (tmp_path / file.name).symlink_to(file)
    config = json.loads((demo.path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": True}))
    with gptoss.Model(tmp_path) as model:
        bos = model.tokenizer.bos_id
        assert model.tokenizer.adds_bos
        found = gptoss.score(model, text)
        assert_same_bits(found.logprobs, gptoss.score(demo, [bos, *ids]).logprobs)
        cut = gptoss.score(model, text, max_context=20, stride=10)
    second = gptoss.score(demo, [bos, *ids[10:29]])  # the window from token 10 on
    assert_same_bits(cut.logprobs[19:29], second.logprobs[9:])


# ---- refusals ----


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"text": []}, "0 tokens"),
        ({"text": [1]}, "1 tokens"),
        ({"text": [1, 301]}, "outside the vocabulary"),
        ({"text": [-1, 3]}, "outside the vocabulary"),
        ({"text": [1, 2**40]}, "a token must be"),
        ({"text": [1, "x"]}, "a token must be an integer"),
        ({"text": "words"}, "tokenizer"),
        ({"text": [1, 2], "stride": 0}, "stride"),
        ({"text": [1, 2], "max_context": 4, "stride": 4}, "stride"),
        ({"text": [1, 2], "max_context": 1}, "max_context"),
        ({"text": [1, 2], "reference": 3}, "reference"),
        ({"text": [1, 2], "kv_dtype": "f8"}, "kv_dtype"),
        ({"text": [1, 2], "progress": 3}, "progress"),
        ({"text": [1, 2], "strid": 1}, "did you mean 'stride'?"),
    ],
)
def test_refusals(model: gptoss.Model, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(gptoss.ArgumentError) as caught:
        gptoss.score(model, **arguments)
    assert words in str(caught.value)


def test_references_that_cannot_be(
    model: gptoss.Model, demo: gptoss.Model, make_directory: Callable[..., Path]
) -> None:
    with pytest.raises(gptoss.ArgumentError, match="same model; open it a second time"):
        gptoss.score(model, [1, 2], reference=model)
    with pytest.raises(gptoss.ArgumentError, match=r"vocabulary of 4096 tokens .* one of 301"):
        gptoss.score(model, [1, 2], reference=demo)


@pytest.mark.parametrize("both", [False, True])
def test_nan_logits(tmp_path: Path, model: gptoss.Model, both: bool) -> None:
    def head(weights: np.ndarray) -> np.ndarray:
        weights[SPEC.vocab_size - 1] = np.nan
        return weights

    with gptoss.Model(write_with_head(tmp_path, head)) as broken:
        models = (model, broken) if both else (broken, None)
        with pytest.raises(gptoss.NumericError, match="NaN"):
            gptoss.score(models[0], [1, 2, 3], reference=models[1])


def test_logits_that_are_all_minus_infinity(tmp_path: Path, model: gptoss.Model) -> None:
    tokens = random_tokens(model, 60, SEED)
    column = swinging_column(model, tokens)

    def head(weights: np.ndarray) -> np.ndarray:
        weights[:] = 0
        weights[:, column] = 3e38
        return weights

    broken = gptoss.Model(write_with_head(tmp_path, head))
    with broken, pytest.raises(gptoss.NumericError, match="-infinity"):
        gptoss.score(broken, tokens)


def test_outs_that_do_not_fit(model: gptoss.Model) -> None:
    core = gptoss.Generator(model)._core
    with pytest.raises(ValueError, match="too small"):
        core.score([1, 2, 3], None, None, (np.empty(2), *[None] * 5), None)
    with pytest.raises(ValueError, match="six"):
        core.score([1, 2, 3], None, None, (None,), None)
    with pytest.raises(ValueError, match="targets"):
        core.score([1, 2, 3], [1], None, (None,) * 6, None)
    with pytest.raises(gptoss.ArgumentError, match="target 301"):
        core.score([1, 2, 3], [1, 301, 0], None, (None,) * 6, None)
    with pytest.raises(gptoss.StateError, match="in use"):
        core.score([1, 2, 3], None, core, (None,) * 6, None)
    read_only = np.zeros(3)
    read_only.flags.writeable = False
    with pytest.raises((BufferError, ValueError)):
        core.score([1, 2, 3], None, None, (read_only, *[None] * 5), None)
    assert core.position == 0


# ---- interruptions, turns, memory ----


@pytest.mark.parametrize("stop", [0, 1, 3, 7])
def test_an_interruption_leaves_whole_blocks(
    model: gptoss.Model, other: gptoss.Model, stop: int
) -> None:
    tokens = random_tokens(model, 120, SEED)
    generators = [gptoss.Generator(each, block_size=16) for each in (model, other)]
    calls = 0

    def progress(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls > stop:
            raise InterruptedError

    logprobs = np.empty(120)
    with pytest.raises(InterruptedError):
        generators[0]._core.score(
            tokens, None, generators[1]._core, (logprobs, *[None] * 5), progress
        )
    position = generators[0].position
    assert position == generators[1].position and position % 16 in (0, 120 % 16)
    if position < 120:
        rest = tokens[position:]
        generators[0]._core.score(
            rest, None, generators[1]._core, (logprobs[position:], *[None] * 5), None
        )
        assert_same_bits(logprobs[:-1], gptoss.score(model, tokens).logprobs)


def test_a_callback_cannot_use_either_model(model: gptoss.Model, other: gptoss.Model) -> None:
    for inner in (model, other):
        generator = gptoss.Generator(inner)

        def progress(_: int, __: int, generator: gptoss.Generator = generator) -> None:
            generator.step(1)

        with pytest.raises(gptoss.StateError, match="in use by the call"):
            gptoss.score(model, [1, 2, 3], reference=other, progress=progress)
        generator.step(1)


@pytest.mark.usefixtures("one_minute")
def test_two_threads_compare_each_way(model: gptoss.Model, other: gptoss.Model) -> None:
    """Each takes the turns of both models: in one order, or they would wait for each other."""
    tokens = random_tokens(model, 20, SEED)
    pairs = [(model, other), (other, model)]
    alone = [gptoss.score(first, tokens, reference=second).kl for first, second in pairs]
    failures: list[str] = []

    def work(number: int) -> None:
        first, second = pairs[number]
        for _ in range(8):
            if not np.array_equal(gptoss.score(first, tokens, reference=second).kl, alone[number]):
                failures.append(f"thread {number} differs")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_every_allocation_refused(directory: Path, other: gptoss.Model) -> None:
    """Each is an OutOfMemoryError, and nothing is left behind."""
    tokens, refused = random_tokens(other, 40, SEED), 0
    whole = gptoss.score(other, tokens).logprobs
    for n in range(1, 200):
        with gptoss.Model(directory, threads=1) as fresh:
            generators = gptoss.Generator(fresh), gptoss.Generator(other)
            logprobs = np.empty(40)
            outs = (None, None, None, logprobs, None, None)
            _core.fail_allocation(n)
            try:
                generators[0]._core.score(tokens, None, generators[1]._core, outs, None)
                break
            except gptoss.OutOfMemoryError:
                refused += 1
            finally:
                _core.fail_allocation(0)
    assert refused > 10
    assert_same_bits(logprobs[:-1], whole)


# ---- moments ----


@given(st.lists(st.lists(st.floats(-1e6, 1e6), max_size=9), max_size=6))
def test_moments_of_parts_are_those_of_the_whole(parts: list[list[float]]) -> None:
    moments = Moments(*[np.array(part) for part in parts])
    values = np.array([value for part in parts for value in part], np.longdouble)
    assert moments.count == len(values)
    if len(values) == 0:
        assert moments.mean == 0 and math.isnan(moments.error)
        return
    scale = float(np.abs(values).max()) + 1e-300
    assert moments.mean == pytest.approx(float(values.mean()), abs=1e-14 * scale)
    if len(values) > 1:
        error = float(values.std(ddof=1)) / math.sqrt(len(values))
        assert moments.error == pytest.approx(error, rel=1e-6, abs=1e-12 * scale + 1e-150)
    else:
        assert math.isnan(moments.error)
