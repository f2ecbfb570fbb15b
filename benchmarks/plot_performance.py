"""The pictures of docs/performance.md, from what `gptoss bench --json` and bench_kernels.py wrote.

    gptoss bench MODEL -p 32,128,512,2048 -d 0,2048,8192 --json > model.json
    python benchmarks/bench_kernels.py --json > kernels.jsonl
    python benchmarks/plot_performance.py model.json kernels.jsonl --output docs/images

A file's name without its ending is its label. A picture that no file has figures for is not drawn.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

OURS, PEERS, LIMIT, GRID = "#1f6f8b", ("#c8963e", "#8a5a83", "#7d8c4a"), "#b0b0b0", "#e4e4e4"
LINES = (OURS, *PEERS)
RESULT_KEYS = ("operation", "isa", "what", "value", "unit", "limit")
OPERATIONS = ("#1f6f8b", "#2f97b7", "#7cc3d8", "#c8963e", "#e3c184", "#8a5a83", "#7d8c4a")


@dataclass
class Run:
    """One `gptoss bench --json`."""

    label: str
    facts: dict[str, Any]

    def results(self, kind: str) -> list[dict[str, Any]]:
        """Those of one sequence."""
        results = self.facts["results"]
        return [one for one in results if one["kind"] == kind and one["sequences"] == 1]


def load(paths: Iterable[Path]) -> tuple[list[Run], list[dict[str, Any]]]:
    """Runs of models, and results of kernels. ValueError, naming the file, for anything else."""
    runs, kernels = [], []
    for path in paths:
        text = path.read_text()
        try:
            facts = json.loads(text)
        except ValueError:
            facts = None
        if isinstance(facts, dict) and "results" in facts:
            runs.append(Run(path.stem, facts))
            continue
        try:
            lines = [json.loads(line) for line in text.splitlines() or [text]]
            kernels += [{key: line[key] for key in RESULT_KEYS} for line in lines]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} is neither of gptoss bench nor of bench_kernels.py") from None
    return runs, kernels


# ---- drawing ----


def begin(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def draw_shares(rows: list[tuple[str, float, str]], title: str) -> Figure | None:
    """Horizontal bars of shares of a limit; rows of name, share and remark."""
    if not rows:
        return None
    figure, axes = begin(7.5, 0.9 + 0.32 * len(rows), title)
    names, shares, remarks = zip(*rows, strict=True)
    places = range(len(rows))
    axes.barh(places, [100 * share for share in shares], color=OURS, height=0.62)
    for place, share, remark in zip(places, shares, remarks, strict=True):
        axes.text(100 * share + 1, place, f"{share:.0%}  {remark}", va="center", fontsize=8)
    axes.axvline(100, color=LIMIT, linewidth=1)
    axes.set_yticks(places, names, fontsize=9)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, max(135, 100 * max(shares) + 90))
    axes.set_xticks(range(0, 101, 25), [f"{tick}%" for tick in range(0, 101, 25)])
    axes.grid(axis="x", color=GRID)
    return figure


def model_shares(runs: list[Run], _: list[dict[str, Any]]) -> Figure | None:
    names = {"read": "of the read bandwidth", "fma": "of the multiply-add peak"}
    rows = [
        (
            f"{run.label} {one['test']}",
            one["limit"]["share"],
            f"{names[one['limit']['limited_by']]}, {one['tokens_per_second']['median']:.4g} tok/s",
        )
        for run in runs
        for one in run.facts["results"]
    ]
    return draw_shares(rows, "Share of the limit measured in the same run")


def kernel_shares(_: list[Run], kernels: list[dict[str, Any]]) -> Figure | None:
    """Of the best instruction set among the results."""
    limited = [one for one in kernels if one["limit"]]
    isa = limited[-1]["isa"] if limited else ""
    rows = [
        (
            f"{one['operation']}, {one['what']}",
            one["value"] / one["limit"],
            f"{one['value']:.1f} {one['unit']}",
        )
        for one in limited
        if one["isa"] == isa
    ]
    return draw_shares(rows, f"Kernels, {isa}: share of the limit measured in the same run")


def draw_lines(
    runs: list[Run], kind: str, x: str, title: str, xlabel: str, keep: Callable[[Any], bool]
) -> Figure | None:
    """Median speed against a size of the test, with spread and limit, where there are two sizes."""
    series = {
        run.label: sorted((one for one in run.results(kind) if keep(one)), key=lambda one: one[x])
        for run in runs
    }
    series = {label: ones for label, ones in series.items() if len({one[x] for one in ones}) > 1}
    if not series:
        return None
    figure, axes = begin(6.5, 4, title)
    for (label, ones), color in zip(series.items(), LINES * len(series), strict=False):
        sizes = [one[x] for one in ones]
        speeds = [one["tokens_per_second"] for one in ones]
        axes.plot(sizes, [speed["median"] for speed in speeds], "o-", color=color, label=label)
        low, high = ([speed[end] for speed in speeds] for end in ("minimum", "maximum"))
        axes.fill_between(sizes, low, high, color=color, alpha=0.2, linewidth=0)
        limits = [one["limit"]["tokens_per_second"] for one in ones]
        axes.plot(sizes, limits, "--", color=color, alpha=0.5, label=f"{label}, limit")
    axes.set_xlabel(xlabel)
    axes.set_ylabel("tokens a second")
    axes.set_ylim(bottom=0)
    axes.grid(color=GRID)
    axes.legend(frameon=False, fontsize=8)
    return figure


def decode_by_depth(runs: list[Run], _: list[dict[str, Any]]) -> Figure | None:
    title = "Decode against depth (band: slowest to fastest)"
    return draw_lines(runs, "decode", "depth", title, "tokens in the context", lambda _: True)


def prefill_by_length(runs: list[Run], _: list[dict[str, Any]]) -> Figure | None:
    title = "Prefill against the length of the prompt (band: slowest to fastest)"
    return draw_lines(
        runs, "prefill", "tokens", title, "tokens of the prompt", lambda one: one["depth"] == 0
    )


def _speed(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def peers(runs: list[Run], _: list[dict[str, Any]]) -> Figure | None:
    """Groups of bars, one a test: ours over the fastest of all, then the peers'."""
    names = list(dict.fromkeys(one["peer"] for run in runs for one in run.facts["peers"]))
    groups = []
    for run in runs:
        theirs = {
            (one["test"], one["peer"]): one["tokens_per_second"]["median"]
            for one in run.facts["peers"]
        }
        for one in run.facts["results"]:
            speeds = [one["tokens_per_second"]["median"]]
            speeds += [theirs.get((one["test"], name), 0.0) for name in names]
            if any(speeds[1:]):
                groups.append((f"{run.label}\n{one['test']}", speeds))
    if not groups:
        return None
    figure, axes = begin(2 + 1.3 * len(groups), 4, "Beside other engines, same file, same threads")
    width = 0.8 / (1 + len(names))
    for index, name in enumerate(["gptoss", *names]):
        for place, (_, speeds) in enumerate(groups):
            share = speeds[index] / speeds[0]
            at = place + (index - len(names) / 2) * width
            label = name if place == 0 else None
            axes.bar(at, share, width * 0.92, color=LINES[index % len(LINES)], label=label)
            if speeds[index]:
                axes.text(at, share, _speed(speeds[index]), ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(groups)), [name for name, _ in groups], fontsize=8)
    axes.set_ylabel("speed, gptoss = 1 (tok/s above)")
    axes.grid(axis="y", color=GRID)
    axes.legend(frameon=False, fontsize=8, ncols=1 + len(names))
    axes.margins(y=0.2)
    return figure


def operations(runs: list[Run], _: list[dict[str, Any]]) -> Figure | None:
    """Where the time goes: one bar a test, its operations one after another."""
    rows = [(f"{run.label} {one['test']}", one) for run in runs for one in run.facts["results"]]
    if not rows:
        return None
    figure, axes = begin(7.5, 1.5 + 0.32 * len(rows), "Time by operation")
    names = [one["name"] for one in rows[0][1]["profile"]["operations"]]
    totals = dict.fromkeys(names, 0.0)
    for _, one in rows:
        for part in one["profile"]["operations"]:
            totals[part["name"]] += part["seconds"] / one["profile"]["seconds"]
    shown = [name for name in names if totals[name] / len(rows) > 0.02]
    starts = [0.0] * len(rows)
    for name, color in zip(shown, OPERATIONS * 2, strict=False):
        shares = [
            100 * part["seconds"] / one["profile"]["seconds"]
            for _, one in rows
            for part in one["profile"]["operations"]
            if part["name"] == name
        ]
        axes.barh(range(len(rows)), shares, left=starts, color=color, height=0.62, label=name)
        starts = [start + share for start, share in zip(starts, shares, strict=True)]
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the time; the rest: other operations, and what is between them")
    figure.legend(frameon=False, fontsize=8, ncols=4, loc="outside lower center")
    return figure


PICTURES: dict[str, Callable[[list[Run], list[dict[str, Any]]], Figure | None]] = {
    "performance_shares": model_shares,
    "performance_kernels": kernel_shares,
    "performance_depth": decode_by_depth,
    "performance_prompt": prefill_by_length,
    "performance_peers": peers,
    "performance_operations": operations,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/performance.md.")
    parser.add_argument("files", nargs="+", type=Path, help="of gptoss bench or bench_kernels.py")
    parser.add_argument("--output", type=Path, default=Path("docs/images"), metavar="DIR")
    parser.add_argument("--format", choices=("svg", "png"), default="svg")
    arguments = parser.parse_args()
    matplotlib.rcParams["svg.hashsalt"] = "gptoss"  # the same figures, the same file
    try:
        runs, kernels = load(arguments.files)
    except (OSError, ValueError) as error:
        print(f"plot_performance: {error}", file=sys.stderr)
        return 1
    arguments.output.mkdir(parents=True, exist_ok=True)
    metadata: dict[str, Any] = {"Date": None} if arguments.format == "svg" else {}
    for name, draw in PICTURES.items():
        figure = draw(runs, kernels)
        if figure is not None:
            path = arguments.output / f"{name}.{arguments.format}"
            figure.savefig(path, metadata=metadata, dpi=150)
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
