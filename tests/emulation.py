"""A copy of the package whose AVX-512 and AMX kernels run on any x86-64 processor with AVX2.

    python tests/emulation.py DIRECTORY
    PYTHONPATH=DIRECTORY python -P -m pytest tests/test_bf16.py

tests/c/emulate_avx512.h stands in for the instructions: logic is tested, not the processor.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import build_plan  # noqa: E402

HEADER = ROOT / "tests" / "c" / "emulate_avx512.h"
PROCESSOR = ROOT / "tests" / "c" / "emulated_processor.c"
EMULATED = ("avx512", "avx512_bf16", "amx")
COMPILER = ["cc"]


def _emulated_unit(unit: build_plan.Unit) -> build_plan.Unit | None:
    """The unit as it is compiled for the emulation; None if it is compiled as ever."""
    for isa in EMULATED:
        if f"-DGPTOSS_ISA={isa}" in unit.flags:
            flags = (f"-DGPTOSS_ISA={isa}", *build_plan.AVX2_FLAGS)
            return build_plan.Unit(unit.source, unit.object_name, flags)
    return None


def build(directory: Path) -> None:
    """Fills directory with the package `gptoss`."""
    python = [f"-I{sysconfig.get_paths()['include']}", "-DPy_LIMITED_API=0x030B0000"]
    units = build_plan.engine_units()
    emulated = [unit for unit in map(_emulated_unit, units) if unit is not None]
    others = [unit for unit in units if _emulated_unit(unit) is None]
    objects = build_plan.compile_units(others, COMPILER)
    objects += build_plan.compile_units(build_plan.binding_units(), COMPILER, python)
    objects += build_plan.compile_units(
        [build_plan.Unit(PROCESSOR, f"{PROCESSOR.stem}.o")], COMPILER, ["-Wno-missing-prototypes"]
    )
    objects += build_plan.compile_units(
        emulated, COMPILER, ["-include", str(HEADER), "-Wno-psabi", "-ftree-vectorize"]
    )
    package = directory / "gptoss"
    shutil.copytree(
        ROOT / "gptoss",
        package,
        ignore=shutil.ignore_patterns("*.so", "__pycache__"),
        dirs_exist_ok=True,
    )
    wrapped = ("gptoss_cpu_features", "gptoss_amx_request")
    options = ["-shared", *(f"-Wl,--wrap={name}" for name in wrapped)]
    build_plan.link(COMPILER, objects, package / "_core.abi3.so", options)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
