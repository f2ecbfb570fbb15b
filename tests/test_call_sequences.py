"""Random sequences of prefill, step, forward, generate with and without speculation, rewind, fork
and reset: whatever came before, each position has one set of logits and one row in every cache, to
the last bit."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from models import Spec, write_model
from support import Array, assert_same_bits, open_generator, random_tokens

import gptoss

LENGTH = 2400  # several times window + 512, where sliding layers give rows up
SPEC = Spec(
    num_layers=5,
    hidden_size=32,
    intermediate_size=32,
    num_heads=2,
    num_kv_heads=1,
    head_dim=32,
    num_experts=3,
    vocab_size=64,
    window=21,
    layer_types=tuple(
        f"{kind}_attention" for kind in ("sliding", "sliding", "full", "sliding", "full")
    ),
)


class CallSequences(RuleBasedStateMachine):
    """One generator over a fixed text, position by position, against one long prefill of it."""

    model: gptoss.Model
    tokens: list[int]
    expected: dict[str, dict[str, Array]]

    @classmethod
    def prepare(cls, directory: str) -> None:
        write_model(directory, SPEC, np.random.default_rng(3))
        cls.model = gptoss.Model(directory)
        cls.tokens = random_tokens(cls.model, LENGTH)
        for start in range(20, LENGTH - 40, 40):  # what speculation finds: a part that comes again
            cls.tokens[start : start + 25] = cls.tokens[start - 19 : start + 6]
        cls.expected = {}
        for kv_dtype in ("f16", "f32"):
            generator = open_generator(cls.model, LENGTH, kv_dtype=kv_dtype)
            generator.capture("layers.*.k", "layers.*.v")
            logits = generator.prefill(cls.tokens, all_logits=True)
            cls.expected[kv_dtype] = dict(generator.taps) | {"logits": logits}

    @initialize(
        kv_dtype=st.sampled_from(["f16", "f32"]),
        block_size=st.sampled_from([32, 512]),
        speculate=st.sampled_from([False, True, gptoss.Speculation(min_ngram=1)]),
    )
    def start(self, kv_dtype: str, block_size: int, speculate: Any) -> None:
        self.kv_dtype = kv_dtype
        options = {"kv_dtype": kv_dtype, "block_size": block_size, "speculate": speculate}
        self.generator = open_generator(self.model, LENGTH, **options)
        self.other = open_generator(self.model, LENGTH, **options)

    @property
    def length(self) -> int:
        """Tokens so far, with the one that was drawn last."""
        return len(self.generator.tokens)

    def check(self, logits: Array, first: int) -> None:
        end = first + len(logits)
        assert_same_bits(logits, self.expected[self.kv_dtype]["logits"][first:end])

    @rule(count=st.integers(1, 1200))
    def prefill(self, count: int) -> None:
        first = self.length
        if tokens := self.tokens[first : first + count]:
            self.check(self.generator.prefill(tokens, all_logits=True), first)

    @rule(count=st.integers(1, 5))
    def step(self, count: int) -> None:
        for _ in range(count):
            first = self.length
            if first < LENGTH:
                self.check(self.generator.step(self.tokens[first])[None], first)

    @rule(count=st.integers(1, 3) | st.integers(1, 90), others=st.integers(1, 3))
    def forward(self, count: int, others: int) -> None:
        """Together with another sequence, which stands elsewhere in the text."""
        both = (self.generator, self.other)
        firsts = [len(generator.tokens) for generator in both]
        ends = [min(LENGTH, n + more) for n, more in zip(firsts, (count, others), strict=True)]
        if ends[0] > firsts[0] and ends[1] > firsts[1]:
            tokens = [self.tokens[n:end] for n, end in zip(firsts, ends, strict=True)]
            for logits, end in zip(gptoss.forward(both, tokens), ends, strict=True):
                self.check(logits[None], end - 1)

    @rule(count=st.integers(1, 40), leave=st.booleans())
    def generate(self, count: int, leave: bool) -> None:
        """Made to write the text; the token drawn last is fed by what follows, or taken back."""

        def write_the_text(tokens: Array, logits: Array) -> None:
            logits[:] = -np.inf
            logits[self.tokens[len(tokens)]] = 0

        count = min(count, LENGTH - self.length)
        prompt = self.tokens[: 1 if self.length == 0 else 0]
        if count > 1:
            outputs = self.generator.generate(
                prompt, max_tokens=count - 1, processors=[write_the_text]
            )
            for out in outputs:
                assert out.token == self.tokens[self.generator.position]
                self.check(self.generator.logits[None], self.generator.position - 1)
            if not leave:
                self.generator.rewind(self.generator.position)

    @rule(distance=st.integers(0, 60) | st.integers(500, 700) | st.integers(0, LENGTH))
    def rewind(self, distance: int) -> None:
        self.generator.rewind(max(0, self.generator.position - distance))

    @rule(keep_parent=st.booleans())
    def fork(self, keep_parent: bool) -> None:
        copy = self.generator.fork()
        if not keep_parent:
            self.generator, self.other = copy, self.generator

    @rule()
    def reset(self) -> None:
        self.generator.reset()

    @invariant()
    def caches_hold_the_rows(self) -> None:
        """All rows of full layers, at least the window of sliding ones, each with its own bits."""
        if not hasattr(self, "generator"):
            return
        position, expected = self.generator.position, self.expected[self.kv_dtype]
        for layer, kind in enumerate(self.model.config.layer_types):
            first, end = self.generator.kv_range(layer)
            needed = 0 if kind == "full_attention" else max(0, position - SPEC.window + 1)
            assert end == position and first <= needed
            for view, name in zip(self.generator.kv(layer), "kv", strict=True):
                rows = expected[f"layers.{layer}.{name}"][first:end].swapaxes(0, 1)
                assert_same_bits(view, rows.astype(view.dtype), f"layer {layer} {name}")


def test_any_sequence_of_calls() -> None:
    with tempfile.TemporaryDirectory() as directory:
        CallSequences.prepare(directory)
        some = settings(max_examples=200, stateful_step_count=15)
        run_state_machine_as_test(CallSequences, settings=some)
