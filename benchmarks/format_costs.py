"""What each type of `gptoss quantize` costs the demo model: the tables of docs/formats.md.

    python benchmarks/format_costs.py [--types TYPE ...] [--per-task N] [--processes N] \
        [--shared DIRECTORY]

The model answers the held-out questions of the shared data greedily (see demo_eval.py). Then each
quantised model reads question and answer, and the tokens of the answer are compared with what the
model itself predicts. Where it finds every one of them likeliest, its own answer is the same, bits
being the same for reading and writing; else it answers, too. Prints Markdown.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import demo_eval
import numpy as np
from tqdm import tqdm

import gptoss
from gptoss.conversion import PLANES_ALONE
from gptoss.perplexity import Statistics
from gptoss.quantization import FORMATS, bits
from gptoss.score import Score, Scorer

TYPES = sorted((*FORMATS[1:], *PLANES_ALONE), key=bits, reverse=True)  # all but F32
EXPERTS = "MXFP4"  # as the model comes
MAX_CONTEXT = 2048
KV_DTYPE = "f32"


@dataclass(frozen=True)
class Variant:
    """The demo model with its matrices in a type, the experts too if all_matrices."""

    type: str
    all_matrices: bool
    path: Path
    num_bytes: int  # of tensors


@dataclass(frozen=True)
class Question:
    """A question and the original's answer as ids, the first num_prompt of them the question's."""

    item: demo_eval.Item
    ids: list[int]
    num_prompt: int
    right: bool


@dataclass
class Cost:
    statistics: Statistics = field(default_factory=Statistics)
    num_right: int = 0


def write_variant(directory: Path, name: str, all_matrices: bool) -> Variant:
    """As they come experts take no more bits than any type; so they stay, but for a rule."""
    suffix = "" if name in PLANES_ALONE else ".gguf"
    path = directory / f"{name}{'-all' if all_matrices else ''}{suffix}"
    rules = [f"*_exps.weight={name}"] if all_matrices else []
    report = gptoss.quantize("demo", path, name, rules=rules)
    return Variant(name, all_matrices, path, report.output_bytes)


class Examiner:
    """Asks the original and, one after the other, the variants. A context manager."""

    def __init__(self, shared: Path) -> None:
        self.check = demo_eval.load_checker(shared)
        self.original = gptoss.Model("demo", threads=1)
        self._path: Path | None = None
        self._open = ExitStack()

    def ask(self, item: demo_eval.Item) -> Question:
        prompt = demo_eval.prompt_ids(self.original, item)
        answer = demo_eval.answer_ids(self.original, prompt, KV_DTYPE)
        return Question(item, prompt + answer, len(prompt), self._is_right(item, answer))

    def compare(self, path: Path, question: Question) -> tuple[Score, bool]:
        """The tokens of the answer, as the variant predicts them, and whether its own is right."""
        if path != self._path:
            self._open.close()
            self._model = self._open.enter_context(gptoss.Model(path, threads=1))
            self._scorer = self._open.enter_context(
                Scorer(self._model, self.original, MAX_CONTEXT, kv_dtype=KV_DTYPE)
            )
            self._path = path
        score = self._scorer.score(np.array(question.ids, np.int32), question.num_prompt)
        if (score.ranks == 0).all():
            return score, question.right
        prompt = question.ids[: question.num_prompt]
        answer = demo_eval.answer_ids(self._model, prompt, KV_DTYPE)
        return score, self._is_right(question.item, answer)

    def _is_right(self, item: demo_eval.Item, answer: list[int]) -> bool:
        assert self.original.tokenizer is not None
        return bool(self.check(item["check"], self.original.tokenizer.decode(answer)))

    def __enter__(self) -> Examiner:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        self.original.close()


_examiner: Examiner


def _start_process(shared: Path) -> None:
    global _examiner
    _examiner = Examiner(shared)


def _ask(item: demo_eval.Item) -> Question:
    return _examiner.ask(item)


def _compare(work: tuple[Path, Question]) -> tuple[Score, bool]:
    return _examiner.compare(*work)


def measure(
    shared: Path, variants: list[Variant], items: list[demo_eval.Item], processes: int
) -> tuple[list[Question], list[Cost]]:
    """The questions, and what each variant makes of them."""
    costs = [Cost() for _ in variants]
    context = multiprocessing.get_context("spawn")
    with (
        context.Pool(processes, _start_process, (shared,)) as pool,
        tqdm(total=len(items) * (1 + len(variants)), unit="item", smoothing=0.05) as bar,
    ):
        questions = []
        for question in pool.imap(_ask, items, chunksize=4):
            questions.append(question)
            bar.update()
        for variant, cost in zip(variants, costs, strict=True):
            bar.set_description(variant.path.stem)
            work = [(variant.path, question) for question in questions]
            for score, right in pool.imap(_compare, work, chunksize=4):
                cost.statistics.add(score)
                cost.num_right += right
                bar.update()
    return questions, costs


def _millionths(value: float) -> str:
    return f"{1e6 * value:.1f}" if value < 1e-5 else f"{1e6 * value:,.0f}"


def print_table(rows: list[tuple[Variant, Cost]], title: str, num_items: int) -> None:
    print(f"| {title} | tensors | KL, 1e-6 nats | same token | perplexity | right of {num_items} |")
    print("|---|---|---|---|---|---|")
    for variant, cost in rows:
        found = cost.statistics
        cells = (
            variant.type,
            f"{variant.num_bytes / 1e6:.2f} MB",
            f"{_millionths(found.kl.value)} ± {_millionths(found.kl.error)}",
            f"{100 * found.same_top.value:.2f} %",
            f"{found.difference.value:+z.4f}",
            str(cost.num_right),
        )
        print("|", " | ".join(cells), "|")
    print()


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Measure what each type of gptoss quantize costs the demo model.",
        epilog="example: python benchmarks/format_costs.py --types Q4_K MXFP4 --per-task 4",
    )
    parser.add_argument("--shared", type=Path, default=demo_eval.SHARED, help="the shared data")
    every = f"of {', '.join(TYPES)}; default: all"
    parser.add_argument(
        "--types", nargs="+", choices=TYPES, default=TYPES, metavar="TYPE", help=every
    )
    parser.add_argument("--per-task", type=int, metavar="N", help="only N questions of each task")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    arguments = parser.parse_args()
    try:
        tasks = demo_eval.load_items(arguments.shared, arguments.per_task)
    except FileNotFoundError as error:
        print(f"format_costs: {error}", file=sys.stderr)
        return 1
    items = [item for of_task in tasks.values() for item in of_task]
    with tempfile.TemporaryDirectory() as directory:
        variants = [
            write_variant(Path(directory), name, all_matrices)
            for name in arguments.types
            for all_matrices in (False, True)
            if not (all_matrices and name == EXPERTS)
        ]
        questions, costs = measure(arguments.shared, variants, items, arguments.processes)
    num_tokens = sum(len(question.ids) - question.num_prompt for question in questions)
    perplexity = costs[0].statistics.reference_perplexity.value
    right = sum(question.right for question in questions)
    print(f"As it comes: {right} of {len(items)} right, perplexity {perplexity:.4f},", end=" ")
    print(f"{num_tokens:,} tokens of answers.\n")
    rows = list(zip(variants, costs, strict=True))
    for title, wanted in ((f"matrices, experts {EXPERTS}", False), ("matrices, all", True)):
        chosen = [row for row in rows if row[0].all_matrices == wanted]
        if chosen:
            print_table(chosen, title, len(items))
    return 0


if __name__ == "__main__":
    sys.exit(main())
