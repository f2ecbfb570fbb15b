"""Which C files are compiled, how often and with which flags, for setup.py, tests and sanitizers.

File names decide. Under csrc:
    *_avx2.c, *_avx512.c, ...       one instruction set, with its flags, only on its architecture
    cpu/*_scalar.c                  "scalar", and on x86-64 also "scalar_fma" (hardware FMA)
    cpu/*_elementwise.c             once for every instruction set of the architecture,
    cpu/kernels_table.c             likewise
    python/*.c                      the CPython binding
    everything else                 once, with baseline flags
Files compiled for an instruction set see its name as the macro GPTOSS_ISA.

As a program it builds a C driver with the engine linked in, or with the kernels alone, which need
no cJSON:
    python scripts/build_plan.py DRIVER.c OUTPUT [--kernels] [--sanitize address,undefined]
        [--plain-kernels] [--compiler CC] [--machine aarch64]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

COMMON_FLAGS = [
    *("-std=c11", "-D_GNU_SOURCE", "-O3", "-fPIC", "-pthread", "-fvisibility=hidden"),
    # The order and the rounding of every operation are part of the contract (docs/numerics.md).
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
    *("-Wall", "-Wextra", "-Wshadow", "-Wstrict-prototypes", "-Wmissing-prototypes"),
]
LIBRARIES = ["-lcjson", "-lm", "-lpthread", "-ldl"]
# What the kernels need of the engine besides the files that are compiled for an instruction set.
KERNEL_SOURCES = ("kernels_select.c", "cpu_features.c", "dtype.c")

AVX2_FLAGS = ("-mavx2", "-mfma", "-mf16c")
AVX512_FLAGS = (
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"),
    *AVX2_FLAGS,
)
# Instruction sets by architecture, worst first. Other architectures have "scalar" alone.
ISA_FLAGS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "scalar": (),
        "scalar_fma": ("-mfma",),
        "avx2": AVX2_FLAGS,
        "avx512": AVX512_FLAGS,
    },
    # gcc's first scheduling pass hoists loads until the sums of a panel product no longer fit in
    # the 32 registers.
    "aarch64": {"scalar": (), "neon": ("-fno-schedule-insns",)},
}
# Instruction sets that multiply at precision bf16 and have no kernels for anything else.
BF16_FLAGS = (*AVX512_FLAGS, "-mavx512bf16")
BF16_ISA_FLAGS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {"avx512_bf16": BF16_FLAGS, "amx": (*BF16_FLAGS, "-mamx-tile", "-mamx-bf16")}
}
ALL_ISAS = ("avx2", "avx512", "avx512_bf16", "amx", "neon")  # those that a file name can end in

PACKAGES = {
    "cjson/cJSON.h": "libcjson-dev (Debian, Ubuntu), cjson-devel (Fedora), cjson (Arch, Homebrew)",
    "vulkan/vulkan_core.h": "libvulkan-dev (Debian, Ubuntu), vulkan-headers (others)",
    "Python.h": "python3-dev (Debian, Ubuntu), python3-devel (Fedora)",
}


@dataclass(frozen=True)
class Unit:
    """One compilation: a source, the object file's name and what the plan adds to COMMON_FLAGS."""

    source: Path
    object_name: str
    flags: tuple[str, ...] = ()


def isa_flags(machine: str) -> dict[str, tuple[str, ...]]:
    """The compiler flags of each instruction set of an architecture."""
    return ISA_FLAGS.get(machine, {"scalar": ()})


def _isas_of(source: Path, machine: str) -> list[str] | None:
    """The instruction sets a file is compiled for, or None for a file that is compiled once."""
    isas = list(isa_flags(machine))
    ending = source.stem.rpartition("_")[2]
    for isa in ALL_ISAS:
        if source.stem.endswith("_" + isa):
            return [isa] if isa in isas or isa in BF16_ISA_FLAGS.get(machine, {}) else []
    if "cpu" not in source.parts:
        return None
    if ending == "scalar":
        return [isa for isa in isas if isa.startswith("scalar")]
    if ending == "elementwise" or source.name == "kernels_table.c":
        return isas
    return None


def _plan(sources: Sequence[Path], machine: str) -> list[Unit]:
    units = []
    all_flags = isa_flags(machine) | BF16_ISA_FLAGS.get(machine, {})
    for source in sources:
        name = "-".join(source.relative_to(ROOT / "csrc").with_suffix("").parts)
        isas = _isas_of(source.relative_to(ROOT), machine)
        if isas is None:
            units.append(Unit(source, f"{name}.o"))
        for isa in isas or ():
            flags = (f"-DGPTOSS_ISA={isa}", *all_flags[isa])
            units.append(Unit(source, f"{name}.{isa}.o", flags))
    return units


def engine_units(machine: str | None = None) -> list[Unit]:
    """The engine: all of csrc but the binding."""
    sources = sorted((ROOT / "csrc").rglob("*.c"))
    binding = ROOT / "csrc" / "python"
    return _plan([s for s in sources if binding not in s.parents], machine or platform.machine())


def kernel_units(machine: str | None = None) -> list[Unit]:
    """The kernels of every instruction set, those of bf16 apart, and what they need, which links
    without libraries."""
    bf16 = {f"-DGPTOSS_ISA={isa}" for isas in BF16_ISA_FLAGS.values() for isa in isas}
    return [
        unit
        for unit in engine_units(machine)
        if (unit.flags and not bf16.intersection(unit.flags)) or unit.source.name in KERNEL_SOURCES
    ]


def binding_units(machine: str | None = None) -> list[Unit]:
    """The CPython binding."""
    sources = sorted((ROOT / "csrc" / "python").rglob("*.c"))
    return _plan(sources, machine or platform.machine())


def sanitizer_flags(sanitizers: str) -> list[str]:
    """Flags to compile and link with for a list such as "address,undefined"; none for ""."""
    if not sanitizers:
        return []
    options = ["-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O2"]
    return [f"-fsanitize={sanitizers}", *options]


def require_headers(compiler: Sequence[str], headers: Sequence[str], flags: Sequence[str]) -> None:
    """Leaves with one line naming the packages if the compiler or a header is missing."""
    for header in headers:
        command = [*compiler, *flags, "-E", "-x", "c", "-"]
        try:
            found = subprocess.run(
                command, input=f"#include <{header}>\n", capture_output=True, text=True
            )
        except FileNotFoundError:
            raise SystemExit(
                f"error: no C compiler {compiler[0]!r}: install gcc or clang, or set CC"
            ) from None
        if found.returncode != 0:
            raise SystemExit(f"error: <{header}> not found: install {PACKAGES[header]}")


def _is_current(target: Path, dependencies: Path) -> bool:
    """Whether an object is newer than this plan and everything its dependency file lists."""
    try:
        built = target.stat().st_mtime_ns
        listed = dependencies.read_text().partition(":")[2].replace("\\\n", " ")
        inputs = [__file__, *shlex.split(listed)]
        return all(Path(name).stat().st_mtime_ns <= built for name in inputs)
    except FileNotFoundError:
        return False


def _compile(unit: Unit, command: Sequence[str], directory: Path) -> Path:
    target = directory / unit.object_name
    dependencies = target.with_suffix(".d")
    if _is_current(target, dependencies):
        return target
    # A name of its own until it is complete: builds in one tree may overlap.
    scratch = target.with_suffix(f".{os.getpid()}.o")
    outputs = ["-MMD", "-MF", str(dependencies), "-o", str(scratch)]
    print(" ".join(["cc", unit.object_name, *unit.flags]) + "\n", end="", flush=True)
    full = [*command, *unit.flags, *outputs, "-c", str(unit.source)]
    result = subprocess.run(full, stderr=subprocess.PIPE, text=True)
    sys.stderr.write(result.stderr)
    if result.returncode != 0:
        raise SystemExit(f"error: {unit.source.name} does not compile")
    scratch.replace(target)
    return target


def compile_units(
    units: Sequence[Unit],
    compiler: Sequence[str],
    flags: Sequence[str] = (),
    jobs: int | None = None,
) -> list[str]:
    """Compiles what is out of date under build/objects and returns the objects' paths.

    Args:
        flags: after COMMON_FLAGS, before the unit's own. Each set of flags has its own directory.
        jobs: compilations at once; None for one a processor.
    """
    command = [*compiler, *COMMON_FLAGS, f"-I{ROOT / 'csrc'}", *flags]
    key = hashlib.sha256("\0".join(command).encode()).hexdigest()[:12]
    directory = ROOT / "build" / "objects" / key
    directory.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs or len(os.sched_getaffinity(0))) as pool:
        return [
            str(path) for path in pool.map(lambda unit: _compile(unit, command, directory), units)
        ]


def compile_engine(
    compiler: Sequence[str],
    flags: Sequence[str] = (),
    sanitizers: str = "",
    plain_kernels: bool = False,
    machine: str | None = None,
    jobs: int | None = None,
) -> list[str]:
    """The engine's objects.

    Args:
        plain_kernels: kernels without the sanitizers, for speed; tests/c/kernels_driver.c
            instruments them.
    """
    plain = [unit for unit in kernel_units(machine) if unit.flags] if plain_kernels else []
    others = [unit for unit in engine_units(machine) if unit not in plain]
    objects = compile_units(others, compiler, [*flags, *sanitizer_flags(sanitizers)], jobs)
    return objects + compile_units(plain, compiler, flags, jobs)


def link(
    compiler: Sequence[str],
    objects: Sequence[str],
    output: Path,
    flags: Sequence[str] = (),
    libraries: Sequence[str] = LIBRARIES,
) -> None:
    """Links. The output gets its name when it is complete: programs running the old one keep it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = output.with_name(f"{output.name}.{os.getpid()}")
    result = subprocess.run([*compiler, *objects, *flags, *libraries, "-o", str(scratch)])
    if result.returncode != 0:
        raise SystemExit(f"error: {output.name} does not link")
    scratch.replace(output)


def build_driver(
    driver: Path,
    output: Path,
    sanitizers: str = "",
    compiler: Sequence[str] = ("cc",),
    machine: str | None = None,
    kernels_only: bool = False,
    plain_kernels: bool = False,
) -> None:
    """Builds one C program with the engine's objects, or the kernels' alone, linked in.

    Args:
        plain_kernels: see compile_engine.
        machine: what the compiler compiles for, as platform.machine() calls it; None for this one.
    """
    extra = sanitizer_flags(sanitizers)
    if not kernels_only:
        require_headers(compiler, ["cjson/cJSON.h", "vulkan/vulkan_core.h"], extra)
    driver = driver.resolve()
    if kernels_only:
        objects = compile_units(kernel_units(machine), compiler, extra)
    else:
        objects = compile_engine(compiler, (), sanitizers, plain_kernels, machine)
    objects += compile_units([Unit(driver, f"{driver.stem}.o")], compiler, extra)
    # libFuzzer is C++, whose library the machine that runs it may lack.
    static = ["-static-libstdc++", "-static-libgcc"] if "fuzzer" in sanitizers else []
    link(compiler, objects, output, [*extra, *static], ["-lm"] if kernels_only else LIBRARIES)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build a C program with the engine linked in.")
    parser.add_argument("driver", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--kernels", action="store_true", help="link the kernels alone")
    parser.add_argument("--sanitize", default="", help="address,undefined or thread")
    parser.add_argument(
        "--plain-kernels", action="store_true", help="do not sanitize the kernels, for speed"
    )
    parser.add_argument("--compiler", default=os.environ.get("CC", "cc"))
    parser.add_argument("--machine", help="what the compiler compiles for, such as aarch64")
    arguments = parser.parse_args()
    build_driver(
        arguments.driver,
        arguments.output,
        arguments.sanitize,
        shlex.split(arguments.compiler),
        arguments.machine,
        arguments.kernels,
        arguments.plain_kernels,
    )


if __name__ == "__main__":
    main()
