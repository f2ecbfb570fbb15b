"""Score the demo model on its 4800 held-out questions and compare with the recorded score.

    python benchmarks/demo_eval.py [--shared DIRECTORY] [--processes N] [--per-task N] \
        [--kv f32|f16]

Questions, recorded results and the judgement of an answer are those of the shared data:
demo-model/eval_items.jsonl, demo-model/eval.json, tools/check_item.py. Answers are greedy. The exit
status is 1 where a task is more than one question off its record.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import sys
import zlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

import gptoss
from gptoss.harmony import Harmony
from gptoss.tools import Tool

MAX_TOKENS = 300
SHARED = Path(__file__).resolve().parent.parent.parent / "shared"

Item = dict[str, Any]
Checker = Callable[[Any, str], bool]


def load_items(shared: Path, per_task: int | None = None) -> dict[str, list[Item]]:
    """Task -> its questions, or per_task of them from all over; "index" is the place in it."""
    tasks: dict[str, list[Item]] = defaultdict(list)
    for line in (shared / "demo-model/eval_items.jsonl").read_text().splitlines():
        item = json.loads(line)
        tasks[item["task"]].append(item | {"index": len(tasks[item["task"]])})
    if per_task is None:
        return tasks
    return {
        task: [items[(2 * i + 1) * len(items) // (2 * per_task)] for i in range(per_task)]
        for task, items in tasks.items()
    }


def load_recorded(shared: Path) -> dict[str, list[bool]]:
    """Task -> whether each of its questions was answered rightly by the recorded run."""
    passed = json.loads((shared / "demo-model/eval.json").read_text())["passed"]["after_mxfp4"]
    return {task: [bit == "1" for bit in bits] for task, bits in passed.items()}


def load_checker(shared: Path) -> Checker:
    spec = importlib.util.spec_from_file_location("check_item", shared / "tools/check_item.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    checker: Checker = module.check
    return checker


def prompt_ids(model: gptoss.Model, item: Item) -> list[int]:
    """The question in Harmony. ValueError if it is not the recorded prompt."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    messages = list(item["messages"])
    if item.get("developer"):
        messages.insert(0, {"role": "developer", "content": item["developer"]})
    tools = [Tool.of(tool) for tool in item.get("tools") or ()]
    harmony = replace(Harmony.of_template(tokenizer.chat_template), date=item["date"])
    text = harmony.render(messages, tools=tools)
    ids = harmony.encode(tokenizer, messages, tools=tools)
    if (zlib.crc32(text.encode()), len(ids)) != (item["prompt_crc32"], item["prompt_tokens"]):
        raise ValueError(f"item {item['id']} is rendered differently: {text!r}")
    return ids


def answer_ids(model: gptoss.Model, ids: list[int], kv_dtype: str) -> list[int]:
    """What the model writes after a prompt, the token that ends it included."""
    generator = gptoss.Generator(model, max_context=len(ids) + MAX_TOKENS, kv_dtype=kv_dtype)
    greedy = gptoss.Sampling(temperature=0)
    outputs = generator.generate(ids, max_tokens=MAX_TOKENS, sampling=greedy)
    return [output.token for output in outputs if output.token is not None]


def answer(model: gptoss.Model, item: Item, kv_dtype: str) -> str:
    """What the model writes after <|start|>assistant, special tokens included."""
    ids = answer_ids(model, prompt_ids(model, item), kv_dtype)
    assert model.tokenizer is not None
    return model.tokenizer.decode(ids)


class Judge:
    """Answers and judges one question after the other; made once in every process."""

    def __init__(self, shared: Path, kv_dtype: str, threads: int, **options: Any) -> None:
        """options: of gptoss.Model."""
        self.model = gptoss.Model("demo", threads=threads, **options)
        self.check = load_checker(shared)
        self.kv_dtype = kv_dtype

    def __call__(self, item: Item) -> bool:
        return bool(self.check(item["check"], answer(self.model, item, self.kv_dtype)))


_judge: Judge


def _start_process(shared: Path, kv_dtype: str, device: str) -> None:
    global _judge
    _judge = Judge(shared, kv_dtype, threads=1, device=device)


def _judge_item(item: Item) -> tuple[str, int, bool]:
    return item["task"], item["index"], _judge(item)


def evaluate(
    shared: Path, tasks: dict[str, list[Item]], processes: int, kv_dtype: str, device: str
) -> dict[str, dict[int, bool]]:
    """Task -> index of the question -> whether it was answered rightly."""
    passed: dict[str, dict[int, bool]] = {task: {} for task in tasks}
    items = [item for items in tasks.values() for item in items]
    items.sort(
        key=lambda item: -int(item["prompt_tokens"])
    )  # long ones first: the processes end together
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, _start_process, (shared, kv_dtype, device)) as pool:
        results = pool.imap_unordered(_judge_item, items, chunksize=4)
        for task, index, right in tqdm(results, total=len(items), unit="item"):
            passed[task][index] = right
    return passed


def report(passed: dict[str, dict[int, bool]], recorded: dict[str, list[bool]]) -> bool:
    """Prints a table; returns whether every task is within one question of its record."""
    print(f"{'task':<10} {'items':>5} {'right':>5} {'recorded':>8}  questions that differ")
    right_total = recorded_total = 0
    close = True
    for task, results in passed.items():
        before = [recorded[task][index] for index in results]
        right, was = sum(results.values()), sum(before)
        differ = [index for index, bit in results.items() if bit != recorded[task][index]]
        close &= abs(right - was) <= 1
        right_total, recorded_total = right_total + right, recorded_total + was
        print(f"{task:<10} {len(results):>5} {right:>5} {was:>8}  {sorted(differ) or ''}")
    total = sum(map(len, passed.values()))
    print(f"{'all':<10} {total:>5} {right_total:>5} {recorded_total:>8}  {right_total / total:.4f}")
    return close


def main() -> int:
    parser = argparse.ArgumentParser(description="Score the demo model on its held-out questions.")
    parser.add_argument("--shared", type=Path, default=SHARED, help="the shared data")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    parser.add_argument("--per-task", type=int, metavar="N", help="only N questions of each task")
    parser.add_argument("--kv", choices=["f32", "f16"], default="f32", help="type of the KV cache")
    parser.add_argument("--device", default="cpu", help="cpu or a Vulkan device; default: cpu")
    arguments = parser.parse_args()
    try:
        tasks = load_items(arguments.shared, arguments.per_task)
        recorded = load_recorded(arguments.shared)
    except FileNotFoundError as error:
        print(f"demo_eval: {error}", file=sys.stderr)
        return 1
    passed = evaluate(arguments.shared, tasks, arguments.processes, arguments.kv, arguments.device)
    return 0 if report(passed, recorded) else 1


if __name__ == "__main__":
    sys.exit(main())
