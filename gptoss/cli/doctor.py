"""`gptoss doctor`: what this machine and this build have, and whether they compute right."""

import dataclasses
import itertools
import json
import math
import os
import platform
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import gptoss
from gptoss import _core
from gptoss.cli import console, options
from gptoss.device_test import compare_device
from gptoss.self_test import OperationResult, self_test

EXAMPLES = (
    "gptoss doctor",
    "gptoss doctor --device vulkan --model ~/models/gpt-oss-20b",
    "gptoss doctor --json",
)

QUESTION = "What is 17 + 25?"
ANSWER = "17 + 25 = 42."


@dataclasses.dataclass
class Check:
    """One thing that is right or wrong."""

    name: str
    passed: bool
    detail: str


def cpu_model() -> str:
    """The processor's name as the system knows it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cgroup_cpus() -> float | None:
    """The CPUs that the innermost cgroup quota allows, None without a quota."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def vulkan_facts() -> dict[str, Any]:
    """The Vulkan devices, and why there are none."""
    try:
        found, problem = _core.vulkan_devices(), None
    except gptoss.Error as error:
        found, problem = [], str(error)
    names = ("name", "kind", "memory_bytes")
    devices = [dict(zip(names, each, strict=True)) for each in found]
    return {"vulkan_devices": devices, "vulkan_problem": problem}


def machine_facts() -> dict[str, Any]:
    return {
        "gptoss": gptoss.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cpu_features": [name for name, present in _core.cpu_features().items() if present],
        "cpus": {
            "system": os.cpu_count(),
            "affinity": len(os.sched_getaffinity(0)),
            "cgroup": cgroup_cpus(),
            "usable": _core.usable_cpus(),
            "cores": _core.usable_cores(),
        },
        "isas": [{"name": name, "available": available} for name, available in _core.isas()],
        "bf16_isas": [
            {"name": name, "available": available} for name, available in _core.bf16_isas()
        ],
        **vulkan_facts(),
        "kernels": _core.kernels(),
    }


def check_kernels(isa: str, seed: int) -> tuple[Check, list[OperationResult]]:
    """Runs every kernel of `isa` on random data; each bit must be the scalar kernel's, and at
    precision bf16 that of one token alone."""
    try:
        results = self_test(isa, seed)
    except Exception as error:
        return Check(f"kernels {isa}", False, console.sentence(error)), []
    wrong = [result["operation"] for result in results if result["mismatches"]]
    cases = sum(result["cases"] for result in results)
    if wrong:
        detail = f"other bits than they should have in {', '.join(wrong)} (seed {seed})"
    else:
        detail = f"{len(results)} operations, {cases:,} cases: the bits they should have"
    return Check(f"kernels {isa}", not wrong, detail), results


def check_demo() -> tuple[Check, str | None]:
    """Asks the demo model a question whose answer is known; gives the instruction set it ran on."""
    isa = None
    try:
        with gptoss.Model("demo") as model:
            isa = model.isa
            chat = gptoss.Chat(model, date="2025-01-01")
            answer = chat.ask(QUESTION, sampling=gptoss.Sampling(temperature=0.0)).final
    except Exception as error:
        return Check("demo model", False, console.sentence(error)), isa
    if answer != ANSWER:
        return Check("demo model", False, f"{QUESTION} {answer!r}, expected {ANSWER!r}"), isa
    return Check("demo model", True, f"{QUESTION} {answer}"), isa


def check_device(
    path: str, device: str, gpu_memory: str | None, precision: str | None
) -> tuple[Check, dict[str, Any] | None]:
    """Compares every activation of a model on the device with the CPU's."""
    name = f"{path} on {device}"
    try:
        with console.progress_bar("", unit="%") as advance:

            def loading(done: int, total: int) -> None:
                advance(100 * done // total, 100, f"{path}: loading")

            def running(done: int, total: int) -> None:
                advance(100 * done // total, 100, f"{path}: comparing")

            found = compare_device(path, device, precision, loading, running, gpu_memory)
    except Exception as error:
        return Check(name, False, console.sentence(error)), None
    beyond = found.first_beyond
    if beyond is not None:
        detail = (
            f"{beyond.name} is the first beyond the tolerance of {found.tolerance:g}: it differs "
            f"from the CPU's by {beyond.largest:.1e} of its largest element"
        )
    elif not found.passed:
        detail = "nearly equal experts of the first token were ranked otherwise: nothing to compare"
    else:
        worst = max(found.differences, key=lambda each: each.largest)
        detail = (
            f"{len(found.differences)} activations of {found.num_compared} tokens within "
            f"{found.tolerance:g} of the CPU's, {worst.name} the farthest ({worst.largest:.1e})"
        )
    return Check(name, found.passed, detail), {"path": path, **dataclasses.asdict(found)}


def examine(progress: Callable[[int, int], None]) -> dict[str, Any]:
    """What this machine and build have and whether they compute right, as JSON types."""
    facts = machine_facts()
    checks, tests = [], []
    compiled = [*facts["isas"], *facts["bf16_isas"]]
    testable = [isa["name"] for isa in compiled if isa["available"]]
    testable.remove("scalar")
    seed = secrets.randbits(31)
    for index, isa in enumerate(testable):
        progress(index, len(testable) + 1)
        check, results = check_kernels(isa, seed)
        checks.append(check)
        tests += [{"isa": isa, **result} for result in results]
    progress(len(testable), len(testable) + 1)
    demo, facts["isa"] = check_demo()
    checks.append(demo)
    facts["self_test"] = {"seed": seed, "results": tests}
    facts["checks"] = [dataclasses.asdict(check) for check in checks]
    facts["comparisons"] = []
    return facts


def compare(
    facts: dict[str, Any],
    models: Sequence[str],
    device: str,
    gpu_memory: str | None,
    precision: str | None,
) -> None:
    """Adds the comparison of each model on the device to the facts."""
    for path in models:
        check, comparison = check_device(path, device, gpu_memory, precision)
        facts["checks"].append(dataclasses.asdict(check))
        facts["comparisons"] += [comparison] if comparison else []


def _machine_table(facts: dict[str, Any]) -> Table:
    cpus = facts["cpus"]
    quota = "no quota" if cpus["cgroup"] is None else f"quota {cpus['cgroup']:g}"
    isas, bf16_isas = (
        [isa["name"] + ("" if isa["available"] else " (not on this CPU)") for isa in facts[key]]
        for key in ("isas", "bf16_isas")
    )
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column()
    for label, value in (
        ("gptoss", facts["gptoss"]),
        ("Python", f"{facts['python']}, NumPy {facts['numpy']}"),
        ("platform", facts["platform"]),
        ("CPU", facts["cpu"]),
        ("features", " ".join(facts["cpu_features"]) or "none"),
        (
            "usable CPUs",
            f"{cpus['usable']} on {cpus['cores']} cores (system {cpus['system']}, "
            f"affinity {cpus['affinity']}, {quota})",
        ),
        ("compiled for", ", ".join(isas)),
        ("for bf16", ", ".join(bf16_isas) or "nothing on this kind of CPU"),
        ("runs with", facts["isa"] or "nothing: the model did not open"),
        *_vulkan_rows(facts),
    ):
        rows.add_row(label, value)
    return rows


def _vulkan_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """One a device, as --device names it."""
    rows = [
        (
            f"vulkan:{index}",
            f"{each['name']}, {each['kind']}, {console.format_bytes(each['memory_bytes'])}",
        )
        for index, each in enumerate(facts["vulkan_devices"])
    ]
    return rows or [("Vulkan", facts["vulkan_problem"] or "no device")]


def _comparison_table(comparison: dict[str, Any]) -> Table:
    """The largest difference of each layer, and where it is."""
    rows = console.table("layer", "largest difference", "of", right=(0, 1))
    for layer, group in itertools.groupby(comparison["differences"], lambda each: each["layer"]):
        worst = max(
            group,
            key=lambda each: math.inf if each["largest"] != each["largest"] else each["largest"],
        )
        is_beyond = not worst["largest"] <= comparison["tolerance"]
        rows.add_row(
            "" if layer is None else str(layer),
            Text(f"{worst['largest']:.1e}", "red" if is_beyond else ""),
            worst["name"].rpartition(".")[2],
        )
    return rows


def _kernel_table(facts: dict[str, Any]) -> Table:
    """One row an operation, one column an instruction set."""
    isas = [isa["name"] for isa in [*facts["isas"], *facts["bf16_isas"]]]
    tested = {
        (result["operation"], result["isa"]): result for result in facts["self_test"]["results"]
    }
    cells: dict[str, dict[str, Text]] = {}
    for kernel in facts["kernels"]:
        operation, isa = kernel["operation"], kernel["isa"]
        result = tested.get((operation, isa))
        if not kernel["available"]:
            cell = Text("not here", "dim")
        elif result is None:
            cell = Text("reference" if isa == "scalar" else "untested", "dim")
        elif result["mismatches"]:
            cell = Text(f"{result['mismatches']} of {result['cases']} wrong", "red")
        else:
            cell = Text(f"ok {result['cases']}", "green")
        cells.setdefault(operation, {})[isa] = cell
    rows = console.table("kernel", *isas)
    for operation, row in cells.items():
        rows.add_row(operation, *(row.get(isa, Text("-", "dim")) for isa in isas))
    return rows


def _print(out: Console, facts: dict[str, Any]) -> None:
    out.print(_machine_table(facts), soft_wrap=True)
    out.print()
    out.print(_kernel_table(facts))
    out.print()
    for comparison in facts["comparisons"]:
        title = f"{comparison['path']}: {comparison['device']} at {comparison['precision']}"
        out.print(Text(f"{title}, relative to the CPU", "bold"), soft_wrap=True)
        out.print(_comparison_table(comparison))
        out.print()
    for check in facts["checks"]:
        verdict = Text("ok    ", "green") if check["passed"] else Text("FAILED", "bold red")
        out.print(Text.assemble(verdict, f"  {check['name']}: {check['detail']}"), soft_wrap=True)


Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Compare this device with the CPU, activation by activation: vulkan, or one by number "
        "or part of its name, or several: vulkan:0,vulkan:1.",
    ),
]
GpuMemory = Annotated[
    str | None,
    typer.Option("--gpu-memory", metavar="SIZE", help=options.GPU_MEMORY_HELP),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", metavar="PATH", help="With --device: compare on this model, too."
    ),
]


def run(
    device: Device = None,
    gpu_memory: GpuMemory = None,
    model: Model = None,
    precision: options.Precision = None,
    as_json: options.Json = False,
) -> None:
    """Show what this machine and build have, and test every kernel and the demo model.

    With --device, the demo model (and --model) reads a few tokens there and on the CPU: a table
    shows how far the activations of each layer are apart, and the first that is beyond the
    tolerance is named. The exit code is 1 if anything is wrong.
    """
    if device is None and (model, precision, gpu_memory) != (None, None, None):
        raise typer.BadParameter(
            "--model, --precision and --gpu-memory are for --device, which is missing"
        )
    with console.progress_bar("testing", unit="steps") as progress:
        facts = examine(progress)
    if device is not None:
        models = list(dict.fromkeys(["demo", model or "demo"]))
        compare(facts, models, device, gpu_memory, precision)
    facts["passed"] = all(check["passed"] for check in facts["checks"])
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        _print(console.console(), facts)
    if not facts["passed"]:
        raise typer.Exit(1)
