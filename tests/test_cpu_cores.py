"""How many threads a model takes by default, by what a machine's sysfs tells."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gptoss import _core


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def count(root: Path, cpus: list[int]) -> int:
    usable = bytearray(64)
    for cpu in cpus:
        usable[cpu] = 1
    return _core.count_cores(str(root), usable)


def write_siblings(root: Path, siblings: dict[int, str]) -> None:
    for cpu, text in siblings.items():
        write(root, f"system/cpu/cpu{cpu}/topology/thread_siblings_list", text)


def test_nothing_told(tmp_path: Path) -> None:
    assert count(tmp_path, [0, 3, 7]) == 3


def test_siblings_count_once(tmp_path: Path) -> None:
    write_siblings(tmp_path, {cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)})
    assert count(tmp_path, list(range(8))) == 4
    assert count(tmp_path, [0, 4]) == 1  # affinity to one core
    assert count(tmp_path, [5, 6]) == 2  # second threads alone
    write_siblings(tmp_path, {cpu: f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}" for cpu in range(8)})
    assert count(tmp_path, list(range(8))) == 4


def test_intel_hybrid(tmp_path: Path) -> None:
    """Two fast cores of two threads, four slow ones."""
    write_siblings(tmp_path, {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"})
    write_siblings(tmp_path, {cpu: str(cpu) for cpu in range(4, 8)})
    write(tmp_path, "cpu_core/cpus", "0-3")
    write(tmp_path, "cpu_atom/cpus", "4-7")
    assert count(tmp_path, list(range(8))) == 2
    assert count(tmp_path, [3, 5]) == 1
    assert count(tmp_path, [4, 5, 6]) == 3  # only slow ones may be used


def test_capacities(tmp_path: Path) -> None:
    """A phone: one prime, three big, four little cores."""
    for cpu, capacity in enumerate([1024, 870, 870, 870, 280, 280, 280, 280]):
        write(tmp_path, f"system/cpu/cpu{cpu}/cpu_capacity", str(capacity))
    assert count(tmp_path, list(range(8))) == 4
    assert count(tmp_path, [4, 5]) == 2


@pytest.mark.parametrize("text", ["", "x", "-1", "99999999999999999999", "7-", "3,", "2000"])
def test_malformed_sysfs(tmp_path: Path, text: str) -> None:
    write_siblings(tmp_path, {0: text, 1: text})
    write(tmp_path, "cpu_core/cpus", text)
    write(tmp_path, "system/cpu/cpu1/cpu_capacity", text)
    assert 1 <= count(tmp_path, [0, 1]) <= 2


def test_this_machine() -> None:
    assert 1 <= _core.usable_cores() <= _core.usable_cpus() <= (os.cpu_count() or 1)
