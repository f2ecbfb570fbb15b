"""The engine without CPython: tests/c/engine_driver.c, which scripts/sanitize instruments."""

import subprocess
from pathlib import Path

import build_plan
import pytest

pytestmark = pytest.mark.build

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("driver") / "engine_driver"
    build_plan.build_driver(ROOT / "tests" / "c" / "engine_driver.c", output)
    return output


@pytest.mark.parametrize("mode", ["threads", "interrupt", "memory"])
def test_engine_driver(driver: Path, mode: str) -> None:
    command = [driver, ROOT / "gptoss" / "demo", mode]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(f"{mode}: ok\n")
