"""How fast a model runs here, beside the limits of the machine from the same run.

    from gptoss import benchmark

    report = benchmark.run("demo", [benchmark.Test("prefill", 512), benchmark.Test("decode", 128)])
    for result in report.results:
        print(result.test, result.tokens_per_second, result.share)

`gptoss bench` is this with tables.
"""

from gptoss.benchmark.limits import Limits, measure_limits
from gptoss.benchmark.measure import (
    Benchmark,
    Report,
    Result,
    Statistics,
    Test,
    make_tests,
    run,
)
from gptoss.benchmark.peers import Peer, PeerError, PeerResult

__all__ = [
    "Benchmark",
    "Limits",
    "Peer",
    "PeerError",
    "PeerResult",
    "Report",
    "Result",
    "Statistics",
    "Test",
    "make_tests",
    "measure_limits",
    "run",
]
