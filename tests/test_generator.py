"""A Generator's promises beyond its numbers: context, rewind, fork, interruption, cache, taps."""

from __future__ import annotations

import os
import re
import signal
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from models import Spec
from support import assert_same_bits, open_generator, random_tokens

import gptoss

SPEC = Spec(num_layers=3, num_heads=6, num_kv_heads=3, head_dim=20, window=8, vocab_size=101)


# ---- positions, tokens, logits ----


def test_prefill_and_step_advance(model: gptoss.Model) -> None:
    generator = gptoss.Generator(model, max_context=20)
    assert generator.position == 0
    assert list(generator.tokens) == []
    generator.prefill([5, 6, 7])
    assert generator.position == 3
    generator.step(8)
    assert generator.position == 4
    assert list(generator.tokens) == [5, 6, 7, 8]


def test_prefill_returns_the_last_logits(model: gptoss.Model) -> None:
    tokens = random_tokens(model, 10)
    first, second = gptoss.Generator(model), gptoss.Generator(model)
    every = first.prefill(tokens, all_logits=True)
    last = second.prefill(tokens)
    assert every.shape == (10, SPEC.vocab_size) and every.dtype == np.float32
    assert last is second.logits
    assert_same_bits(last, every[-1])
    assert_same_bits(first.logits, every[-1])
    assert every.flags.owndata or every.base is not None
    first.step(1)
    assert_same_bits(every[-1], last)  # owned: a later step leaves it as it was


def test_logits_before_the_first_step(model: gptoss.Model) -> None:
    generator = gptoss.Generator(model)
    with pytest.raises(gptoss.StateError):
        _ = generator.logits
    generator.prefill([1, 2, 3])
    generator.rewind(2)
    with pytest.raises(gptoss.StateError):
        _ = generator.logits
    generator.step(3)
    generator.reset()
    with pytest.raises(gptoss.StateError):
        _ = generator.logits


@pytest.mark.parametrize("token", [-1, SPEC.vocab_size, 2**31, 2**40])
def test_tokens_outside_the_vocabulary(model: gptoss.Model, token: int) -> None:
    generator = gptoss.Generator(model)
    generator.prefill([1, 2])
    for feed in (lambda: generator.prefill([3, token]), lambda: generator.step(token)):
        with pytest.raises(gptoss.ArgumentError, match=str(token)):
            feed()
    assert generator.position == 2
    assert generator.logits.shape == (SPEC.vocab_size,)


def test_empty_prefill_is_refused(model: gptoss.Model) -> None:
    with pytest.raises(gptoss.ArgumentError):
        gptoss.Generator(model).prefill([])


@pytest.mark.parametrize("tokens", [(1, 2, 3), range(1, 4), np.array([1, 2, 3]), b"\1\2\3"])
def test_any_integer_sequence(model: gptoss.Model, tokens: Any) -> None:
    generator = gptoss.Generator(model)
    generator.prefill(tokens)
    assert list(generator.tokens) == [1, 2, 3]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint32", "int64", "uint64"])
def test_integer_arrays(model: gptoss.Model, dtype: str) -> None:
    generator = gptoss.Generator(model)
    generator.prefill(np.array([9, 1, 8, 2, 7, 3], dtype)[::2])
    assert list(generator.tokens) == [9, 8, 7]


@pytest.mark.parametrize("tokens", ["abc", [1.5], [None], np.array([1.0, 2.0]), 7, None])
def test_other_things_are_refused(model: gptoss.Model, tokens: Any) -> None:
    generator = gptoss.Generator(model)
    with pytest.raises((TypeError, gptoss.ArgumentError)):
        generator.prefill(tokens)
    assert generator.position == 0


# ---- context ----


def test_full_context_names_both_counts(model: gptoss.Model) -> None:
    generator = gptoss.Generator(model, max_context=8)
    generator.prefill(random_tokens(model, 6))
    with pytest.raises(gptoss.ContextError) as caught:
        generator.prefill([1, 2, 3])
    assert (caught.value.max_context, caught.value.requested) == (8, 9)
    assert re.search(r"\b6\b.*\b3\b.*\b8\b", str(caught.value))
    assert isinstance(caught.value, ValueError)
    assert generator.position == 6
    generator.prefill([1, 2])
    with pytest.raises(gptoss.ContextError):
        generator.step(1)
    assert generator.position == 8
    generator.rewind(7)
    generator.step(2)


def test_beyond_the_models_positions_warns(model: gptoss.Model) -> None:
    with pytest.warns(UserWarning, match="128"):
        gptoss.Generator(model, max_context=SPEC.max_positions + 1)


@pytest.mark.parametrize("options", [{"max_context": 0}, {"max_context": -5}, {"block_size": -1}])
def test_absurd_sizes(model: gptoss.Model, options: dict[str, int]) -> None:
    with pytest.raises(gptoss.ArgumentError):
        gptoss.Generator(model, **options)


def test_impossible_context_is_refused(model: gptoss.Model) -> None:
    with pytest.raises((gptoss.OutOfMemoryError, gptoss.ArgumentError)):
        open_generator(model, 2**60)


@pytest.mark.parametrize("kv_dtype", ["bf16", "F16", "", None, 16])
def test_unknown_cache_type(model: gptoss.Model, kv_dtype: Any) -> None:
    with pytest.raises((gptoss.ArgumentError, TypeError)):
        gptoss.Generator(model, kv_dtype=kv_dtype)


# ---- rewind, fork, reset ----


@pytest.mark.parametrize("position", [-1, 6, 2**40])
def test_rewind_out_of_range(model: gptoss.Model, position: int) -> None:
    generator = gptoss.Generator(model)
    generator.prefill([1, 2, 3, 4, 5])
    with pytest.raises(gptoss.ArgumentError):
        generator.rewind(position)
    assert generator.position == 5


def test_rewind_truncates_tokens(model: gptoss.Model) -> None:
    generator = gptoss.Generator(model)
    generator.prefill([1, 2, 3, 4, 5])
    generator.rewind(2)
    assert list(generator.tokens) == [1, 2]
    generator.prefill([9])
    assert list(generator.tokens) == [1, 2, 9]
    generator.rewind(0)
    assert list(generator.tokens) == []
    assert generator.kv(0)[0].shape[1] == 0


def test_reset_is_a_fresh_start(model: gptoss.Model) -> None:
    tokens = random_tokens(model, 30)
    used, fresh = gptoss.Generator(model), gptoss.Generator(model)
    used.prefill(random_tokens(model, 50, seed=1))
    used.reset()
    assert used.position == 0
    assert_same_bits(used.prefill(tokens), fresh.prefill(tokens))


def test_fork_is_independent(model: gptoss.Model) -> None:
    parent = gptoss.Generator(model, max_context=64, kv_dtype="f32")
    parent.prefill([1, 2, 3])
    before = parent.logits.copy()
    fork = parent.fork()
    assert fork.position == 3 and list(fork.tokens) == [1, 2, 3]
    fork.prefill([4, 5])
    assert parent.position == 3
    assert_same_bits(parent.logits, before)
    assert fork.kv(0)[0].dtype == np.float32
    del parent
    fork.step(6)
    assert list(fork.tokens) == [1, 2, 3, 4, 5, 6]


def test_fork_of_an_empty_generator(model: gptoss.Model) -> None:
    fork = gptoss.Generator(model).fork()
    fork.prefill([1])
    assert fork.position == 1


# ---- the cache ----


@pytest.mark.parametrize(("kv_dtype", "dtype"), [("f16", np.float16), ("f32", np.float32)])
def test_kv_holds_the_keys_and_values(
    model: gptoss.Model, directory: Path, kv_dtype: str, dtype: Any
) -> None:
    tokens = random_tokens(model, 40)
    trace = reference.forward(reference.Model(directory), tokens, kv_dtype=kv_dtype)
    generator = gptoss.Generator(model, kv_dtype=kv_dtype)
    generator.prefill(tokens)
    tolerance = {"f32": 1e-5, "f16": 2e-3}[kv_dtype]
    for layer in range(SPEC.num_layers):
        first, end = generator.kv_range(layer)
        assert (first, end) == (0, 40)
        for view, name in zip(generator.kv(layer), "kv", strict=True):
            assert view.shape == (SPEC.num_kv_heads, 40, SPEC.head_dim) and view.dtype == dtype
            expected = trace[f"layers.{layer}.{name}"].swapaxes(0, 1)
            assert np.abs(view - expected).max() < tolerance * np.abs(expected).max()


def test_sliding_layers_give_old_rows_back(demo: gptoss.Model) -> None:
    """Full layers hold everything; sliding ones the window and not much beyond 512 rows more."""
    length = 3000
    generator = gptoss.Generator(demo, max_context=length)
    generator.prefill(random_tokens(demo, length))
    window, page_rows = demo.config.sliding_window, 4096 // (64 * 2)
    for layer, kind in enumerate(demo.config.layer_types):
        first, end = generator.kv_range(layer)
        assert end == length
        keys, values = generator.kv(layer)
        assert keys.shape == values.shape == (2, end - first, 64)
        if kind == "full_attention":
            assert first == 0
        else:
            assert window <= end - first <= window + 512 + 512 + page_rows


@pytest.mark.parametrize("layer", [-4, 3, 1000])
def test_kv_of_a_layer_that_is_not(model: gptoss.Model, layer: int) -> None:
    generator = gptoss.Generator(model)
    generator.prefill([1])
    with pytest.raises((gptoss.ArgumentError, IndexError)):
        generator.kv(layer)


# ---- progress and interruption ----


def test_progress_counts_rows(model: gptoss.Model) -> None:
    seen: list[tuple[int, int]] = []
    generator = gptoss.Generator(model, max_context=100, block_size=16)
    generator.prefill(
        random_tokens(model, 100), progress=lambda done, total: seen.append((done, total))
    )
    assert seen and {total for _, total in seen} == {100}
    done = [rows for rows, _ in seen]
    assert done == sorted(done) and done[-1] <= 100


def test_exception_in_progress_stops_after_a_block(model: gptoss.Model) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done >= 32:
            raise Stop

    tokens = random_tokens(model, 100)
    generator, fresh = (gptoss.Generator(model, max_context=100, block_size=16) for _ in range(2))
    with pytest.raises(Stop):
        generator.prefill(tokens, progress=stop)
    position = generator.position
    assert 32 <= position < 100 and position % 16 == 0
    assert list(generator.tokens) == tokens[:position]
    assert_same_bits(generator.prefill(tokens[position:]), fresh.prefill(tokens))


def interrupt_latency(generator: gptoss.Generator, tokens: list[int], delay: float) -> float:
    """Seconds from Ctrl-C, sent by another thread after delay, to KeyboardInterrupt."""
    sent: list[float] = []

    def interrupt() -> None:
        time.sleep(delay)
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    sender = threading.Thread(target=interrupt)
    sender.start()
    with pytest.raises(KeyboardInterrupt):
        generator.prefill(tokens)
        time.sleep(10)  # a prefill that was done before the signal
    latency = time.perf_counter() - sent[0]
    sender.join()
    return latency


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_stops_a_prefill_within_100_ms(threads: int) -> None:
    """On the slowest kernels: a block of 512 rows takes seconds. The generator stays usable."""
    with gptoss.Model("demo", isa="scalar", threads=threads) as model:
        tokens = random_tokens(model, 4000)
        latencies = []
        for attempt in range(3):
            generator = gptoss.Generator(model, max_context=4096)
            latencies.append(interrupt_latency(generator, tokens, 0.15 + 0.1 * attempt))
            position = generator.position
            assert position < len(tokens) and list(generator.tokens) == tokens[:position]
        assert statistics.median(latencies) < 0.1
        fresh = gptoss.Generator(model)
        fresh.prefill(tokens[:20])
        generator.rewind(0)
        assert_same_bits(generator.prefill(tokens[:20]), fresh.logits)


# ---- taps ----


def tap_names(num_layers: int) -> set[str]:
    of_layer = [
        "attn_norm",
        "q",
        "k",
        "v",
        "attn_output",
        "sink_mass",
        "attn_residual",
        "mlp_norm",
        "router_logits",
        "router_experts",
        "router_weights",
        "expert_outputs",
        "mlp_output",
        "residual",
    ]
    layers = {f"layers.{layer}.{name}" for layer in range(num_layers) for name in of_layer}
    return {"embedding", "final_norm"} | layers


def test_every_tap_is_there(model: gptoss.Model) -> None:
    generator = gptoss.Generator(model)
    generator.capture("*")
    generator.prefill([1, 2, 3, 4])
    assert set(generator.taps) == tap_names(SPEC.num_layers)
    heads, kv_heads, dim = SPEC.num_heads, SPEC.num_kv_heads, SPEC.head_dim
    hidden, k = SPEC.hidden_size, SPEC.experts_per_token
    shapes = {
        "embedding": (4, hidden),
        "final_norm": (4, hidden),
        "layers.1.attn_norm": (4, hidden),
        "layers.1.q": (4, heads, dim),
        "layers.1.k": (4, kv_heads, dim),
        "layers.1.v": (4, kv_heads, dim),
        "layers.1.attn_output": (4, heads, dim),
        "layers.1.sink_mass": (4, heads),
        "layers.1.attn_residual": (4, hidden),
        "layers.1.mlp_norm": (4, hidden),
        "layers.1.router_logits": (4, SPEC.num_experts),
        "layers.1.router_experts": (4, k),
        "layers.1.router_weights": (4, k),
        "layers.1.expert_outputs": (4, k, hidden),
        "layers.1.mlp_output": (4, hidden),
        "layers.1.residual": (4, hidden),
    }
    for name, shape in shapes.items():
        values = generator.taps[name]
        assert values.shape == shape, name
        assert values.dtype == (np.int32 if name.endswith("experts") else np.float32), name


def test_taps_hold_the_last_call(model: gptoss.Model) -> None:
    generator = gptoss.Generator(model)
    generator.capture("layers.*.router*", "embedding")
    generator.prefill([1, 2, 3])
    prefill = generator.taps["embedding"]
    generator.step(4)
    assert generator.taps["embedding"].shape[0] == 1
    assert prefill.shape[0] == 3  # owned: a later call leaves it alone
    assert len(generator.taps) == 1 + 3 * SPEC.num_layers


def test_taps_keep_all(model: gptoss.Model) -> None:
    generator = gptoss.Generator(model, block_size=4)
    generator.capture("embedding", keep="all")
    generator.prefill([1, 2, 3, 4, 5, 6, 7])
    generator.step(8)
    embedding = np.asarray(model.tensors["model.embed_tokens.weight"]).astype(np.float32)
    assert np.array_equal(generator.taps["embedding"], embedding[1:9])


def test_taps_over_max_bytes_are_refused_before_the_work(model: gptoss.Model) -> None:
    generator = gptoss.Generator(model)
    row = SPEC.hidden_size * 4
    generator.capture("embedding", keep="all", max_bytes=3 * row)
    generator.prefill([1, 2])
    with pytest.raises(gptoss.Error, match=str(3 * row)):
        generator.prefill([3, 4])
    assert generator.position == 2
    generator.step(3)


def test_capture_nothing_clears(model: gptoss.Model) -> None:
    generator = gptoss.Generator(model)
    generator.capture("embedding")
    generator.prefill([1])
    generator.capture()
    generator.step(2)
    assert len(generator.taps) == 0


def test_capture_of_an_unknown_name(model: gptoss.Model) -> None:
    generator = gptoss.Generator(model)
    with pytest.raises(gptoss.ArgumentError, match="router_logits"):
        generator.capture("layers.0.router_logit")
    with pytest.raises(KeyError):
        generator.taps["embedding"]
