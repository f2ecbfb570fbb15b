"""Write a gpt-oss model with random weights, at full size and in the exact form of the released
files, or the same weights as a GGUF file.

    python benchmarks/synthesize.py --preset gpt-oss-20b DIRECTORY
    python benchmarks/synthesize.py --preset gpt-oss-20b --layout gguf FILE.gguf

The model appears under its name only when it is complete.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

import gptoss
from gptoss import synthetic
from gptoss.write_gguf import DENSE_TYPES


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Write a gpt-oss model with random weights, in the Hugging Face layout or as a "
        "GGUF file that llama.cpp opens.",
        epilog="example: python benchmarks/synthesize.py --preset gpt-oss-20b /tmp/gpt-oss-20b",
    )
    parser.add_argument("output", type=Path, help="the directory to make, or the .gguf file")
    parser.add_argument("--layout", choices=("hf", "gguf"), default="hf")
    parser.add_argument(
        "--dense", choices=DENSE_TYPES, help="gguf: format of the dense matrices, by default q8_0"
    )
    parser.add_argument("--preset", choices=synthetic.PRESETS, default="mini")
    parser.add_argument("--layers", type=int, metavar="N", help="this many layers instead")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    arguments = parser.parse_args()
    output, seed = arguments.output, arguments.seed
    if arguments.layout == "hf" and arguments.dense is not None:
        parser.error("--dense goes with --layout gguf")
    if arguments.layout == "gguf" and output.suffix != ".gguf":
        parser.error("the name of a GGUF file ends in .gguf")
    try:
        preset = synthetic.find_preset(arguments.preset, arguments.layers)
    except gptoss.ArgumentError as error:
        parser.error(str(error))
    try:
        with tqdm(unit="B", unit_scale=True, desc=output.name) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            if arguments.layout == "gguf":
                dense = arguments.dense or "q8_0"
                total = synthetic.synthesize_gguf(preset, seed, output, dense, progress)
            else:
                total = synthetic.synthesize(preset, seed, output, progress)
    except (gptoss.Error, OSError) as error:
        print(f"synthesize: {error}", file=sys.stderr)
        return 1
    print(f"{output}: {total:,} bytes of tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
