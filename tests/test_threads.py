"""Threads, processes and the GIL: one Model for many, one Generator for one."""

from __future__ import annotations

import os
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from support import assert_same_bits, random_tokens

import gptoss


def test_generators_of_many_threads_give_the_same_bits(demo: gptoss.Model) -> None:
    texts = [random_tokens(demo, 40 + 30 * n, seed=n) for n in range(4)]

    def run(tokens: list[int]) -> Any:
        with gptoss.Generator(demo) as generator:
            rows = [generator.prefill(tokens[:20], all_logits=True)]
            rows += [generator.step(token)[None].copy() for token in tokens[20:40]]
            rows += [generator.prefill(tokens[40:], all_logits=True)] if tokens[40:] else []
            return np.concatenate(rows)

    expected = [run(tokens) for tokens in texts]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(run, texts * 4))
    for number, logits in enumerate(found):
        assert_same_bits(logits, expected[number % 4], f"text {number % 4}")


def test_one_generator_in_two_threads_is_refused(demo: gptoss.Model) -> None:
    generator = gptoss.Generator(demo, block_size=8)
    inside, leave = threading.Event(), threading.Event()

    def wait(done: int, total: int) -> None:
        inside.set()
        assert leave.wait(30)

    worker = threading.Thread(
        target=generator.prefill, args=(random_tokens(demo, 20),), kwargs={"progress": wait}
    )
    worker.start()
    assert inside.wait(30)
    try:
        for use in (
            lambda: generator.step(1),
            lambda: generator.prefill([1]),
            lambda: generator.position,
            lambda: generator.tokens,
            lambda: generator.kv(0),
            lambda: generator.rewind(0),
            generator.reset,
            generator.fork,
            generator.close,
        ):
            with pytest.raises(gptoss.StateError, match="in use by another thread"):
                use()
    finally:
        leave.set()
        worker.join()
    assert generator.position == 20
    generator.step(1)


def test_a_callback_cannot_use_what_its_call_uses(demo: gptoss.Model) -> None:
    generator = gptoss.Generator(demo)
    with pytest.raises(gptoss.StateError, match="by the call that runs this code"):
        generator.prefill([1, 2, 3], progress=lambda done, total: generator.position)
    other = gptoss.Generator(demo)  # would wait for the turn that the prefill has
    for use in (lambda *_: other.step(1), lambda *_: other.rewind(0)):
        generator.reset()
        with pytest.raises(gptoss.StateError, match="the model is in use by the call that runs"):
            generator.prefill([1, 2, 3], progress=use)
    with gptoss.Model("demo") as another:
        other = gptoss.Generator(another)
        generator.prefill([1, 2, 3], progress=lambda done, total: other.step(1))
        assert other.position > 0


def test_callbacks_run_on_the_calling_thread(demo: gptoss.Model) -> None:
    seen: set[int] = set()
    gptoss.Generator(demo).prefill(
        random_tokens(demo, 600), progress=lambda *_: seen.add(threading.get_ident())
    )
    assert seen == {threading.get_ident()}


def test_the_gil_is_free_during_a_prefill(demo: gptoss.Model) -> None:
    """Another thread goes on, while this one waits for the engine."""
    generator = gptoss.Generator(demo)
    tokens = random_tokens(demo, 1500)
    stop, ticks = threading.Event(), []

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    ticker = threading.Thread(target=tick)
    ticker.start()
    start = time.perf_counter()
    generator.prefill(tokens)
    end = time.perf_counter()
    stop.set()
    ticker.join()
    during = [moment for moment in ticks if start < moment < end]
    assert len(during) > 5 and max(np.diff([start, *during, end])) < 0.5 * (end - start)


def test_closing_a_model_under_a_running_verify(demo: gptoss.Model) -> None:
    """The call that runs keeps what it reads; the model is closed for all others."""
    model = gptoss.Model("demo")
    model.verify(progress=lambda done, total: model.close())
    assert model.closed


def test_a_forked_process_can_use_the_model(demo: gptoss.Model) -> None:
    """The child has none of the parent's threads and starts its own."""
    tokens = random_tokens(demo, 100)
    generator = gptoss.Generator(demo)
    generator.prefill(tokens[:50])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking where threads run
        child = os.fork()
    if child == 0:
        status = 1
        try:
            logits = generator.prefill(tokens[50:])
            fresh = gptoss.Generator(demo).prefill(tokens)
            status = 0 if np.array_equal(logits.view(np.uint32), fresh.view(np.uint32)) else 2
        finally:
            os._exit(status)
    expected = generator.prefill(tokens[50:])
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert ended == (child, 0)
    assert expected.shape == (4096,)
