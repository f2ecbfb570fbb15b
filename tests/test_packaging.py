"""What a build makes of the tree: the sdist, the wheel, other architectures, one-line errors."""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import build_plan
import pytest

import gptoss

ROOT = Path(__file__).resolve().parent.parent
GIL_DISABLED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


def run(
    command: list[str | Path], cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | environment
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )


def test_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert gptoss.__version__ == project["version"] == version("gptoss-engine")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "riscv64"])
def test_plan_names_every_object_once(machine: str) -> None:
    units = [*build_plan.engine_units(machine), *build_plan.binding_units(machine)]
    names = [unit.object_name for unit in units]
    assert len(names) == len(set(names))
    isas = {flag.removeprefix("-DGPTOSS_ISA=") for unit in units for flag in unit.flags[:1]}
    bf16_isas = build_plan.BF16_ISA_FLAGS.get(machine, {})
    assert isas == {*build_plan.isa_flags(machine), *bf16_isas}


@pytest.mark.build
def test_missing_header_is_one_line() -> None:
    """The compiler is told to look nowhere, as on a machine without cJSON."""
    command = [sys.executable, "-W", "ignore", "setup.py", "-q", "build_ext"]
    result = run(command, CFLAGS="-nostdinc")
    assert result.returncode != 0
    assert result.stderr.count("\n") == 1 and "libcjson-dev" in result.stderr


@pytest.mark.build
@pytest.mark.parametrize(
    ("machine", "compiler"), [("x86_64", "gcc"), ("aarch64", "aarch64-linux-gnu-gcc")]
)
def test_compiles_whole_and_without_warnings(machine: str, compiler: str, tmp_path: Path) -> None:
    if machine == platform.machine():
        compiler = "gcc"
    elif shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler} (package {compiler.replace('-gcc', '')})")
    # cJSON's header serves every architecture; this directory holds no other.
    (tmp_path / "cjson").symlink_to("/usr/include/cjson")
    units = build_plan.engine_units(machine)
    objects = build_plan.compile_units(units, [compiler], ["-Werror", f"-I{tmp_path}"])
    symbols = run([compiler.replace("gcc", "nm"), *objects]).stdout.split()
    defined = {name for kind, name in pairwise(symbols) if kind in "TRDB"}
    undefined = {name for kind, name in pairwise(symbols) if kind == "U"}
    assert {name for name in undefined if name.startswith("gptoss_")} <= defined


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of a copy of the tree, unpacked."""
    directory = tmp_path_factory.mktemp("sdist")
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "__pycache__")
    shutil.copytree(ROOT, directory / "tree", ignore=ignored)
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", directory]
    result = run([*command, directory / "tree"])
    assert result.returncode == 0, result.stderr
    (archive,) = directory.glob("gptoss_engine-*.tar.gz")
    assert run(["tar", "-xf", archive], cwd=directory).returncode == 0
    return directory / archive.name.removesuffix(".tar.gz")


@pytest.mark.build
def test_sdist_builds_a_wheel_that_answers(sdist: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w"]
    result = run([*command, tmp_path, sdist])
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert GIL_DISABLED or "-cp311-abi3-linux_" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    site = tmp_path / "site"
    assert {"gptoss", f"gptoss_engine-{gptoss.__version__}.dist-info"} == set(os.listdir(site))
    assert (site / "gptoss" / "py.typed").is_file() and (site / "gptoss" / "_core.pyi").is_file()
    code = (
        "import gptoss; model = gptoss.Model('demo'); print(gptoss.__file__);"
        "print(gptoss.Generator(model).prefill([1, 2, 3]).shape)"
    )
    result = run([sys.executable, "-c", code], cwd=tmp_path, PYTHONPATH=str(site))
    assert result.stdout.splitlines() == [f"{site}/gptoss/__init__.py", "(4096,)"], result.stderr
