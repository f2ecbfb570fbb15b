"""What quantising costs the demo model's answers stays within bounds, type by type.

A few of the held-out questions; benchmarks/format_costs.py measures many of them, for
docs/formats.md. The numbers are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import demo_eval
import format_costs
import pytest

TASKS = ("add", "facts", "unknown", "story")
# Of the KL divergence in millionths of a nat: twice what it is.
BOUNDS = {
    "F16": 0.01,
    "BF16": 0.01,
    "Q8_0": 9,
    "MXFP8_E4M3": 150,
    "MXFP8_E5M2": 640,
    "Q6_K": 42,
    "MXFP6_E2M3": 162,
    "MXFP6_E3M2": 640,
    "Q5_1": 410,
    "Q5_K": 165,
    "Q5_0": 480,
    "Q4_1": 1370,
    "Q4_K": 840,
    "Q4_0": 1910,
    "MXFP4": 3210,
}


@pytest.fixture(scope="module")
def examiner(shared: Path) -> Iterator[format_costs.Examiner]:
    with format_costs.Examiner(shared) as opened:
        yield opened


@pytest.fixture(scope="module")
def questions(shared: Path, examiner: format_costs.Examiner) -> list[format_costs.Question]:
    items = demo_eval.load_items(shared, 1)
    asked = [examiner.ask(items[task][0]) for task in TASKS]
    assert all(question.right for question in asked)
    return asked


@pytest.mark.oracle
@pytest.mark.parametrize("name", format_costs.TYPES)
def test_a_type_costs_no_more_than_its_bound(
    examiner: format_costs.Examiner,
    questions: list[format_costs.Question],
    tmp_path: Path,
    name: str,
) -> None:
    """Of all matrices in it, the experts' too."""
    variant = format_costs.write_variant(tmp_path, name, name != format_costs.EXPERTS)
    cost = format_costs.Cost()
    for question in questions:
        score, right = examiner.compare(variant.path, question)
        cost.statistics.add(score)
        cost.num_right += right
    assert 1e6 * cost.statistics.kl.value < BOUNDS[name]
    assert cost.statistics.same_top.value > 0.95
    assert cost.num_right == len(questions)


def test_an_answer_of_its_own_is_judged(
    examiner: format_costs.Examiner, questions: list[format_costs.Question], tmp_path: Path
) -> None:
    """A variant that would go on otherwise does not get the original's verdict."""
    question = questions[0]
    variant = format_costs.write_variant(tmp_path, "BF16", False)
    ids = [*question.ids[: question.num_prompt], *questions[1].ids[questions[1].num_prompt :]]
    other = format_costs.Question(question.item, ids, question.num_prompt, right=False)
    score, right = examiner.compare(variant.path, other)
    assert right and (score.ranks != 0).any()


def test_the_tables(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["format_costs", "--types", "Q8_0", "--processes", "1", "--shared"]
    monkeypatch.setattr("sys.argv", [*arguments, str(shared / "none")])
    assert format_costs.main() == 1
    assert "No such file" in capsys.readouterr().err

    items = demo_eval.load_items(shared, 1)
    monkeypatch.setattr(demo_eval, "load_items", lambda *_: {"add": items["add"]})
    monkeypatch.setattr("sys.argv", [*arguments, str(shared)])
    assert format_costs.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("As it comes: 1 of 1 right, perplexity 1.")
    rows = [line for line in lines if line.startswith("| Q8_0 | ")]
    assert len(rows) == 2 and all(row.endswith(" | 1 |") for row in rows)
    assert "9.18 MB" in rows[0] and "14.20 MB" in rows[1]
