"""The SPIR-V that is shipped was compiled from the sources beside it; needs no device."""

from __future__ import annotations

import struct

import shader_manifest
from conftest import REPOSITORY

VULKAN = REPOSITORY / "csrc" / "vulkan"


def test_spirv_belongs_to_its_sources() -> None:
    shipped = (VULKAN / "spirv" / "manifest.h").read_text()
    assert shipped == shader_manifest.manifest(), "run `sh scripts/shaders` and commit the result"


def test_every_shader_is_compiled_listed_and_alone() -> None:
    sources = {path.stem for path in (VULKAN / "shaders").glob("*.comp")}
    assert sources and {path.stem for path in (VULKAN / "spirv").glob("*.spv")} == sources
    header = (VULKAN / "shaders.h").read_text()
    listed = header.partition("GPTOSS_FOR_SHADERS(X)")[2].partition("\n\n")[0]
    assert {part.partition(")")[0] for part in listed.split("X(")[1:]} == sources


def test_spirv_is_of_vulkan_1_2() -> None:
    for path in (VULKAN / "spirv").glob("*.spv"):
        code = path.read_bytes()
        magic, version = struct.unpack_from("<II", code)
        assert len(code) % 4 == 0 and magic == 0x07230203, path
        assert version <= 0x00010500, path
