"""The documents: every Python block runs and prints what it shows, the notebook runs, links lead
somewhere."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"]
DOCUMENTS += sorted((REPOSITORY / "docs").glob("*.md"))
NOTEBOOK = REPOSITORY / "docs" / "tour.ipynb"


def python_blocks(document: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)


def compiled(tree: ast.Module | ast.Expression, name: str) -> CodeType:
    mode = "exec" if isinstance(tree, ast.Module) else "eval"
    return compile(tree, name, mode, dont_inherit=True)  # of this file's __future__ import


def run_block(code: str, names: dict[str, Any], file: str) -> str:
    """Runs a block; returns it with what each statement prints below the statement, as comments
    that begin a line. No other comment in a block begins a line."""
    lines = [line for line in code.splitlines() if not line.startswith("#")]
    result, done = [], 0
    for statement in ast.parse("\n".join(lines)).body:
        assert statement.end_lineno is not None
        result += lines[done : statement.end_lineno]
        done = statement.end_lineno
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compiled(ast.Module([statement], []), file), names)
        result += [f"# {line}".rstrip() for line in printed.getvalue().splitlines()]
    return "".join(f"{line}\n" for line in result)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_blocks_print_what_they_show(document: Path) -> None:
    """The blocks of a document are one program."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for code in python_blocks(document):
        assert run_block(code, names, document.name) == code


def test_documents_have_python_blocks() -> None:
    assert python_blocks(REPOSITORY / "README.md")
    assert len(python_blocks(REPOSITORY / "docs" / "python.md")) > 10


def notebook_cells(kind: str) -> list[dict[str, Any]]:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == kind]


def shown_text(cell: dict[str, Any]) -> str:
    """What a cell printed, and the text of its value if it is no picture."""
    text = ""
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            text += "".join(output["text"])
        elif output["output_type"] == "execute_result" and "image/png" not in output["data"]:
            text += "".join(output["data"]["text/plain"]) + "\n"
    return text


def test_the_notebook_prints_what_it_shows() -> None:
    pytest.importorskip("matplotlib")
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(notebook_cells("code"), 1):
        tree = ast.parse("".join(cell["source"]))
        printed, value = io.StringIO(), None
        with contextlib.redirect_stdout(printed):
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compiled(tree, f"cell {number}"), names)
            if isinstance(last, ast.Expr):
                value = eval(compiled(ast.Expression(last.value), f"cell {number}"), names)
            if value is not None and not hasattr(value, "_repr_png_"):
                print(repr(value))
        assert printed.getvalue() == shown_text(cell), f"cell {number}"
        assert hasattr(value, "_repr_png_") == any(
            "image/png" in output.get("data", {}) for output in cell["outputs"]
        )


def test_the_notebook_was_executed_in_order() -> None:
    counts = [cell["execution_count"] for cell in notebook_cells("code")]
    assert counts == list(range(1, len(counts) + 1))
    assert NOTEBOOK.stat().st_size < 1_000_000


@pytest.mark.parametrize("document", [*DOCUMENTS, NOTEBOOK], ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    if document == NOTEBOOK:
        text = "\n".join("".join(cell["source"]) for cell in notebook_cells("markdown"))
    for target in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", text):
        file, _, heading = target.partition("#")
        path = (document.parent / file).resolve() if file else document
        assert path.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in headings]
            assert heading in slugs, target
