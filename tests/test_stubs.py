"""The stub of the extension says what the extension is; everything public is documented."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import gptoss


@pytest.mark.build
def test_stub_matches_the_extension(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    # The buffer protocol has this name in Python from 3.12 on; before, only C sees it.
    allowed.write_text("" if sys.version_info >= (3, 12) else "gptoss._core.ArrayView.__buffer__\n")
    command = [sys.executable, "-m", "mypy.stubtest", "gptoss._core", "--concise"]
    command += ["--allowlist", str(allowed)]
    root = Path(gptoss.__file__).parent.parent
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", gptoss.__all__)
def test_public_names_are_documented(name: str) -> None:
    value = getattr(gptoss, name)
    assert inspect.getdoc(value)
    for attribute, member in vars(value).items():
        if not attribute.startswith("_") and inspect.isfunction(member):
            assert inspect.getdoc(member), f"{name}.{attribute}"
