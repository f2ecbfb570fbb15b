"""Fails if a C or Python file has 800 lines or more, or a function 60 or more."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_FILE_LINES = 800
MAX_FUNCTION_LINES = 60
FOLDERS = ("csrc", "gptoss", "tests", "benchmarks", "scripts")


def python_functions(text: str) -> Iterator[tuple[int, int]]:
    """First and last line of each function."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.end_lineno or node.lineno


def c_functions(text: str) -> Iterator[tuple[int, int]]:
    """First and last line of each function of formatted C: unindented declaration to lone brace."""
    first = 1
    for number, line in enumerate(text.splitlines(), 1):
        if line == "}":
            yield first, number
        elif re.match(r"[A-Za-z_](?!\w*:$)", line):
            first = number


def main() -> None:
    problems = []
    files = [path for folder in FOLDERS for path in Path(folder).rglob("*.*")]
    for path in sorted(path for path in files if path.suffix in (".c", ".h", ".py", ".pyi")):
        text = path.read_text()
        if (lines := text.count("\n")) >= MAX_FILE_LINES:
            problems.append(f"{path}: {lines} lines")
        functions = c_functions if path.suffix in (".c", ".h") else python_functions
        for first, last in functions(text):
            if (lines := last - first + 1) >= MAX_FUNCTION_LINES:
                problems.append(f"{path}:{first}: a function of {lines} lines")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
