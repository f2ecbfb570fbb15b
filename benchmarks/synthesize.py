"""Write a gpt-oss model with random weights, at full size and in the exact form of the released
files.

    python benchmarks/synthesize.py --preset gpt-oss-20b DIRECTORY

The directory appears under its name only when it is complete.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

import gptoss
from gptoss import synthetic


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Write a gpt-oss model with random weights in the Hugging Face layout.",
        epilog="example: python benchmarks/synthesize.py --preset gpt-oss-20b /tmp/gpt-oss-20b",
    )
    parser.add_argument("directory", type=Path, help="the directory to make")
    parser.add_argument("--preset", choices=synthetic.PRESETS, default="mini")
    parser.add_argument("--layers", type=int, metavar="N", help="this many layers instead")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    arguments = parser.parse_args()
    try:
        preset = synthetic.find_preset(arguments.preset, arguments.layers)
        total = synthetic.weight_bytes(preset)
        with tqdm(total=total, unit="B", unit_scale=True, desc=arguments.directory.name) as bar:

            def progress(done: int, total: int) -> None:
                bar.update(done - bar.n)

            synthetic.synthesize(preset, arguments.seed, arguments.directory, progress)
    except (gptoss.Error, OSError) as error:
        print(f"synthesize: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.directory}: {total:,} bytes of tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
