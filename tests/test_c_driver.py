"""The engine without CPython: tests/c/engine_driver.c, which scripts/sanitize instruments."""

import subprocess
from pathlib import Path

import build_plan
import gguf_models
import numpy as np
import pytest
from models import Spec

pytestmark = pytest.mark.build

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("driver") / "engine_driver"
    build_plan.build_driver(ROOT / "tests" / "c" / "engine_driver.c", output)
    return output


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return gguf_models.write_model(path, Spec(), np.random.default_rng(0), "q8_0")


@pytest.mark.parametrize("mode", ["threads", "interrupt", "memory"])
def test_engine_driver(driver: Path, mode: str) -> None:
    run(driver, ROOT / "gptoss" / "demo", mode)


@pytest.mark.parametrize("mode", ["threads", "memory"])
def test_engine_driver_with_gguf(driver: Path, gguf: Path, mode: str) -> None:
    run(driver, gguf, mode)


def run(driver: Path, model: Path, mode: str) -> None:
    command = [driver, model, mode]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(f"{mode}: ok\n")
