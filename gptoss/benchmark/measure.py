"""Runs a model on random tokens and sets its speed beside the machine's limits."""

from __future__ import annotations

import dataclasses
import functools
import os
import statistics
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Self

import numpy as np

import gptoss
from gptoss.benchmark.limits import Limits, measure_limits
from gptoss.errors import ArgumentError, require_integer
from gptoss.placement import Size
from gptoss.profile import Profile

Kind = Literal["prefill", "decode"]
Progress = Callable[[int, int], object]

_WARM_UP = {"prefill": 512, "decode": 16}
_TICK_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Test:
    """What is timed. "prefill": `tokens` tokens fed at once. "decode": `tokens` tokens fed one by
    one, in each of `sequences` sequences at a time. Both after `depth` tokens of context, which are
    not timed."""

    kind: Kind
    tokens: int
    depth: int = 0
    sequences: int = 1

    __test__ = False  # pytest: this is no test of gptoss

    def __post_init__(self) -> None:
        if self.kind not in ("prefill", "decode"):
            raise ArgumentError(f"a test is of the kind 'prefill' or 'decode', not {self.kind!r}")
        require_integer("tokens", self.tokens, 1)
        require_integer("depth", self.depth, 0)
        require_integer("sequences", self.sequences, 1)
        if self.kind == "prefill" and self.sequences != 1:
            raise ArgumentError("several sequences are decoded together, not prefilled")

    def __str__(self) -> str:
        """As llama-bench names it: pp512, tg128@4096; tg128x16 for 16 sequences."""
        name = ("pp" if self.kind == "prefill" else "tg") + str(self.tokens)
        name += f"x{self.sequences}" if self.sequences > 1 else ""
        return name + (f"@{self.depth}" if self.depth else "")

    @property
    def context(self) -> int:
        return self.depth + self.tokens

    @property
    def all_tokens(self) -> int:
        return self.tokens * self.sequences


def make_tests(
    prompts: Iterable[int],
    generate: Iterable[int],
    depths: Iterable[int] = (0,),
    sequences: Iterable[int] = (1,),
) -> list[Test]:
    """Every combination, by depth: context that is there already serves all tests at its depth."""
    prompts, generate, sequences = list(prompts), list(generate), list(sequences)
    tests = []
    for depth in sorted(set(depths)):
        tests += [Test("prefill", tokens, depth) for tokens in prompts]
        tests += [
            Test("decode", tokens, depth, count) for count in sequences for tokens in generate
        ]
    return list(dict.fromkeys(tests))


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Of the samples of a test."""

    median: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Statistics:
        return cls(statistics.median(samples), min(samples), max(samples))


@dataclasses.dataclass(frozen=True)
class Result:
    """A test's times and counts.

    seconds: of each repetition. profile: the operations of all repetitions. The limit is the
    roofline of the run's own measurements: a token takes at least the time to read its bytes
    (weights, keys, values) from memory, and at least the time of the multiply-adds of its matrix
    products. What is shared by the tokens of a pass, as weights in prefill, is divided among them.
    On a GPU limits are not measured: None, as is what follows from them.
    """

    test: Test
    seconds: tuple[float, ...]
    profile: Profile
    limits: Limits | None

    @property
    def tokens_per_second(self) -> Statistics:
        return Statistics.of([self.test.all_tokens / seconds for seconds in self.seconds])

    def _a_token(self, count: int) -> float:
        return count / (self.test.all_tokens * len(self.seconds))

    @property
    def weight_bytes_per_token(self) -> float:
        return self._a_token(self.profile.weight_bytes)

    @property
    def kv_bytes_per_token(self) -> float:
        return self._a_token(self.profile.kv_bytes)

    @property
    def bytes_per_token(self) -> float:
        return self.weight_bytes_per_token + self.kv_bytes_per_token

    @property
    def linear_flops_per_token(self) -> float:
        return self._a_token(self.profile.linear_flops)

    @property
    def flops_per_token(self) -> float:
        return self._a_token(self.profile.flops)

    @property
    def read_share(self) -> float | None:
        """Of the read bandwidth, at the median speed."""
        if self.limits is None:
            return None
        return self._rate(self.bytes_per_token) / self.limits.bytes_per_second

    @property
    def fma_share(self) -> float | None:
        """Of the peak of multiply-adds, at the median speed; matrix products alone count."""
        peak = None if self.limits is None else self.limits.flops_per_second
        return self._rate(self.linear_flops_per_token) / peak if peak else None

    def _rate(self, amount_per_token: float) -> float:
        return amount_per_token * self.tokens_per_second.median

    @property
    def limited_by(self) -> Literal["read", "fma"] | None:
        """Which of the two limits is the nearer one."""
        if self.read_share is None:
            return None
        return "fma" if (self.fma_share or 0.0) > self.read_share else "read"

    @property
    def share(self) -> float | None:
        """Of the nearer limit."""
        return None if self.read_share is None else max(self.read_share, self.fma_share or 0.0)

    @property
    def limit_tokens_per_second(self) -> float | None:
        return None if self.share is None else self.tokens_per_second.median / self.share

    def as_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "test": str(self.test),
            **dataclasses.asdict(self.test),
            "seconds": list(self.seconds),
            "tokens_per_second": dataclasses.asdict(self.tokens_per_second),
            "per_token": {
                "weight_bytes": self.weight_bytes_per_token,
                "kv_bytes": self.kv_bytes_per_token,
                "flops": self.flops_per_token,
                "linear_flops": self.linear_flops_per_token,
            },
            "limit": {
                "limited_by": self.limited_by,
                "tokens_per_second": self.limit_tokens_per_second,
                "share": self.share,
                "read_share": self.read_share,
                "fma_share": self.fma_share,
            },
            "profile": {
                "passes": self.profile.passes,
                "seconds": self.profile.seconds,
                "operations": [dataclasses.asdict(operation) for operation in self.profile],
            },
        }


@dataclasses.dataclass(frozen=True)
class Report:
    """What was measured, and how."""

    model: dict[str, Any]
    options: dict[str, Any]
    limits: Limits | None  # None on a GPU
    results: tuple[Result, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON types."""
        limits = self.limits and {
            "bytes_per_second": self.limits.bytes_per_second,
            "flops_per_second": self.limits.flops_per_second,
            **dataclasses.asdict(self.limits),
        }
        results = [result.as_dict() for result in self.results]
        return {
            "model": self.model,
            "options": self.options,
            "limits": limits,
            "results": results,
        }


class Benchmark:
    """An open model and what was measured of it. Made for the tests that it will run, whose
    context it reserves. A context manager.

    path, device, gpu_memory, threads, isa, precision, loading (its progress): as of gptoss.Model.
    kv_dtype, block_size: as of gptoss.Generator. seed: of the random tokens.
    profile: time operations on a GPU, too, which keeps it from running some side by side; False
    counts their bytes and FLOP alone.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        tests: Iterable[Test],
        *,
        device: str | Iterable[str] = "cpu",
        gpu_memory: Size | Sequence[Size] | None = None,
        threads: int | None = None,
        isa: str | None = None,
        precision: str | None = None,
        kv_dtype: str = "f16",
        block_size: int | None = None,
        seed: int = 0,
        profile: bool = True,
        loading: Progress | None = None,
    ) -> None:
        self.tests = list(tests)
        if not self.tests:
            raise ArgumentError("there is nothing to measure: give at least one test")
        self.model = gptoss.Model(
            path,
            device=device,
            gpu_memory=gpu_memory,
            threads=threads,
            isa=isa,
            precision=precision,
            profile=True if profile else "counts",
            progress=loading,
        )
        self._make = functools.partial(
            gptoss.Generator,
            self.model,
            max_context=max(test.context for test in self.tests),
            kv_dtype=kv_dtype,
            block_size=block_size,
        )
        self._options = {"kv_dtype": kv_dtype, "block_size": block_size, "seed": seed}
        self._seed = seed
        self._generators: list[gptoss.Generator] = [self._make()]
        self._depth = 0
        self._results: list[Result] = []
        self.limits = self._measure_limits()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._generators.clear()
        self.model.__exit__(None, None, None)

    def measure(self, test: Test, repetitions: int = 5, progress: Progress | None = None) -> Result:
        """Warms up, then times the test `repetitions` times; each has random tokens of its own.

        progress: called with (done, total) tokens; may raise to stop. What was timed by then is
        part of the report.
        """
        repetitions = require_integer("repetitions", repetitions, 1)
        warm_up = min(test.tokens, _WARM_UP[test.kind])
        total = max(0, test.depth - self._depth) + test.sequences * warm_up
        count = _Counter(progress, total + repetitions * test.all_tokens)
        rng = np.random.default_rng([self._seed, zlib.crc32(str(test).encode())])
        seconds: list[float] = []
        profiles: list[Profile] = []
        try:
            self._prepare(test, rng, count)
            self._repeat(test, rng, warm_up, count)
            for _ in range(repetitions):
                elapsed = self._repeat(test, rng, test.tokens, count)
                profiles.append(self.model.profile())
                seconds.append(elapsed)
        finally:
            if seconds:
                profile = functools.reduce(Profile.__add__, profiles[: len(seconds)])
                self._results.append(Result(test, tuple(seconds), profile, self.limits))
        return self._results[-1]

    def _measure_limits(self) -> Limits | None:
        model = self.model
        if model.device != "cpu":
            return None
        return measure_limits(model.threads, model.isa, model.precision)

    def _random(self, rng: np.random.Generator, count: int) -> list[int]:
        return [int(token) for token in rng.integers(0, self.model.config.vocab_size, count)]

    def _prepare(self, test: Test, rng: np.random.Generator, count: _Counter) -> None:
        """As many generators as the test needs, with its depth of context."""
        first = self._generators[0]
        first.rewind(min(self._depth, test.depth))
        if missing := self._random(rng, test.depth - first.position):
            first.prefill(missing, progress=count.within)
            count.add(len(missing))
        self._depth = test.depth
        others = range(1, test.sequences)
        self._generators[1:] = [first.fork() if test.depth else self._make() for _ in others]

    def _repeat(self, test: Test, rng: np.random.Generator, tokens: int, count: _Counter) -> float:
        """The seconds of one repetition with so many tokens. The profile is of it alone."""
        for generator in self._generators:
            generator.rewind(self._depth)
        every = [self._random(rng, tokens) for _ in self._generators]
        self.model.reset_profile()
        start = time.perf_counter()
        if test.kind == "prefill":
            self._generators[0].prefill(every[0], progress=count.within)
            elapsed = time.perf_counter() - start
            count.add(tokens)
            return elapsed
        now = start
        for column in zip(*every, strict=True):
            self._step(column)
            now = count.tick(test.sequences)
        count.add(0)
        return now - start

    def _step(self, tokens: Sequence[int]) -> None:
        """One token in each sequence."""
        if len(tokens) == 1:
            self._generators[0].step(tokens[0])
        else:
            gptoss.forward(self._generators, tokens)

    def report(self, again: bool = True) -> Report:
        """What was measured so far.

        again: measure the limits once more; the better of both counts.
        """
        measured = self._measure_limits() if again else None
        if self.limits is not None and measured is not None:
            self.limits |= measured
        results = [dataclasses.replace(result, limits=self.limits) for result in self._results]
        config = dataclasses.asdict(self.model.config)
        memory = self.model.memory()
        model = {
            "path": str(self.model.path),
            "bytes": memory["mapped"] + memory["read"],
            "config": config | {"layer_types": list(config["layer_types"])},
        }
        options = {
            "device": self.model.device,
            "threads": self.model.threads,
            "isa": self.model.isa,
            "precision": self.model.precision,
            **self._options,
        }
        return Report(model, options, self.limits, tuple(results))


class _Counter:
    """Tokens done of all, told to a callback now and then."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._done = 0
        self._total = total
        self._last = time.perf_counter()

    def _tell(self, done: int) -> None:
        if self._progress is not None:
            self._progress(min(done, self._total), self._total)

    def add(self, count: int) -> None:
        self._done += count
        self._tell(self._done)

    def within(self, done: int, total: int) -> None:
        """The progress of one prefill."""
        del total
        self._tell(self._done + done)

    def tick(self, count: int) -> float:
        """One step is done. Returns the time."""
        self._done += count
        now = time.perf_counter()
        if now - self._last > _TICK_SECONDS:
            self._last = now
            self._tell(self._done)
        return now


def run(
    path: str | os.PathLike[str],
    tests: Iterable[Test],
    *,
    repetitions: int = 5,
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Opens a model, measures every test and the machine's limits, and closes it.

    options: those of Benchmark. progress: called with (done, total) tokens of each test.
    """
    with Benchmark(path, tests, **options) as benchmark:
        for test in benchmark.tests:
            benchmark.measure(test, repetitions, progress)
        return benchmark.report()
