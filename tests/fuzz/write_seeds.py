"""Writes what scripts/fuzz starts from: python tests/fuzz/write_seeds.py DIRECTORY

good/                  a model as model.safetensors and config.json
model.gguf/, ...       valid files of each format, small: the seed corpus
model.gguf.dict, ...   words that occur in them, for libFuzzer's dictionary
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dense_models
import gguf_models
from models import Spec, write_model

TINY = Spec(
    num_layers=1,
    hidden_size=32,
    intermediate_size=32,
    num_heads=4,
    num_kv_heads=1,
    head_dim=8,
    num_experts=2,
    experts_per_token=1,
    vocab_size=5,
)
SPECS = {
    "mxfp4": TINY,
    "plain_rope": Spec(**{**vars(TINY), "yarn": None, "rope_spelling": "rope_parameters"}),
    "dense_experts": Spec(**{**vars(TINY), "expert_dtype": "BF16", "dense_dtype": "F32"}),
    "tied": Spec(**{**vars(TINY), "tied": True, "dense_dtype": "F16", "attention_bias": False}),
}
DENSE = {
    "llama": dense_models.Llama(
        num_layers=1, hidden_size=32, intermediate_size=32, num_heads=4, vocab_size=5
    ),
    "gpt2": dense_models.Gpt2(
        num_layers=1, hidden_size=32, num_heads=4, vocab_size=5, max_positions=8
    ),
}
FORMATS = ("model.gguf", "model.safetensors", "config.json")


def write_dictionary(path: Path, seeds: list[bytes]) -> None:
    """Names and JSON words of four letters and more, cut to what libFuzzer takes."""
    words = {word for seed in seeds for word in re.findall(rb"[A-Za-z_][\w.\-]{3,60}", seed)}
    path.write_text("".join(f'"{word.decode()}"\n' for word in sorted(words)[:2000]))


def main(directory: Path) -> None:
    rng = np.random.default_rng(0)
    for name in FORMATS:
        (directory / name).mkdir(parents=True, exist_ok=True)
    models = [
        write_model(directory / "models" / "original", TINY, rng, "original"),
        *(write_model(directory / "models" / kind, spec, rng) for kind, spec in SPECS.items()),
        *(
            dense_models.write_hf(directory / "models" / kind, spec, rng)
            for kind, spec in DENSE.items()
        ),
    ]
    for model in models:
        for name in ("model.safetensors", "config.json"):
            (directory / name / model.name).write_bytes((model / name).read_bytes())
    for dense in ("f32", "f16", "bf16", "q8_0"):
        path = directory / "model.gguf" / dense
        gguf_models.write_model(path.with_suffix(".gguf"), TINY, rng, dense).rename(path)
    for kind, dense in DENSE.items():
        dense_models.write_gguf(directory / "model.gguf" / kind, dense, rng)
    good = directory / "good"
    good.mkdir(exist_ok=True)
    for name in ("model.safetensors", "config.json"):
        (good / name).write_bytes((directory / name / "mxfp4").read_bytes())
    for name in FORMATS:
        seeds = [path.read_bytes() for path in (directory / name).iterdir()]
        write_dictionary(directory / f"{name}.dict", seeds)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
