"""llama and gpt2 against transformers, which must be installed: pip install torch transformers.

float32 on both sides; sums in other orders, so logits agree to a few units of float32's last place
of their largest.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense_models import Gpt2, Llama, Spec, write_hf
from support import open_generator, random_tokens

import gptoss

pytestmark = pytest.mark.oracle

TOLERANCE = 2e-5  # of the largest logit

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def oracle_logits(directory: Path, tokens: list[int], **options: Any) -> Any:
    torch = pytest.importorskip("torch", reason="needs torch: pip install torch transformers")
    transformers = pytest.importorskip(
        "transformers", reason="needs transformers: pip install torch transformers"
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", **options
    )
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize(
    "spec",
    [
        Llama(hidden_size=48, head_dim=10, num_heads=6, num_kv_heads=3, vocab_size=61),
        Llama(hidden_size=40, num_heads=5, num_kv_heads=1, tied=True, intermediate_size=37),
        Llama(attention_bias=True, mlp_bias=True, eps=1e-3, rope_theta=500000.0),
        Llama(rope={"rope_type": "linear", "factor": 3.0}),
        Llama(rope=YARN, max_positions=256),
        Llama(rope=YARN | {"truncate": False, "attention_factor": 1.3}, max_positions=256),
        Llama(rope=LLAMA3, rope_key="rope_parameters", max_positions=512),
        Gpt2(),
        Gpt2(hidden_size=45, num_heads=5, intermediate_size=33, eps=1e-3),
        Gpt2(hidden_size=21, num_heads=3, tied=False, vocab_size=130),
    ],
)
def test_agrees_with_transformers(spec: Spec, dtype: str, tmp_path: Path) -> None:
    seed = secrets.randbelow(2**32)
    print(f"seed {seed}")
    directory = write_hf(tmp_path, spec, np.random.default_rng(seed), dtype)
    with gptoss.Model(directory) as model:
        tokens = random_tokens(model, 120, seed)
        generator = open_generator(model, 120, kv_dtype="f32")
        logits = generator.prefill(tokens, all_logits=True)
    expected = oracle_logits(directory, tokens)
    assert np.abs(logits - expected).max() < TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize(
    "spec",
    [
        Llama(tied=True),
        Llama(hidden_size=96, num_heads=6, num_kv_heads=3),
        Llama(rope=LLAMA3, max_positions=512),
        Llama(rope=YARN, max_positions=256),
        Llama(rope={"rope_type": "linear", "factor": 3.0}),
        Gpt2(tied=False),
    ],
)
def test_transformers_reads_what_convert_writes(spec: Spec, tmp_path: Path) -> None:
    """A directory from a GGUF file; and the GGUF file itself, of which it reads no scaling, and the
    size of gpt2's vocabulary only from a tokenizer."""
    pytest.importorskip("accelerate", reason="needs accelerate, as transformers for GGUF")
    seed = secrets.randbelow(2**32)
    print(f"seed {seed}")
    directory = write_hf(tmp_path / "hf", spec, np.random.default_rng(seed))
    gptoss.convert(directory, tmp_path / "m.gguf")
    gptoss.convert(tmp_path / "m.gguf", tmp_path / "back", max_shard_size=50_000)
    tokens = [int(token) for token in np.random.default_rng(seed).integers(97, size=100)]
    expected = oracle_logits(directory, tokens)
    assert np.array_equal(oracle_logits(tmp_path / "back", tokens), expected)
    if isinstance(spec, Llama) and spec.rope is None:
        found = oracle_logits(tmp_path, tokens, gguf_file="m.gguf")
        assert np.abs(found - expected).max() < TOLERANCE * np.abs(expected).max()
