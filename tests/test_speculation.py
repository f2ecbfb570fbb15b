"""Speculation: the outputs, and what can be seen of the Generator at each, are those of plain
decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Spec
from support import Array, assert_same_bits, ctrl_c_after, open_generator, random_tokens

import gptoss
from gptoss import _core

GREEDY = gptoss.Sampling(temperature=0)
ISAS = [name for name, available in _core.isas() if available]
REPEATED = "The cat sat on the mat. The dog sat on the mat. The cat sat on the mat. The dog"
PROMPTS = [
    "Once upon a time",
    "A",
    REPEATED,
    "one two three four one two three four one two",
    "1, 2, 3, 4, 5, 6, 7,",
    "a a a a a a a a",
    "What is 17 + 25? What is 25 + 17?",
]
ALWAYS = gptoss.Speculation(draft_tokens=16, min_ngram=1)  # drafts wherever a token came before


def echo(period: int) -> Callable[[Array, Array], None]:
    """A processor that makes a text repeat itself."""

    def process(tokens: Array, logits: Array) -> None:
        if len(tokens) >= period:
            logits[:] = -np.inf
            logits[tokens[-period]] = 0

    return process


def observed(generator: gptoss.Generator, outputs: Iterator[gptoss.Output]) -> Iterator[Any]:
    """Each output with all that can be seen of its Generator then."""
    for out in outputs:
        kv = [generator.kv(layer) for layer in range(generator.model.config.num_layers)]
        yield (
            out,
            generator.position,
            generator.tokens.tolist(),
            generator.logits.tobytes(),
            [generator.kv_range(layer) for layer in range(len(kv))],
            [view.tobytes() for pair in kv for view in pair],
            {name: rows.tobytes() for name, rows in generator.taps.items()},
            generator.taps.first_position,
        )


def assert_same_run(model: gptoss.Model, speculate: Any, prompt: Any, **options: Any) -> Any:
    """Plain and speculative decoding side by side; what speculation did."""
    plain = open_generator(model, 2000)
    quick = open_generator(model, 2000, speculate=speculate)
    for generator in (plain, quick):
        generator.capture(*options.get("capture", ()), keep=options.get("keep", "last"))
    options = {name: value for name, value in options.items() if name not in ("capture", "keep")}
    options.setdefault("stop_tokens", ())
    ours = observed(quick, quick.generate(prompt, **options))
    theirs = observed(plain, plain.generate(prompt, **options))
    for n, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert one == other, f"output {n}"
    return quick.speculation


@pytest.mark.parametrize("speculate", [True, ALWAYS])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_and_sampled(demo: gptoss.Model, prompt: str, speculate: Any) -> None:
    for sampling in (
        GREEDY,
        gptoss.Sampling(temperature=0.3, seed=4),
        gptoss.Sampling(seed=5, top_p=0.9),
        gptoss.Sampling(temperature=0, repetition_penalty=1.2, frequency_penalty=0.1),
    ):
        assert_same_run(demo, speculate, prompt, max_tokens=60, sampling=sampling)


def test_drafts_come_true_in_a_text_that_repeats_itself(demo: gptoss.Model) -> None:
    stats = assert_same_run(
        demo, True, PROMPTS[0], max_tokens=200, sampling=GREEDY, processors=[echo(9)]
    )
    assert stats.tokens == 199 and stats.accepted > 150
    assert stats.tokens == stats.passes + stats.accepted
    assert stats.acceptance_rate > 0.9 and stats.tokens_per_pass > 4
    stats = assert_same_run(demo, True, REPEATED, max_tokens=100, sampling=GREEDY)
    assert 0 < stats.accepted <= stats.drafted


def test_text_without_repeats_is_hardly_drafted_for(demo: gptoss.Model) -> None:
    """Where every draft is wrong they get rare: each would cost a part of a pass."""

    def never_again(tokens: Array, logits: Array) -> None:
        """What followed the last token before does not follow it again."""
        logits[tokens[1:][tokens[:-1] == tokens[-1]]] = -np.inf

    stats = assert_same_run(
        demo,
        gptoss.Speculation(min_ngram=1),
        PROMPTS[0],
        max_tokens=300,
        sampling=GREEDY,
        processors=[
            never_again,
            lambda tokens, logits: np.where(logits < np.sort(logits)[-50], -np.inf, logits),
        ],
    )
    assert stats.accepted == 0 and 0 < stats.drafted < 20


def test_processors_are_called_as_in_plain_decoding(demo: gptoss.Model) -> None:
    calls: dict[bool, list[list[int]]] = {True: [], False: []}
    for speculate in calls:

        def watch(tokens: Array, logits: Array, seen: Any = calls[speculate]) -> None:
            seen.append(tokens.tolist())

        with gptoss.Generator(demo, speculate=speculate) as generator:
            list(
                generator.generate(
                    REPEATED, max_tokens=50, sampling=GREEDY, processors=[watch, echo(5)]
                )
            )
    assert calls[True] == calls[False]


@pytest.mark.parametrize("keep", ["last", "all"])
def test_taps(demo: gptoss.Model, keep: str) -> None:
    stats = assert_same_run(
        demo,
        True,
        REPEATED,
        max_tokens=40,
        sampling=GREEDY,
        processors=[echo(6)],
        capture=("layers.*.router*", "layers.0.sink_mass", "embedding", "final_norm"),
        keep=keep,
    )
    assert stats.accepted > 20


def test_taps_that_have_no_room_ahead(demo: gptoss.Model) -> None:
    generator = gptoss.Generator(demo, speculate=True)
    generator.prefill(demo.tokenizer.encode(REPEATED))  # type: ignore[union-attr]
    generator.capture("embedding", max_bytes=256 * 4)
    outputs = list(generator.generate(max_tokens=10, sampling=GREEDY, processors=[echo(6)]))
    assert len(outputs) == 10 and generator.speculation is not None
    assert generator.speculation.drafted == 0


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_instruction_sets(
    isa: str, threads: int, make_directory: Callable[..., Path]
) -> None:
    """Through windows of 21 and tiles of 64, and where sliding layers give rows up."""
    spec = Spec(num_layers=3, window=21, vocab_size=61)
    with gptoss.Model(make_directory(spec), isa=isa, threads=threads) as model:
        for period in (1, 7):
            stats = assert_same_run(
                model,
                gptoss.Speculation(draft_tokens=30),
                random_tokens(model, 40),
                max_tokens=100,
                sampling=gptoss.Sampling(seed=1),
                processors=[echo(period)],
            )
            assert stats.accepted > 50
        stats = assert_same_run(
            model,
            True,
            random_tokens(model, 500),
            max_tokens=200,
            sampling=gptoss.Sampling(seed=1),
            processors=[echo(11)],
        )
        assert stats.accepted > 100


# ---- what other calls find ----


def test_any_call_between_two_outputs(demo: gptoss.Model) -> None:
    """Whatever is done after an output finds a Generator of plain decoding."""
    uses: list[Callable[[gptoss.Generator], Any]] = [
        lambda g: g.step(int(g.tokens[-9])).copy(),
        lambda g: g.prefill([1, 2, 3]).copy(),
        lambda g: g.prefill([int(g.tokens[-9])], all_logits=True),
        lambda g: (g.rewind(g.position - 1), g.step(7).copy())[1],
        lambda g: (g.rewind(g.position), g.step(7).copy())[1],
        lambda g: (g.rewind(g.position + 1), g.step(7).copy())[1],
        lambda g: (g.reset(), g.step(7).copy())[1],
        lambda g: g.fork().step(7).copy(),
        lambda g: [g.fork().step(8).copy(), g.step(7).copy()][1],
        lambda g: gptoss.forward([g], [7])[0].copy(),
        lambda g: (g.capture("embedding"), g.step(7), g.taps["embedding"])[2],
        lambda g: np.array([out.token for out in g.generate(max_tokens=9, sampling=GREEDY)]),
    ]
    for after in range(1, 8):
        for number, use in enumerate(uses):
            results = []
            for speculate in (None, True):
                generator = gptoss.Generator(demo, speculate=speculate)
                outputs = generator.generate(REPEATED, sampling=GREEDY, processors=[echo(9)])
                for _ in range(after):
                    next(outputs)
                result = np.array(use(generator))
                results.append((result, generator.position, generator.tokens.tolist()))
            assert_same_bits(results[1][0], results[0][0], f"use {number} after {after}")
            assert results[1][1:] == results[0][1:]


def test_what_was_guessed_is_forgotten_when_the_text_moves(demo: gptoss.Model) -> None:
    """The token that was due next, fed anywhere else, has the row of that place."""
    moves: list[Callable[[gptoss.Generator], Any]] = [
        lambda g: g.rewind(5),
        lambda g: (g.reset(), g.step(9)),
        lambda g: g.step(9),
        lambda g: g.prefill([9, 10]),
        lambda g: gptoss.forward([g], [9]),
        lambda g: g.prefill([21], all_logits=True),
        lambda g: g._core.look_ahead([4, 22]),
        lambda g: g.capture("embedding"),
    ]
    for number, move in enumerate(moves):
        generator = gptoss.Generator(demo)
        generator.prefill(random_tokens(demo, 20))
        generator._core.look_ahead([21, 22, 23])
        assert generator._core.next_ahead == 21
        move(generator)
        assert generator._core.next_ahead == (4 if number == 6 else None)
        before = generator.tokens.tolist()
        found = generator.step(21).copy()
        if number == len(moves) - 1:
            assert generator.taps["embedding"].shape == (1, 256)
        fresh = gptoss.Generator(demo)
        assert_same_bits(found, fresh.prefill([*before, 21]), f"move {number}")


def test_progress_and_pending_rows(demo: gptoss.Model) -> None:
    """A token whose row is there already is told to progress like any other."""
    generator = gptoss.Generator(demo, speculate=True)
    outputs = generator.generate(REPEATED, sampling=GREEDY, processors=[echo(9)])
    while generator._core.next_ahead is None or generator._pending is None:
        next(outputs)
    while generator._core.next_ahead != generator._pending:
        next(outputs)
    news: list[tuple[int, int]] = []
    generator._feed((), None, lambda *counts: news.append(counts))
    assert news == [(1, 1)]

    def fail(done: int, total: int) -> None:
        raise ZeroDivisionError

    (token,) = [generator._core.next_ahead]
    assert token is not None
    position = generator.position
    with pytest.raises(ZeroDivisionError):
        generator.prefill([token], progress=fail)
    assert generator.position == position + 1


def test_the_end_of_the_context(demo: gptoss.Model) -> None:
    for max_tokens in (None, 100):
        lengths = []
        for speculate in (None, ALWAYS):
            generator = gptoss.Generator(demo, max_context=30, speculate=speculate)
            outputs = generator.generate(
                [1, 2, 3, 1, 2, 3], max_tokens=max_tokens, stop_tokens=(), processors=[echo(3)]
            )
            drawn = []
            try:
                drawn += [out.token for out in outputs]
            except gptoss.ContextError:
                assert max_tokens == 100
            lengths.append((len(generator.tokens), generator.position))
        assert lengths == [(31, 30)] * 2


def test_drafts_end_where_the_answer_must(demo: gptoss.Model) -> None:
    generator = gptoss.Generator(demo, speculate=True)
    list(generator.generate(REPEATED, max_tokens=2, sampling=GREEDY, processors=[echo(9)]))
    assert generator.speculation == gptoss.SpeculationStats(tokens=1, passes=1)


def test_stop_strings_and_going_on(demo: gptoss.Model) -> None:
    results = []
    for speculate in (None, True):
        generator = gptoss.Generator(demo, speculate=speculate)
        texts = []
        for _ in range(6):
            prompt = REPEATED if generator.position == 0 else None
            outputs = generator.generate(
                prompt, max_tokens=30, sampling=GREEDY, stop=["sat", "mat"], processors=[echo(7)]
            )
            texts.append("".join(out.text for out in outputs))
        results.append((texts, generator.tokens.tolist(), generator.position))
    assert results[0] == results[1]


# ---- interruption, errors ----


def test_refused_memory_is_plain_decoding(demo: gptoss.Model) -> None:
    expected = list(
        gptoss.Generator(demo).generate(
            REPEATED, max_tokens=12, sampling=GREEDY, processors=[echo(9)]
        )
    )
    failed = 0
    for n in range(1, 12):
        generator = gptoss.Generator(demo, speculate=True)
        outputs = generator.generate(REPEATED, max_tokens=12, sampling=GREEDY, processors=[echo(9)])
        found = [next(outputs)]
        _core.fail_allocation(n)
        try:
            for out in outputs:
                found.append(out)  # what came before the exception, too
        except gptoss.OutOfMemoryError:  # in what plain decoding needs, too
            failed += 1
            _core.fail_allocation(0)
            found += list(
                generator.generate(
                    max_tokens=12 - len(found), sampling=GREEDY, processors=[echo(9)]
                )
            )
        finally:
            _core.fail_allocation(0)
        assert [out.token for out in found] == [out.token for out in expected]
    assert failed < 11


def test_exceptions_in_a_draw(demo: gptoss.Model) -> None:
    results = []
    for speculate in (None, True):
        generator = gptoss.Generator(demo, speculate=speculate)
        calls = 0

        def fail(tokens: Array, logits: Array) -> None:
            nonlocal calls
            calls += 1
            if calls == 14:
                raise ZeroDivisionError

        outputs = generator.generate(REPEATED, sampling=GREEDY, processors=[echo(9), fail])
        with pytest.raises(ZeroDivisionError):
            list(outputs)
        state = (generator.position, generator.tokens.tolist(), generator.logits.tobytes())
        rest = generator.generate(max_tokens=10, sampling=GREEDY, processors=[echo(9)])
        results.append((state, [out.token for out in rest]))
    assert results[0] == results[1]


def test_ctrl_c() -> None:
    with gptoss.Model("demo", isa="scalar", threads=1) as model:
        generator = gptoss.Generator(model, speculate=gptoss.Speculation(draft_tokens=200))
        outputs = generator.generate(
            random_tokens(model, 40), sampling=GREEDY, stop_tokens=(), processors=[echo(13)]
        )
        with ctrl_c_after(0.4):
            for _ in outputs:
                pass
        tokens = generator.tokens.tolist()
        assert len(tokens) - generator.position in (0, 1)
        found = generator.step(5).copy()
        with gptoss.Generator(model) as fresh:
            assert_same_bits(found, fresh.prefill([*tokens, 5]))


def test_options(demo: gptoss.Model) -> None:
    assert gptoss.Generator(demo).speculation is None
    assert gptoss.Generator(demo, speculate=False).speculation is None
    generator = gptoss.Generator(demo, speculate=True)
    assert generator.speculation == gptoss.SpeculationStats()
    assert generator.speculation.acceptance_rate == generator.speculation.tokens_per_pass == 0
    list(generator.generate(REPEATED, max_tokens=20, sampling=GREEDY))
    fork = generator.fork()
    assert generator.speculation.passes > 0 and fork.speculation == gptoss.SpeculationStats()
    for bad in ("yes", 3, 0.5, {}):
        with pytest.raises(gptoss.ArgumentError, match="speculate must be"):
            gptoss.Generator(demo, speculate=bad)  # type: ignore[arg-type]
    for options, words in (
        ({"draft_tokens": 0}, "draft_tokens must be from 1"),
        ({"draft_tokens": 1.5}, "draft_tokens must be an integer"),
        ({"max_ngram": 0}, "max_ngram"),
        ({"max_ngram": 2, "min_ngram": 3}, "min_ngram must be from 1 to 2"),
        ({"draft_token": 3}, "did you mean 'draft_tokens'"),
    ):
        with pytest.raises(gptoss.ArgumentError, match=words):
            gptoss.Speculation(**options)  # type: ignore[arg-type]


# ---- drafts ----


def expected_draft(tokens: list[int], count: int, settings: gptoss.Speculation) -> list[int]:
    """The definition, token by token."""
    for length in range(settings.max_ngram, settings.min_ngram - 1, -1):
        ends = [
            end
            for end in range(length, len(tokens))
            if tokens[end - length : end] == tokens[len(tokens) - length :]
        ]
        if ends and length < len(tokens):
            text = list(tokens)
            for i in range(count):
                text.append(text[ends[-1] + i])
            return text[len(tokens) :]
    return []


@settings(max_examples=300)
@given(
    tokens=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    count=st.integers(0, 12),
    ngrams=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_drafts_follow_the_latest_of_the_longest(
    tokens: list[int], count: int, ngrams: tuple[int, int]
) -> None:
    speculation = gptoss.Speculation(max_ngram=max(ngrams), min_ngram=min(ngrams))
    draft = speculation.draft(np.array(tokens, np.int32), count)
    assert draft.tolist() == expected_draft(tokens, count, speculation)
