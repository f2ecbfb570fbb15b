"""gptoss.forward and generate_batch: many sequences as one batch, each to the bits it has alone."""

from __future__ import annotations

import dataclasses
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import Spec
from support import Array, assert_same_bits, ctrl_c_after, open_generator, random_tokens

import gptoss
from gptoss import _core

ISAS = [name for name, available in _core.isas() if available]
GREEDY = gptoss.Sampling(temperature=0)
# Tails everywhere, a window that tables cross, groups of heads.
SPEC = Spec(
    num_layers=3,
    hidden_size=96,
    intermediate_size=160,
    num_heads=6,
    num_kv_heads=3,
    head_dim=20,
    num_experts=5,
    experts_per_token=3,
    vocab_size=517,
    window=37,
)
# Before the window of 128 of the demo model, at it, behind it, and at the edges of tiles of 64.
STARTS = [1, 2, 63, 64, 65, 127, 128, 129, 130, 191, 192, 193, 256, 300, 640, 641, 705, 5, 77, 100]


def twins(
    model: gptoss.Model, starts: list[int], seed: int, **options: Any
) -> tuple[list[gptoss.Generator], list[gptoss.Generator]]:
    """Generators at these positions, twice."""
    pairs = []
    for n, start in enumerate(starts):
        one = open_generator(model, 1200, **options)
        one.prefill(random_tokens(model, start, seed=seed + n))
        pairs.append((one, one.fork()))
    return [a for a, _ in pairs], [b for _, b in pairs]


def assert_same_state(batched: gptoss.Generator, alone: gptoss.Generator, what: str = "") -> None:
    assert batched.position == alone.position, what
    assert batched.tokens.tolist() == alone.tokens.tolist(), what
    assert_same_bits(batched.logits, alone.logits, what)
    for layer in range(alone.model.config.num_layers):
        assert batched.kv_range(layer) == alone.kv_range(layer), what
        for ours, theirs in zip(batched.kv(layer), alone.kv(layer), strict=True):
            assert_same_bits(ours, theirs, f"{what} layer {layer}")


def check_rounds(
    model: gptoss.Model, starts: list[int], most: int, seed: int, rounds: int = 3, **options: Any
) -> None:
    """Rounds of 1 to `most` tokens for each generator, against each alone."""
    print(f"{seed=}")
    rng = np.random.default_rng(seed)
    batched, alone = twins(model, starts, seed, **options)
    for number in range(rounds):
        sizes = rng.integers(1, most + 1, len(starts))
        every = [rng.integers(0, model.config.vocab_size, size).tolist() for size in sizes]
        logits = gptoss.forward(batched, every)
        assert all(view is one.logits for view, one in zip(logits, batched, strict=True))
        for one, tokens in zip(alone, every, strict=True):
            one.prefill(tokens)
        for i, (ours, theirs) in enumerate(zip(batched, alone, strict=True)):
            assert_same_state(ours, theirs, f"round {number} generator {i}")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 16, 20])
def test_one_token_each(demo: gptoss.Model, count: int) -> None:
    check_rounds(demo, STARTS[:count], 1, seed=int(time.time()))


@pytest.mark.parametrize("kv_dtype", ["f16", "f32"])
def test_several_tokens_each(demo: gptoss.Model, kv_dtype: str) -> None:
    check_rounds(demo, STARTS[::2], 70, seed=int(time.time()), kv_dtype=kv_dtype)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_instruction_sets(
    isa: str, threads: int, make_directory: Callable[..., Path]
) -> None:
    with gptoss.Model(make_directory(SPEC), isa=isa, threads=threads) as model:
        seed = int(time.time())
        check_rounds(model, [1, 36, 37, 38, 63, 64, 65, 100, 7], 1, seed)
        check_rounds(model, [36, 64, 3, 130], 40, seed)


def test_blocks_of_bounded_size(make_directory: Callable[..., Path]) -> None:
    """More rows than a block has, more sequences than it has logits for, tokens that span three."""
    with gptoss.Model(make_directory(SPEC)) as model:
        check_rounds(model, [1] * 70, 1, seed=1, rounds=2)
        check_rounds(model, [1] * 130, 17, seed=2, rounds=1)
        batched, alone = twins(model, [1, 2, 3, 4], 5)
        sizes = [500, 1100, 1, 13]
        every = [random_tokens(model, size, seed=size) for size in sizes]
        done = []
        gptoss.forward(batched, every, progress=lambda *news: done.append(news))
        assert done[-1] == (sum(sizes), sum(sizes)) and done == sorted(done)
        for ours, theirs, tokens in zip(batched, alone, every, strict=True):
            theirs.prefill(tokens)
            assert_same_state(ours, theirs)


def test_caches_of_both_formats_in_one_batch(demo: gptoss.Model) -> None:
    options = [{"kv_dtype": "f16"}, {"kv_dtype": "f32"}, {"block_size": 7}]
    batched = [open_generator(demo, 300, **some) for some in options]
    alone = [open_generator(demo, 300, **some) for some in options]
    every = [random_tokens(demo, size, seed=size) for size in (140, 150, 20)]
    gptoss.forward(batched, every)
    gptoss.forward(batched, np.array([1, 2, 3]))
    for n, (ours, theirs, tokens) in enumerate(zip(batched, alone, every, strict=True), start=1):
        theirs.prefill([*tokens, n])
        assert_same_state(ours, theirs)


def test_after_rewind_fork_and_generate(demo: gptoss.Model) -> None:
    tokens = random_tokens(demo, 1100, seed=9)
    first, second, third = (open_generator(demo, 1200) for _ in range(3))
    first.prefill(tokens)
    first.rewind(300)  # beyond what sliding layers kept
    second.prefill(tokens[:200])
    fork = second.fork()
    (drawn,) = third.generate(tokens[:50], max_tokens=1, sampling=GREEDY)
    gptoss.forward([first, second, fork, third], [tokens[300:310], [5], [6, 7], []])
    expected = [
        tokens[:310],
        [*tokens[:200], 5],
        [*tokens[:200], 6, 7],
        [*tokens[:50], drawn.token],
    ]
    for one, text in zip((first, second, fork, third), expected, strict=True):
        fresh = open_generator(demo, 1200)
        fresh.prefill(text)
        assert one.tokens.tolist() == text
        assert_same_bits(one.logits, fresh.logits)


def test_taps_of_each(make_directory: Callable[..., Path]) -> None:
    """Each generator gets what it captures of its own rows, and nothing of the others'."""
    patterns: list[tuple[str, ...]] = [("*",), (), ("final_norm", "layers.1.*"), ("*.sink_mass",)]
    sizes = [3, 4, 1, 600]
    with gptoss.Model(make_directory(SPEC)) as model:
        batched, alone = twins(model, [1, 40, 50, 60], 3)
        for ours, theirs, wanted in zip(batched, alone, patterns, strict=True):
            ours.capture(*wanted, keep="all")
            theirs.capture(*wanted, keep="all")
        for number in range(2):
            every = [random_tokens(model, size, seed=number) for size in sizes[: 4 - number]]
            gptoss.forward(batched[: len(every)], every)
            for theirs, tokens in zip(alone, every, strict=False):
                theirs.prefill(tokens)
        for ours, theirs in zip(batched, alone, strict=True):
            assert list(ours.taps) == list(theirs.taps)
            assert ours.taps.first_position == theirs.taps.first_position
            for name, rows in theirs.taps.items():
                assert_same_bits(np.asarray(ours.taps[name]), np.asarray(rows), name)
        assert not batched[1].taps and len(batched[3].taps["layers.0.sink_mass"]) == 600


# ---- what is refused, and what stops it ----


def test_refusals_name_the_generator(demo: gptoss.Model) -> None:
    full, other = gptoss.Generator(demo, max_context=3), gptoss.Generator(demo)
    full.prefill([1, 2, 3])
    with gptoss.Model("demo") as another:
        stranger = gptoss.Generator(another)
        cases: list[tuple[Any, Any, str]] = [
            ([], [], "there are no generators"),
            ([other, full], [1, 2], "generator 1: the context is full: 3 tokens and 1 more"),
            ([other, stranger], [1, 2], "generator 1: its model is not that of generator 0"),
            ([other, stranger, other], [1, 2, 3], "generator 2 is generator 0, too"),
            ([other], [[]], "generator 0: there are no tokens to feed"),
            ([other], [[1, 4096]], r"generator 0: token 4096 \(number 1\) is outside"),
            ([other], [2**40], "generator 0: a token must be from"),
            ([other], [["x"]], "generator 0: a token must be an integer"),
            ([other], ["text"], "generator 0: tokens must be integers"),
            ([other], [1.5], "generator 0: tokens must be integers"),
            ([other], "t", "one item a generator"),
            ([other], [1, 2], "1 generators, but tokens for 2"),
            ([other, 7], [1, 2], r"generator 1 must be a gptoss\.Generator, not 7"),
        ]
        for generators, tokens, words in cases:
            with pytest.raises((gptoss.ArgumentError, gptoss.ContextError), match=words) as caught:
                gptoss.forward(generators, tokens)
            if isinstance(caught.value, gptoss.ContextError):
                assert (caught.value.max_context, caught.value.requested) == (3, 4)
        assert (other.position, full.position, stranger.position) == (0, 3, 0)
    other.capture("*", max_bytes=1000)
    with pytest.raises(gptoss.OutOfMemoryError, match="generator 1: 1 rows of the captured"):
        gptoss.forward([gptoss.Generator(demo), other], [1, 2])
    with pytest.raises(gptoss.ArgumentError, match="did you mean 'progress'"):
        gptoss.forward([other], [1], progres=print)  # type: ignore[call-arg]


def test_nan_logits_name_the_generator(make_directory: Callable[..., Path], tmp_path: Path) -> None:
    """The rest of a block that failed stands where it stood, logits included."""
    directory = shutil.copytree(make_directory(SPEC), tmp_path / "damaged")
    with gptoss.Model(directory) as model:
        info = model.tensor_info("model.embed_tokens.weight")
        row_bytes = info.num_bytes // SPEC.vocab_size
        offset = info.file_offset + 300 * row_bytes
    with open(info.file, "r+b") as file:
        file.seek(offset)
        file.write(b"\xc0\x7f" * (row_bytes // 2))  # token 300 is NaN in bfloat16
    with gptoss.Model(directory) as model:
        good, bad = open_generator(model, 20), open_generator(model, 20)
        gptoss.forward([good, bad], [1, 2])
        before = good.logits.copy()
        with pytest.raises(gptoss.NumericError, match="generator 1: the logits are NaN"):
            gptoss.forward([good, bad], [[3, 4], [5, 300]])
        assert (good.position, bad.position) == (1, 1)
        assert_same_bits(good.logits, before)
        prompts = [[1, 2], [300], [3]]
        results = list(gptoss.generate_batch(model, prompts, max_tokens=4, sampling=GREEDY))
        errors = {result.index: result.error for result in results}
        assert isinstance(errors[1], gptoss.NumericError) and errors[0] is errors[2] is None
        alone = gptoss.Generator(model).generate([3], max_tokens=4, sampling=GREEDY)
        (third,) = (result for result in results if result.index == 2)
        assert list(third.tokens) == [out.token for out in alone]


def test_all_generators_are_busy_meanwhile(demo: gptoss.Model) -> None:
    generators = [gptoss.Generator(demo) for _ in range(3)]
    inside, leave = threading.Event(), threading.Event()

    def wait(done: int, total: int) -> None:
        inside.set()
        assert leave.wait(30)

    worker = threading.Thread(
        target=gptoss.forward, args=(generators, [1, 2, 3]), kwargs={"progress": wait}
    )
    worker.start()
    assert inside.wait(30)
    free = gptoss.Generator(demo)
    try:
        for generator in generators:
            with pytest.raises(gptoss.StateError, match="in use by another thread"):
                generator.step(1)
            with pytest.raises(gptoss.StateError, match="in use by another thread"):
                _core.forward([free._core, generator._core], [1, 2], [1, 1], None)
            assert free.position == 0  # and no longer busy
    finally:
        leave.set()
        worker.join()
    assert [generator.position for generator in generators] == [1, 1, 1]
    gptoss.forward(generators, [4, 5, 6])


def test_an_exception_in_progress_leaves_whole_blocks(demo: gptoss.Model) -> None:
    batched, alone = twins(demo, [1, 2, 3], 4)
    every = [random_tokens(demo, size, seed=size) for size in (400, 300, 200)]

    def stop(done: int, total: int) -> None:
        if done >= 512:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        gptoss.forward(batched, every, progress=stop)
    assert [generator.position for generator in batched] == [401, 2 + 112, 3]
    with pytest.raises(gptoss.StateError, match="no logits"):
        batched[1].logits  # noqa: B018
    gptoss.forward(batched[1:], [every[1][112:], every[2]])
    for ours, theirs, tokens in zip(batched, alone, every, strict=True):
        theirs.prefill(tokens)
        assert_same_state(ours, theirs)


def test_ctrl_c_leaves_usable_generators() -> None:
    with gptoss.Model("demo", isa="scalar", threads=1) as model:
        generators = [gptoss.Generator(model) for _ in range(8)]
        every = [random_tokens(model, 400, seed=n) for n in range(8)]
        with ctrl_c_after(0.3):
            gptoss.forward(generators, every)
        assert sum(generator.position for generator in generators) < 3200
        for generator, tokens in zip(generators, every, strict=True):
            assert generator.tokens.tolist() == tokens[: generator.position]
            generator.rewind(min(generator.position, 5))
        rest = [
            tokens[generator.position : 8]
            for generator, tokens in zip(generators, every, strict=True)
        ]
        gptoss.forward(generators, rest)
        for generator, tokens in zip(generators, every, strict=True):
            fresh = gptoss.Generator(model)
            assert_same_bits(generator.logits, fresh.prefill(tokens[:8]))


def test_refused_memory_changes_nothing(demo: gptoss.Model) -> None:
    batched, alone = twins(demo, [3, 4], 1)
    gptoss.forward(batched, [1, 2])
    for theirs, token in zip(alone, (1, 2), strict=True):
        theirs.step(token)
    n, refused = 0, True
    while refused:
        n += 1
        _core.fail_allocation(n)
        try:
            gptoss.forward(batched, [[3], [4, 5]])
        except gptoss.OutOfMemoryError:
            assert [generator.position for generator in batched] == [4, 5]
        else:
            refused = False
        finally:
            _core.fail_allocation(0)
    assert n > 3
    alone[0].prefill([3])
    alone[1].prefill([4, 5])
    for ours, theirs in zip(batched, alone, strict=True):
        assert_same_state(ours, theirs)


# ---- generate_batch ----

PROMPTS = [
    "Once upon a time",
    "One day a",
    "The old cat",
    "What is 17 + 25?",
    "A",
    "Two birds sat on a roof. Two birds sat on",
    "",
    "the sea " * 90,
]


def alone(
    model: gptoss.Model, prompt: Any, sampling: gptoss.Sampling, **options: Any
) -> list[gptoss.Output]:
    with gptoss.Generator(model) as generator:
        return list(generator.generate(prompt, sampling=sampling, **options))


def assert_as_alone(
    model: gptoss.Model, results: list[gptoss.Completion], prompts: list[Any], **options: Any
) -> None:
    assert sorted(result.index for result in results) == list(range(len(prompts)))
    for result in results:
        if result.error is not None:
            assert result.finish_reason == "error" and not prompts[result.index]
            continue
        sampling = options["sampling"]
        if not isinstance(sampling, gptoss.Sampling):
            sampling = sampling[result.index]
        some = {name: value for name, value in options.items() if name != "sampling"}
        outputs = alone(
            model,
            prompts[result.index],
            dataclasses.replace(sampling, seed=result.seed),
            **some,
        )
        assert result.tokens == tuple(out.token for out in outputs)
        assert result.text == "".join(out.text for out in outputs)
        assert result.logprobs == tuple(out.logprob for out in outputs)
        assert result.top_logprobs == tuple(out.top_logprobs for out in outputs)
        assert result.finish_reason == outputs[-1].finish_reason
        assert result.stop_reason == outputs[-1].stop_reason


@pytest.mark.parametrize("batch_size", [1, 3, 4, 20])
@pytest.mark.parametrize(
    "options",
    [
        {"sampling": GREEDY},
        {"sampling": gptoss.Sampling(seed=3, top_p=0.95)},
        {"sampling": [gptoss.Sampling(seed=n) for n in range(len(PROMPTS))]},
        {"sampling": gptoss.Sampling(temperature=1.2)},
        {"sampling": GREEDY, "stop": [" the", "."]},
        {"sampling": gptoss.Sampling(repetition_penalty=1.4), "top_logprobs": 3},
    ],
)
def test_each_result_is_that_of_its_prompt_alone(
    demo: gptoss.Model, batch_size: int, options: dict[str, Any]
) -> None:
    results = list(
        gptoss.generate_batch(demo, PROMPTS, max_tokens=25, batch_size=batch_size, **options)
    )
    assert_as_alone(demo, results, PROMPTS, max_tokens=25, **options)


def test_seeds_are_fresh_and_told(demo: gptoss.Model) -> None:
    results = list(gptoss.generate_batch(demo, ["A"] * 6, max_tokens=10))
    assert len({result.seed for result in results}) == 6
    assert len({result.tokens for result in results}) > 1
    assert_as_alone(demo, results, ["A"] * 6, max_tokens=10, sampling=demo.default_sampling)


def test_processors_see_their_own_sequence(demo: gptoss.Model) -> None:
    assert demo.tokenizer is not None
    prompts = [demo.tokenizer.encode(text) for text in PROMPTS[:4]]

    def ban_what_was(tokens: Array, logits: Array) -> None:
        logits[tokens] = -np.inf

    options: dict[str, Any] = {"max_tokens": 15, "processors": [ban_what_was], "sampling": GREEDY}
    results = list(gptoss.generate_batch(demo, prompts, batch_size=3, **options))
    assert_as_alone(demo, results, prompts, **options)
    for result in results:
        assert result.prompt_tokens == tuple(prompts[result.index])
        assert len(set(result.tokens) | set(result.prompt_tokens)) == 15 + len(
            set(result.prompt_tokens)
        )


def test_a_place_is_taken_at_once_and_results_come_as_they_finish(demo: gptoss.Model) -> None:
    """Three prompts in two places: the short one's place goes to the third, which ends before the
    first."""
    assert demo.tokenizer is not None
    read: list[int] = []

    def prompts() -> Any:
        for n, prompt in enumerate(["a", "b", "c"]):
            read.append(n)
            yield prompt

    def end(lengths: dict[int, int]) -> Callable[[Array, Array], None]:
        def process(tokens: Array, logits: Array) -> None:
            if len(tokens) - 1 >= lengths[int(tokens[0])]:
                logits[:] = -np.inf
                logits[stop] = 0

        return process

    stop = next(iter(demo.tokenizer.stop_token_ids))
    a, b, c = (demo.tokenizer.encode(text)[0] for text in "abc")
    news: list[tuple[int, int]] = []
    results = gptoss.generate_batch(
        demo,
        prompts(),
        max_tokens=40,
        batch_size=2,
        processors=[end({a: 20, b: 3, c: 4})],
        sampling=gptoss.Sampling(temperature=0, logit_bias=dict.fromkeys(range(4080, 4096), -100)),
        progress=lambda *counts: news.append(counts),
    )
    assert read == []
    first = next(results)
    assert (first.index, len(first.tokens), first.finish_reason) == (1, 4, "stop")
    assert read == [0, 1]
    second, third = results
    assert (second.index, third.index) == (2, 0) and read == [0, 1, 2]
    assert (len(second.tokens), len(third.tokens)) == (5, 21)
    assert news == [(1, 2), (2, 3), (3, 3)]


def test_an_error_ends_its_own_sequence_alone(demo: gptoss.Model) -> None:
    def fail(tokens: Array, logits: Array) -> None:
        if tokens[0] == 9 and len(tokens) == 6:
            raise ZeroDivisionError("nine")

    prompts: list[Any] = [[5, 6], [7] * 40, [9, 9], [8] * 20, [99999], [], None, ["x"], [4, 3]]
    results = {
        result.index: result
        for result in gptoss.generate_batch(
            demo,
            prompts,
            max_tokens=12,
            stop_tokens=(),
            processors=[fail],
            sampling=GREEDY,
            max_context=25,
            batch_size=4,
            progress=lambda done, total: None if total == len(prompts) else 1 // 0,
        )
    }
    assert sorted(results) == list(range(len(prompts)))
    kinds = {index: type(result.error) for index, result in results.items() if result.error}
    assert kinds == {
        1: gptoss.ContextError,
        2: ZeroDivisionError,
        3: gptoss.ContextError,
        4: gptoss.ArgumentError,
        5: gptoss.StateError,
        6: gptoss.StateError,
        7: gptoss.ArgumentError,
    }
    assert len(results[2].tokens) == 4 and len(results[3].tokens) == 6  # what there was of them
    assert [results[n].finish_reason for n in (0, 2, 3, 8)] == [
        "length",
        "error",
        "error",
        "length",
    ]
    for index in (0, 8):
        with gptoss.Generator(demo) as generator:
            outputs = generator.generate(
                prompts[index], max_tokens=12, stop_tokens=(), sampling=GREEDY
            )
            assert results[index].tokens == tuple(out.token for out in outputs)


def test_no_tokens_and_no_limit(demo: gptoss.Model) -> None:
    (result,) = gptoss.generate_batch(demo, [[1, 2]], max_tokens=0)
    assert (result.tokens, result.finish_reason, result.error) == ((), "length", None)
    (result,) = gptoss.generate_batch(demo, [[1, 2]], max_context=10, stop_tokens=())
    assert (len(result.tokens), result.finish_reason) == (9, "length")
    assert list(gptoss.generate_batch(demo, [])) == []


def test_options_are_refused_at_once(demo: gptoss.Model) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"batch_sise": 3}, "did you mean 'batch_size'"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"kv_dtype": "f8"}, "kv_dtype"),
        ({"max_context": 0}, "max_context"),
        ({"temperature": 0}, r"pass sampling=gptoss\.Sampling\(temperature="),
        ({"sampling": 0.5}, "sampling must be"),
        ({"sampling": []}, "0 samplings, none for prompt 0"),
        ({"progress": 3}, "progress must be"),
    ]
    for options, words in cases:
        with pytest.raises(gptoss.ArgumentError, match=words):
            gptoss.generate_batch(demo, ["A"], **options)
    for prompts in ("A", 5):
        with pytest.raises(gptoss.ArgumentError, match="prompts must be a list"):
            gptoss.generate_batch(demo, prompts)  # type: ignore[arg-type]
    with pytest.raises(gptoss.ArgumentError, match=r"needs a gptoss\.Model"):
        gptoss.generate_batch("demo", ["A"])  # type: ignore[arg-type]


def test_a_bar(demo: gptoss.Model, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    assert len(list(gptoss.generate_batch(demo, ["A", "B"], max_tokens=2, progress=True))) == 2
    assert "2/2" in capsys.readouterr().err


def test_leaving_early_gives_the_memory_back() -> None:
    with gptoss.Model("demo") as model:
        results = gptoss.generate_batch(model, ["A"] * 9, max_tokens=3, batch_size=4)
        next(results)
        results.close()  # type: ignore[attr-defined]
        model.close()  # refused if Generators were left
