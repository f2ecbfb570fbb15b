"""The tables of `gptoss bench`."""

from rich.table import Table
from rich.text import Text

from gptoss.benchmark import Limits, PeerResult, Report, Result
from gptoss.cli import console, doctor
from gptoss.profile import Operation, Profile

_LIMIT_NAMES = {"read": "read bandwidth", "fma": "FMA peak"}


def number(value: float) -> str:
    """Three digits or so: '0.123', '12.3', '1,234'."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def amount(value: float, unit: str) -> str:
    """8110000, 'B' -> '8.11 MB'."""
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{number(value / size)} {prefix}{unit}"
    return f"{value:.0f} {unit}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _heading(report: Report, name: str) -> Text:
    model, options = report.model, report.options
    config, threads = model["config"], options["threads"]
    on_cpu = options["device"] == "cpu"
    where = f"{options['isa']}, {_plural(threads, 'thread')}" if on_cpu else "vulkan"
    parts = [
        f"{config['architecture']}, {_plural(config['num_layers'], 'layer')}",
        amount(model["bytes"], "B"),
        f"{options['precision']} on {where}, KV {options['kv_dtype']}",
        doctor.cpu_model() if on_cpu else options["device"],
    ]
    return Text.assemble((name, "bold"), "  ", " · ".join(parts))


def _limit_line(limits: Limits | None) -> str:
    if limits is None:
        return "limits are measured on CPUs only: none are shown for a GPU"
    line = f"limits measured in this run: reads {limits.bytes_per_second / 1e9:.1f} GB/s"
    peak = limits.flops_per_second
    kind = "float32" if limits.precision == "fp32" else limits.precision
    return line + (f", {kind} FMA {peak / 1e9:.0f} GFLOP/s" if peak else "")


def _speed_table(results: tuple[Result, ...]) -> Table:
    headers = ["test", "tok/s", "min .. max", "a token", "limit", "reached"]
    if any(result.limits is None for result in results):
        headers = headers[:4]
    rows = console.table(*headers, right=(1, 4))
    for result in results:
        speed = result.tokens_per_second
        if result.limited_by == "fma":
            need = amount(result.linear_flops_per_token, "FLOP")
        else:
            need = amount(result.bytes_per_token, "B")
        cells: list[str | Text] = []
        if result.limited_by and result.share and result.limit_tokens_per_second:
            share = f"{result.share:.0%} of {_LIMIT_NAMES[result.limited_by]}"
            cells = [number(result.limit_tokens_per_second), Text(share)]
        rows.add_row(
            str(result.test),
            Text(number(speed.median), "bold"),
            f"{number(speed.minimum)} .. {number(speed.maximum)}",
            need,
            *cells,
        )
    return rows


def _peer_table(results: tuple[Result, ...], peers: list[PeerResult]) -> Table:
    """One row a test, two columns a peer: its speed, and ours over it."""
    names = list(dict.fromkeys(peer.peer for peer in peers))
    headers = [header for name in names for header in (name, "ratio")]
    count = 2 + len(headers)
    rows = console.table("test", "gptoss", *headers, right=tuple(range(1, count)))
    theirs = {(peer.test, peer.peer): peer.tokens_per_second.median for peer in peers}
    for result in results:
        ours = result.tokens_per_second.median
        cells: list[str | Text] = []
        for name in names:
            speed = theirs.get((result.test, name))
            if speed is None:
                cells += [Text("-", "dim"), ""]
            else:
                style = "green" if ours > speed else "red"
                cells += [number(speed), Text(f"{ours / speed:.2f}x", style)]
        rows.add_row(str(result.test), number(ours), *cells)
    return rows


def _profile_table(result: Result) -> Table:
    """Operations of one test, beside the same limits."""
    profile, limits = result.profile, result.limits
    headers = ["ms/token", "time", "GB/s", "max", "GFLOP/s", "max"]
    if limits is None:
        headers = [header for header in headers if header != "max"]
    rows = console.table(str(result.test), *headers, right=(1, 2, 3, 4, 5, 6))
    tokens = result.test.all_tokens * len(result.seconds)
    for operation in profile:
        rows.add_row(*_profile_row(operation, profile, tokens, limits))
    rest = [number(profile.other_seconds / tokens * 1e3), _share(profile.other_seconds, profile)]
    rows.add_row(Text("between them", "dim"), *rest)
    rows.add_row("together", number(profile.seconds / tokens * 1e3), "", style="bold")
    return rows


def _share(seconds: float, profile: Profile) -> str:
    return f"{seconds / profile.seconds:.1%}" if profile.seconds else ""


def _profile_row(
    operation: Operation, profile: Profile, tokens: int, limits: Limits | None
) -> list[str]:
    peak = None if limits is None else limits.flops_per_second
    cells = [
        operation.name,
        number(operation.seconds / tokens * 1e3),
        _share(operation.seconds, profile),
        number(operation.bytes_per_second / 1e9),
    ]
    if limits is not None:
        cells.append(f"{operation.bytes_per_second / limits.bytes_per_second:.0%}")
    if operation.flops:
        cells.append(number(operation.flops_per_second / 1e9))
        cells.append(f"{operation.flops_per_second / peak:.0%}" if peak else "")
    return cells


def _summary(results: tuple[Result, ...]) -> str:
    """The best of either kind in a sentence."""
    parts = []
    for kind, word in (("prefill", "Prefill"), ("decode", "decode")):
        chosen = [result for result in results if result.test.kind == kind]
        if chosen:
            best = max(chosen, key=lambda result: result.share or result.tokens_per_second.median)
            part = f"{word} {number(best.tokens_per_second.median)} tok/s ({best.test})"
            if best.limited_by:
                part += f", {best.share:.0%} of {_LIMIT_NAMES[best.limited_by]}"
            parts.append(part)
    sentence = "; ".join(parts)
    return f"{sentence[:1].upper()}{sentence[1:]}." if sentence else "Nothing was measured."


def show(report: Report, peers: list[PeerResult], name: str, profile: bool) -> None:
    """Prints everything on standard output."""
    out = console.console()
    out.print(_heading(report, name), soft_wrap=True)
    out.print(Text(_limit_line(report.limits), "dim"), soft_wrap=True)
    if report.results:
        out.print()
        out.print(_speed_table(report.results))
    if peers:
        out.print()
        out.print(_peer_table(report.results, peers))
    for result in report.results if profile else ():
        out.print()
        out.print(_profile_table(result))
    out.print()
    out.print(_summary(report.results), soft_wrap=True)
    if report.limits is not None and report.model["bytes"] < report.limits.cache_bytes:
        out.print(
            Text(
                f"The whole model fits in the last-level cache "
                f"({report.limits.cache_bytes / 1e6:.0f} MB), which is faster than memory.",
                "dim",
            ),
            soft_wrap=True,
        )
