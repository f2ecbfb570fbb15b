"""The engine without CPython: the programs in tests/c, which scripts/sanitize instruments."""

import secrets
import subprocess
from pathlib import Path

import build_plan
import dense_models
import gguf_models
import mx_models
import numpy as np
import pytest
from models import Spec, hf_config, random_tensors

from gptoss import _core

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


@pytest.mark.parametrize("mode", ["threads", "memory"])
def test_engine_driver_with_dense_families(driver: Path, tmp_path: Path, mode: str) -> None:
    rng = np.random.default_rng(0)
    llama = dense_models.Llama(rope={"rope_type": "linear", "factor": 2.0})
    run(driver, dense_models.write_gguf(tmp_path / "llama.gguf", llama, rng, "Q8_0"), mode)
    gpt2 = dense_models.Gpt2(max_positions=900)  # as many as the driver asks for
    run(driver, dense_models.write_hf(tmp_path / "gpt2", gpt2, rng, "F16"), mode)


@pytest.mark.parametrize("mode", ["threads", "memory"])
def test_engine_driver_with_planes(driver: Path, tmp_path: Path, mode: str) -> None:
    spec = Spec(dense_dtype="F32", expert_dtype="F32")
    tensors = random_tensors(spec, np.random.default_rng(0))
    names = [name for name, tensor in tensors.items() if mx_models.is_matrix(name, tensor)]
    formats = {name: mx_models.FORMATS[i % 5] for i, name in enumerate(names)}
    planes, _ = mx_models.split(tensors, formats)
    config = hf_config(spec) | {"quantization_config": mx_models.quantization(formats)}
    run(driver, mx_models.write(tmp_path / "planes", config, planes), mode)


def run(driver: Path, model: Path, mode: str) -> None:
    command = [driver, model, mode]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(f"{mode}: ok\n")


def test_kernels_driver(tmp_path: Path) -> None:
    """Every kernel of this machine; tests/test_neon.py runs the same program for aarch64."""
    output, seed = tmp_path / "kernels_driver", str(secrets.randbelow(2**32))
    build_plan.build_driver(ROOT / "tests" / "c" / "kernels_driver.c", output, kernels_only=True)
    isas = [name for name, available in _core.isas() if available and name != "scalar"]
    if not isas:
        pytest.skip("needs a second instruction set")
    print(f"seed {seed}")
    result = subprocess.run([output, seed, *isas], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    tested = {line.split()[0] for line in result.stdout.splitlines() if "cases" in line}
    assert tested == set(isas)
    assert result.stdout.endswith("kernels: ok\n")
