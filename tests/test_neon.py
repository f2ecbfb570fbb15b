"""The aarch64 kernels without an aarch64 machine: tests/c/kernels_driver.c under an emulator.

Needs a cross compiler and qemu's user mode (Debian, Ubuntu: gcc-aarch64-linux-gnu, which brings
libc6-dev-arm64-cross, and qemu-user)."""

import platform
import secrets
import shutil
import subprocess
from pathlib import Path

import build_plan
import pytest

pytestmark = pytest.mark.build

DRIVER = Path(__file__).resolve().parent / "c" / "kernels_driver.c"
COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
PACKAGES = {COMPILER: "gcc-aarch64-linux-gnu", EMULATOR: "qemu-user"}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What runs the driver, but for its arguments."""
    output = tmp_path_factory.mktemp("neon") / "kernels_driver"
    if platform.machine() == "aarch64":
        build_plan.build_driver(DRIVER, output, kernels_only=True)
        return [str(output)]
    for tool, package in PACKAGES.items():
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} (package {package})")
    build_plan.build_driver(
        DRIVER, output, compiler=[COMPILER], machine="aarch64", kernels_only=True
    )
    return [EMULATOR, "-L", "/usr/aarch64-linux-gnu", str(output)]


def test_neon_kernels_are_the_scalar_ones(command: list[str]) -> None:
    seed = secrets.randbelow(2**32)
    print(f"seed {seed}")
    result = subprocess.run(
        [*command, str(seed), "neon"], capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    tested = [line.partition(":")[0] for line in result.stdout.splitlines() if "cases" in line]
    assert len(tested) == len(set(tested)) == 61
    assert all(name.startswith("neon ") for name in tested)
    assert result.stdout.endswith("kernels: ok\n")


def test_absent_instruction_set_is_an_error(command: list[str]) -> None:
    result = subprocess.run([*command, "1", "avx2"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and "avx2" in result.stderr
