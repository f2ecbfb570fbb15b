"""`gptoss doctor`: what this machine and this build have, and whether they compute right."""

import ctypes
import dataclasses
import json
import os
import platform
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import gptoss
from gptoss import _core
from gptoss.cli import console, options
from gptoss.self_test import OperationResult, self_test

EXAMPLES = ("gptoss doctor", "gptoss doctor --json")

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


def has_vulkan_loader() -> bool:
    try:
        ctypes.CDLL("libvulkan.so.1")
    except OSError:
        return False
    return True


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
        "vulkan_loader": has_vulkan_loader(),
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


def examine(progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Everything the report shows, as JSON types; `passed` says whether all checks did."""
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
    facts["passed"] = all(check.passed for check in checks)
    return facts


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
        (
            "Vulkan",
            ("loader present" if facts["vulkan_loader"] else "no loader (libvulkan.so.1)")
            + "; this build runs on the CPU",
        ),
    ):
        rows.add_row(label, value)
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
    for check in facts["checks"]:
        verdict = Text("ok    ", "green") if check["passed"] else Text("FAILED", "bold red")
        out.print(Text.assemble(verdict, f"  {check['name']}: {check['detail']}"), soft_wrap=True)


def run(as_json: options.Json = False) -> None:
    """Show what this machine and build have, and test every kernel and the demo model."""
    with console.progress_bar("testing", unit="steps") as progress:
        facts = examine(progress)
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        _print(console.console(), facts)
    if not facts["passed"]:
        raise typer.Exit(1)
