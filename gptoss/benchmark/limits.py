"""What this machine can do at most: bytes read from memory, and multiply-adds, a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptoss import _core

_ROUNDS = 5
_MIN_READ_BYTES = 1 << 28
_FMA_SECONDS = 0.05


@dataclass(frozen=True)
class Limits:
    """Measured by several threads at once.

    read_samples: bytes a second that plain vector loads read from arrays larger than the caches,
    one figure a round. flop_samples: floating-point operations a second of independent
    multiply-adds at the precision, two each; empty for instruction sets without vectors. The limits
    are the best rounds: what disturbs a round makes it slower, never faster.
    """

    threads: int
    isa: str
    read_samples: tuple[float, ...]
    flop_samples: tuple[float, ...]
    cache_bytes: int
    precision: str = "fp32"

    @property
    def bytes_per_second(self) -> float:
        return max(self.read_samples)

    @property
    def flops_per_second(self) -> float | None:
        return max(self.flop_samples, default=None)

    def __or__(self, other: Limits) -> Limits:
        """Both measurements as one."""
        return Limits(
            self.threads,
            self.isa,
            self.read_samples + other.read_samples,
            self.flop_samples + other.flop_samples,
            self.cache_bytes,
            self.precision,
        )


def last_cache_bytes() -> int:
    """The size of the last-level cache as the system tells it, 0 if it does not."""
    sizes = [0]
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = file.read_text().strip()
            sizes.append(int(text.rstrip("KMG")) * units.get(text[-1:], 1))
        except (OSError, ValueError):
            continue
    return max(sizes)


def available_memory() -> int | None:
    """Bytes that programs may still take without swapping, None if the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


class _Team:
    """Threads that do each round of their work at the same time."""

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads

    def rates(self, prepare: Callable[[], Callable[[], float]]) -> tuple[float, ...]:
        """prepare makes a thread's work, which says how much it did; the amount of all threads a
        second, in each round but the first, which warms up."""
        barrier = threading.Barrier(self._num_threads)
        spans: list[list[tuple[float, float, float]]] = [[] for _ in range(_ROUNDS + 1)]
        failures: list[BaseException] = []

        def body() -> None:
            try:
                work = prepare()
                for round_spans in spans:
                    barrier.wait()
                    start = time.perf_counter()
                    amount = work()
                    round_spans.append((start, time.perf_counter(), amount))
            except BaseException as error:
                failures.append(error)
                barrier.abort()

        threads = [threading.Thread(target=body) for _ in range(self._num_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for error in failures:
            if not isinstance(error, threading.BrokenBarrierError):
                raise error
        rates = []
        for round_spans in spans[1:]:
            starts, ends, amounts = zip(*round_spans, strict=True)
            rates.append(sum(amounts) / (max(ends) - min(starts)))
        return tuple(rates)


def measure_limits(threads: int, isa: str, precision: str = "fp32") -> Limits:
    """Measures for about a second with `threads` threads and the vectors of an instruction set,
    which must be available. Precision "bf16" multiplies on the unit that isa names, and reads with
    the best vectors there are."""
    read_isa = isa
    if precision != "fp32":
        read_isa = [name for name, available in _core.isas() if available][-1]
    cache = last_cache_bytes()
    total = max(_MIN_READ_BYTES, 8 * cache)
    if available := available_memory():
        total = min(total, max(available // 4, 1 << 24))

    def prepare_read() -> Callable[[], float]:
        # The thread that reads touches first: the memory is on its own node.
        part = np.ones(total // threads, np.uint8)

        def read() -> float:
            _core.measure_read(read_isa, part)
            return float(part.nbytes)

        return read

    def prepare_fma() -> Callable[[], float]:
        rounds = 100_000
        start = time.perf_counter()
        _core.measure_fma(isa, rounds)
        rounds = max(1, int(rounds * _FMA_SECONDS / max(time.perf_counter() - start, 1e-9)))
        return lambda: float(_core.measure_fma(isa, rounds))

    team = _Team(threads)
    reads = team.rates(prepare_read)
    flops = team.rates(prepare_fma) if _core.measure_fma(isa, 1) > 0 else ()
    return Limits(threads, isa, reads, flops, cache, precision)
