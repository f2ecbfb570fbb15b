"""The demo model answers its held-out questions as it did when it was trained, prompt to verdict.

A fixed fraction of the 4800 questions, eight of each task from all over the file;
benchmarks/demo_eval.py runs them all.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import demo_eval
import pytest

TASKS = [
    "add",
    "sub",
    "mul",
    "div",
    "compare",
    "sort",
    "sequence",
    "letters",
    "calendar",
    "today",
    "units",
    "facts",
    "define",
    "logic",
    "story",
    "reading",
    "memory",
    "needle",
    "format",
    "list",
    "followup",
    "tool",
    "about",
    "unknown",
]
PER_TASK = 8


@pytest.fixture(scope="module")
def judge(shared: Path) -> demo_eval.Judge:
    return demo_eval.Judge(shared, "f32", threads=1)


@cache
def load_items(shared: Path) -> dict[str, list[demo_eval.Item]]:
    return demo_eval.load_items(shared, PER_TASK)


@pytest.mark.oracle
@pytest.mark.parametrize("task", TASKS)
def test_answers_as_recorded(shared: Path, judge: demo_eval.Judge, task: str) -> None:
    """One question of a task may come out otherwise, where two tokens are a near tie."""
    recorded = demo_eval.load_recorded(shared)[task]
    items = load_items(shared)[task]
    assert len(items) == PER_TASK
    changed = [item["id"] for item in items if judge(item) != recorded[item["index"]]]
    assert len(changed) <= 1, f"items {changed} come out otherwise"


def test_every_task_is_covered(shared: Path) -> None:
    assert sorted(load_items(shared)) == sorted(TASKS)
