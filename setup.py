"""Builds gptoss._core by the plan in scripts/build_plan.py. Everything else is in pyproject.toml.

Environment: CC, CFLAGS and LDFLAGS as usual; GPTOSS_SANITIZE=address,undefined (or thread) for an
instrumented build. Kernels stay as they are, for speed: tests/c/kernels_driver.c instruments them.
"""

import os
import shlex
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).resolve().parent / "scripts"))
import build_plan

# One extension for Python 3.11 and later; free-threaded builds have no limited API.
LIMITED_API = not sysconfig.get_config_var("Py_GIL_DISABLED")


class BuildCore(build_ext):
    """Compiles only what changed, several files at a time."""

    def build_extension(self, ext):
        compiler = shlex.split(os.environ.get("CC", "cc"))
        sanitizers = os.environ.get("GPTOSS_SANITIZE", "")
        flags = shlex.split(os.environ.get("CFLAGS", ""))
        python = [f"-I{path}" for path in self.include_dirs]
        if LIMITED_API:
            python.append("-DPy_LIMITED_API=0x030B0000")
        headers = ["cjson/cJSON.h", "vulkan/vulkan_core.h", "Python.h"]
        build_plan.require_headers(compiler, headers, [*flags, *python])
        jobs = self.parallel
        objects = build_plan.compile_engine(
            compiler, flags, sanitizers, plain_kernels=sanitizers != "", jobs=jobs
        )
        flags += build_plan.sanitizer_flags(sanitizers)
        units = build_plan.binding_units()
        objects += build_plan.compile_units(units, compiler, [*flags, *python], jobs)
        output = Path(self.get_ext_fullpath(ext.name))
        options = ["-shared", *flags, *shlex.split(os.environ.get("LDFLAGS", ""))]
        build_plan.link(compiler, objects, output, options)


setup(
    ext_modules=[Extension("gptoss._core", sources=[], py_limited_api=LIMITED_API)],
    cmdclass={"build_ext": BuildCore},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED_API else {},
)
