"""Prints csrc/vulkan/spirv/manifest.h: what each shader was compiled from and what came of it.

A test compares it with what this prints now.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

VULKAN = Path(__file__).resolve().parent.parent / "csrc" / "vulkan"
INCLUDED = ("*.glsl", "push_constants.h")


def manifest() -> str:
    """The text of the manifest of what is in the folders now."""
    shaders = VULKAN / "shaders"
    shared = b"".join(p.read_bytes() for i in INCLUDED for p in sorted(shaders.glob(i)))
    lines = ["/* Made by scripts/shaders: SHA-256 of source and includes, of SPIR-V. */"]
    for source in sorted(shaders.glob("*.comp")):
        binary = VULKAN / "spirv" / f"{source.stem}.spv"
        hashes = [
            hashlib.sha256(data).hexdigest()[:32]
            for data in (source.read_bytes() + shared, binary.read_bytes())
        ]
        lines.append(f"/* {source.stem}: {hashes[0]} {hashes[1]} */")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(manifest(), end="")
