"""Generator.generate: stopping, streaming, processors, seeds, and where it leaves the Generator."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Spec
from support import assert_same_bits

import gptoss
from gptoss.generation import StopMatcher

GREEDY = gptoss.Sampling(temperature=0)
STORY = "Once upon a time"


@pytest.fixture
def generator(demo: gptoss.Model) -> Iterator[gptoss.Generator]:
    with gptoss.Generator(demo) as opened:
        yield opened


def forced(tokens: list[int], first: int) -> Callable[..., Any]:
    """A processor that makes a generation, begun at position `first`, write the given tokens."""

    def choose(history: Any, logits: Any) -> None:
        wanted = tokens[min(len(history) - first, len(tokens) - 1)]
        logits[:] = -np.inf
        logits[wanted] = 0

    return choose


def write(model: gptoss.Model, tokens: list[int], **options: Any) -> list[gptoss.Output]:
    """The outputs of a generation that is made to write the given tokens."""
    with gptoss.Generator(model, max_context=256) as generator:
        options = {"max_tokens": len(tokens), "stop_tokens": (), **options}
        return list(generator.generate([1], processors=[forced(tokens, 1)], **options))


def text_of(outputs: list[gptoss.Output]) -> str:
    return "".join(out.text for out in outputs)


# ---- the loop ----


def test_greedy_is_the_likeliest_token_each_time(generator: gptoss.Generator) -> None:
    outputs = list(generator.generate(STORY, max_tokens=20, sampling=GREEDY))
    model = generator.model
    assert model.tokenizer is not None
    other = gptoss.Generator(model)
    logits = other.prefill(model.tokenizer.encode(STORY))
    for out in outputs:
        assert out.token == int(logits.argmax())
        exact = logits.astype(np.float64)
        exact -= exact.max() + np.log(np.exp(exact - exact.max()).sum())
        assert out.logprob == pytest.approx(exact[out.token], abs=1e-5)
        logits = other.step(out.token)
    assert text_of(outputs) == model.tokenizer.decode([out.token for out in outputs])
    assert [out.finish_reason for out in outputs] == [None] * 19 + ["length"]


def test_nothing_happens_before_the_first_pull(generator: gptoss.Generator) -> None:
    outputs = generator.generate(STORY, max_tokens=3)
    assert generator.position == 0
    assert iter(outputs) is outputs
    assert list(generator.generate(STORY, max_tokens=0)) == []
    assert generator.position == len(outputs.prompt_tokens)


def test_last_token_is_in_tokens_and_fed_at_the_next_pull(generator: gptoss.Generator) -> None:
    length = None
    for out in generator.generate(STORY, max_tokens=4, sampling=GREEDY):
        length = generator.position + 1 if length is None else length + 1
        assert generator.tokens[-1] == out.token
        assert (generator.position, len(generator.tokens)) == (length - 1, length)
        assert int(generator.logits.argmax()) == out.token  # what it was drawn from


@pytest.mark.parametrize("way", ["generate", "prefill", "step", "all_logits", "fork", "capture"])
def test_what_follows_is_fed_after_the_last_token(
    generator: gptoss.Generator, demo: gptoss.Model, way: str
) -> None:
    list(generator.generate(STORY, max_tokens=5, sampling=GREEDY))
    tokens, other = generator.tokens.tolist(), gptoss.Generator(demo)
    assert len(tokens) == generator.position + 1
    if way == "fork":
        generator = generator.fork()
        assert generator.tokens.tolist() == tokens
    if way == "generate":
        (out,) = generator.generate(max_tokens=1, sampling=GREEDY)
        expected = other.prefill(tokens)
        assert out.token == int(expected.argmax())
    elif way == "all_logits":
        every = generator.prefill([5, 6], all_logits=True)
        expected = other.prefill([*tokens, 5, 6])
        assert every.shape == (2, 4096)
        assert_same_bits(every[-1], expected)
    elif way == "capture":
        generator.capture("embedding")
        generator.step(5)
        assert generator.taps["embedding"].shape[0] == 2
        expected = other.prefill([*tokens, 5])
    else:
        expected = other.prefill([*tokens, 5])
        generator.step(5) if way == "step" else generator.prefill([5])
    assert_same_bits(generator.logits, expected)
    assert generator.tokens[: generator.position].tolist() == other.tokens.tolist()


def test_rewind_takes_the_last_token_back(generator: gptoss.Generator) -> None:
    first = list(generator.generate(STORY, max_tokens=3, sampling=GREEDY))
    end = generator.position
    generator.rewind(end + 1)
    assert len(generator.tokens) == end + 1
    generator.rewind(end)
    assert len(generator.tokens) == end
    (again,) = generator.generate(max_tokens=1, sampling=GREEDY)
    assert again.token == first[-1].token
    generator.rewind(end - 1)
    assert len(generator.tokens) == end - 1
    assert [o.token for o in generator.generate(max_tokens=2, sampling=GREEDY)] == [
        out.token for out in first[1:]
    ]  # logits that a rewind dropped are computed again


def test_moving_the_generator_meanwhile_is_noticed(generator: gptoss.Generator) -> None:
    outputs = generator.generate(STORY, max_tokens=5)
    next(outputs)
    generator.step(3)
    with pytest.raises(gptoss.StateError, match="moved"):
        next(outputs)
    assert list(outputs) == []


def test_nothing_to_continue(generator: gptoss.Generator) -> None:
    for prompt in (None, "", []):
        with pytest.raises(gptoss.StateError, match="nothing to continue"):
            next(generator.generate(prompt))


def test_stop_tokens(generator: gptoss.Generator) -> None:
    free = list(generator.generate(STORY, max_tokens=12, sampling=GREEDY))
    generator.reset()
    stop = free[7].token
    end = next(i for i, out in enumerate(free) if out.token == stop)
    outputs = list(generator.generate(STORY, max_tokens=12, sampling=GREEDY, stop_tokens=[stop]))
    last = outputs[-1]
    assert [out.token for out in outputs] == [out.token for out in free[: end + 1]]
    assert (last.finish_reason, last.stop_reason, last.text) == ("stop", stop, "")
    assert last.bytes and text_of(outputs) == text_of(free[:end])


def test_stop_tokens_of_the_tokenizer(demo: gptoss.Model) -> None:
    assert demo.tokenizer is not None
    stop = demo.tokenizer.special_tokens["<|return|>"]
    outputs = write(demo, [300, stop, 301], stop_tokens=None)
    assert [out.token for out in outputs] == [300, stop]
    assert "<|" not in text_of(outputs) and outputs[-1].bytes == b"<|return|>"


# ---- context ----


def test_full_context(demo: gptoss.Model) -> None:
    generator = gptoss.Generator(demo, max_context=10)
    outputs = generator.generate([1, 2, 3], max_tokens=100, stop_tokens=())
    seen = []
    with pytest.raises(gptoss.ContextError) as caught:
        for out in outputs:
            seen.append(out.token)
    assert (caught.value.max_context, caught.value.requested) == (10, 11)
    assert len(seen) == 8  # 7 fill the context; the next needs no position until it is fed
    assert generator.position == 10 and generator.tokens.tolist() == [1, 2, 3, *seen]
    assert list(outputs) == []


def test_no_limit_is_the_context(demo: gptoss.Model) -> None:
    generator = gptoss.Generator(demo, max_context=10)
    outputs = list(generator.generate([1, 2, 3], stop_tokens=()))
    assert len(outputs) == 8 and outputs[-1].finish_reason == "length"


# ---- seeds and settings ----


def test_seeds(generator: gptoss.Generator) -> None:
    def run(sampling: gptoss.Sampling | None) -> tuple[list[int], int | None]:
        generator.reset()
        generation = generator.generate(STORY, max_tokens=12, sampling=sampling)
        return [out.token for out in generation], generation.seed

    tokens, seed = run(None)
    assert seed is not None and run(gptoss.Sampling(seed=seed)) == (tokens, seed)
    assert run(gptoss.Sampling(seed=7))[0] != run(gptoss.Sampling(seed=8))[0]
    # A draw depends on seed and position alone, not on how the tokens before it came.
    generator.reset()
    list(generator.generate(STORY, max_tokens=5, sampling=gptoss.Sampling(seed=seed)))
    rest = generator.generate(max_tokens=7, sampling=gptoss.Sampling(seed=seed))
    assert [out.token for out in rest] == tokens[5:]


def test_draw_and_sample(generator: gptoss.Generator) -> None:
    with pytest.raises(gptoss.StateError):
        generator.sample()
    logits = generator.prefill([1, 2, 3])
    sampling = gptoss.Sampling(seed=3, repetition_penalty=1.3)
    draw = generator.draw(sampling)
    assert draw == sampling.draw(logits, [1, 2, 3])
    assert generator.sample(sampling) == draw.token
    assert generator.position == 3
    assert 0 <= generator.sample() < 4096


def test_top_logprobs(generator: gptoss.Generator) -> None:
    (out,) = generator.generate(STORY, max_tokens=1, sampling=GREEDY, top_logprobs=5)
    assert len(out.top_logprobs) == 5
    best = out.top_logprobs[0]
    assert (best.token, best.logprob, best.text) == (out.token, out.logprob, out.text)
    assert [top.logprob for top in out.top_logprobs] == sorted(
        (top.logprob for top in out.top_logprobs), reverse=True
    )


def test_processors(generator: gptoss.Generator) -> None:
    seen: list[list[int]] = []

    def ban_in_place(tokens: Any, logits: Any) -> None:
        seen.append(tokens.tolist())
        logits[free[0].token] = -np.inf

    def negated(tokens: Any, logits: Any) -> Any:
        return -logits

    free = list(generator.generate(STORY, max_tokens=1, sampling=GREEDY))
    prompt = generator.tokens[:-1].tolist()
    generator.rewind(generator.position)
    before = generator.logits.copy()
    (out,) = generator.generate(max_tokens=1, sampling=GREEDY, processors=[ban_in_place])
    second = int(np.argsort(-before, kind="stable")[1])
    assert out.token == second and seen == [prompt]
    assert_same_bits(generator.logits, before)  # a copy was changed
    exact = before.astype(np.float64)
    exact -= exact.max() + np.log(np.exp(exact - exact.max()).sum())
    assert out.logprob == pytest.approx(exact[second], abs=1e-5)
    generator.rewind(generator.position)
    both = [ban_in_place, negated]
    (out,) = generator.generate(max_tokens=1, sampling=GREEDY, processors=both)
    assert out.token == free[0].token  # -(-inf)


def test_bad_processors(generator: gptoss.Generator) -> None:
    with pytest.raises(gptoss.ArgumentError, match=r"\(3,\)"):
        next(generator.generate(STORY, processors=[lambda tokens, logits: [1, 2, 3]]))
    with pytest.raises(gptoss.NumericError):
        next(generator.generate(processors=[lambda tokens, logits: logits * np.nan]))
    with pytest.raises(ZeroDivisionError):
        next(generator.generate(processors=[lambda tokens, logits: 1 // 0]))
    assert next(generator.generate(sampling=GREEDY)).token >= 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_token": 3}, "did you mean 'max_tokens'"),
        ({"max_tokens": -1}, "max_tokens must be at least 0"),
        ({"max_tokens": 1.5}, "max_tokens must be an integer"),
        ({"stop": [""]}, "stop string"),
        ({"stop": [b"x"]}, "stop string"),
        ({"stop_tokens": [-1]}, "stop token"),
        ({"top_logprobs": -1}, "top_logprobs"),
        ({"top_logprobs": 5000}, "top_logprobs must be from 0 to 4096"),
        ({"sampling": 0.7}, "sampling must be"),
        ({"processors": [3]}, "processors"),
    ],
)
def test_bad_options(generator: gptoss.Generator, options: dict[str, Any], words: str) -> None:
    with pytest.raises(gptoss.ArgumentError, match=words):
        generator.generate(STORY, **options)


def test_sampling_options_belong_to_sampling(generator: gptoss.Generator) -> None:
    fields = {field.name for field in dataclasses.fields(gptoss.Sampling)}
    assert fields == gptoss.errors.SAMPLING_OPTIONS
    generator.prefill([1])
    for function in (generator.generate, generator.sample, generator.draw):
        with pytest.raises(gptoss.ArgumentError, match=r"pass sampling=gptoss\.Sampling\(top_k="):
            function(top_k=3)  # type: ignore[call-arg,operator]
    for function in (generator.sample, generator.draw):
        with pytest.raises(gptoss.ArgumentError, match=r"must be a gptoss\.Sampling.*not 0\.7"):
            function(0.7)  # type: ignore[arg-type,operator]


def test_decode_takes_a_sequence(demo: gptoss.Model) -> None:
    assert demo.tokenizer is not None
    with pytest.raises(gptoss.ArgumentError, match="sequence of token ids, not 5"):
        demo.tokenizer.decode(5)  # type: ignore[arg-type]


def test_without_a_tokenizer(make_directory: Callable[..., Path]) -> None:
    with gptoss.Model(make_directory(Spec())) as model:
        generator = gptoss.Generator(model)
        for options in ({"prompt": "text"}, {"prompt": [1], "stop": "x"}):
            with pytest.raises(gptoss.ArgumentError, match="no tokenizer"):
                generator.generate(**options)
        outputs = list(generator.generate([1, 2], max_tokens=3, top_logprobs=1))
        assert len(outputs) == 3
        assert {(out.text, out.bytes, out.top_logprobs[0].text) for out in outputs} == {
            ("", b"", "")
        }


# ---- stop strings ----


def stopped(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text before the stop string that is complete first; of several that are, the longest."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


pieces = st.lists(st.text("ab\n", max_size=4), max_size=12)
stop_lists = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=4)


@given(pieces=pieces, stops=stop_lists)
def test_stop_matcher(pieces: list[str], stops: list[str]) -> None:
    whole, found = stopped("".join(pieces), stops)
    matcher, text, match = StopMatcher(stops), "", None
    for piece in pieces:
        settled, match = matcher.push(piece)
        text += settled
        assert whole.startswith(text)  # nothing leaks that may be part of a stop string
        if match is not None:
            break
    else:
        text += matcher.flush()
    assert (text, match) == (whole, found)


def test_stop_matcher_holds_back_no_more_than_it_must() -> None:
    matcher = StopMatcher(["\n\n", "</s>"])
    assert matcher.push("one\n") == ("one", None)
    assert matcher.push("two</") == ("\ntwo", None)
    assert matcher.push("b>") == ("</b>", None)
    assert matcher.push("x</s") == ("x", None)
    assert matcher.push(">y") == ("", "</s>")


@settings(max_examples=25)
@given(text=st.text("ab \n", min_size=1, max_size=12), stops=stop_lists)
def test_stop_strings_over_tokens(demo: gptoss.Model, text: str, stops: list[str]) -> None:
    assert demo.tokenizer is not None
    tokens = demo.tokenizer.encode(text)
    outputs = write(demo, tokens, stop=stops)
    expected, found = stopped(text, stops)
    assert text_of(outputs) == expected
    last = outputs[-1]
    assert (last.finish_reason, last.stop_reason) == ("stop" if found else "length", found)
    assert [out.token for out in outputs] == tokens[: len(outputs)]


def test_a_single_stop_string(demo: gptoss.Model) -> None:
    assert demo.tokenizer is not None
    outputs = write(demo, demo.tokenizer.encode("one two three"), stop=" t")
    assert text_of(outputs) == "one" and outputs[-1].stop_reason == " t"


def test_held_back_text_comes_out_at_the_end(demo: gptoss.Model) -> None:
    assert demo.tokenizer is not None
    stop = demo.tokenizer.special_tokens["<|return|>"]
    tokens = demo.tokenizer.encode("a\n")
    assert text_of(write(demo, tokens, stop=["\n\n"])) == "a\n"
    assert text_of(write(demo, [*tokens, stop], stop=["\n\n"], stop_tokens=None)) == "a\n"


# ---- whole characters ----


@settings(max_examples=15)
@given(text=st.text("aé日👩🏽\u200d🚀\n", min_size=1, max_size=6))
def test_text_is_whole_characters(demo: gptoss.Model, text: str) -> None:
    assert demo.tokenizer is not None
    tokens = demo.tokenizer.encode(text)
    outputs = write(demo, tokens)
    assert text_of(outputs) == text
    assert b"".join(out.bytes for out in outputs) == text.encode()
    assert all("\ufffd" not in out.text for out in outputs)


def test_a_character_cut_off_is_marked(demo: gptoss.Model) -> None:
    assert demo.tokenizer is not None
    tokens = demo.tokenizer.encode("a🦤")
    assert len(tokens) > 2  # the character takes several tokens
    outputs = write(demo, tokens[:-1])
    assert text_of(outputs) == "a\ufffd"
    assert b"".join(out.bytes for out in outputs) == "a🦤".encode()[:-1]
