"""gptoss convert, quantize and compare of llama and gpt2: both layouts, there and back, tokenizers,
and weights in several files."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import models
import numpy as np
import pytest
from dense_models import Gpt2, Llama, Spec, encode_gguf, write_gguf, write_hf
from hypothesis import assume, given, note, settings
from hypothesis import strategies as st
from support import assert_same_bits, open_generator, random_tokens
from test_conversion import assert_same_tensors, gguf_tensors, leftovers, run
from test_dense_reference import gpt2s, llamas
from test_tokenizer_gguf import (
    PIECE_TEXTS,
    TEXTS,
    assert_same,
    corpus,
    data_of,
    from_metadata,
    piece_metadata,
    trained,
)
from test_tokenizer_gguf import piece_model as piece_model

import gptoss
from gptoss import Tokenizer, blocks, weights
from gptoss.output import parse_size
from gptoss.write_tokenizer import tokenizer_values

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
SPECS: dict[str, Spec] = {
    "llama": Llama(),
    "llama odd": Llama(hidden_size=50, head_dim=10, num_heads=6, num_kv_heads=3, vocab_size=61),
    "llama tied": Llama(num_kv_heads=1, tied=True, attention_bias=True, mlp_bias=True),
    "llama linear": Llama(rope={"rope_type": "linear", "factor": 3.0}, attention_bias=True),
    "llama3": Llama(rope=LLAMA3, rope_theta=500000.0, head_dim=32),
    "llama3.2": Llama(rope=LLAMA3 | {"factor": 32.0}, rope_key="rope_parameters", tied=True),
    "llama yarn": Llama(rope=YARN),
    "gpt2": Gpt2(),
    "gpt2 odd": Gpt2(hidden_size=45, num_heads=5, intermediate_size=33, eps=1e-3),
    "gpt2 untied": Gpt2(hidden_size=21, num_heads=3, tied=False),
    "gpt2 of openai": Gpt2(prefix=""),
}
every_spec = pytest.mark.parametrize("name", SPECS)


@pytest.fixture
def seed() -> int:
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    return seed


def logits_of(path: Path, seed: int) -> np.ndarray:
    with gptoss.Model(path) as model:
        generator = open_generator(model, 60, kv_dtype="f32")
        return generator.prefill(random_tokens(model, 60, seed), all_logits=True)


# ---- there and back ----


@every_spec
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_gguf_and_back(tmp_path: Path, name: str, dtype: str, seed: int) -> None:
    spec = SPECS[name]
    hf = write_hf(tmp_path / "hf", spec, np.random.default_rng(seed), dtype)
    report = gptoss.convert(hf, tmp_path / "m.gguf")
    assert report.notes == (f"no tokenizer is beside {hf}: the file has no vocabulary",)
    logits, turned = logits_of(hf, seed), logits_of(tmp_path / "m.gguf", seed)
    assert np.abs(turned - logits).max() < 1e-4 * np.abs(logits).max()
    gptoss.convert(tmp_path / "m.gguf", tmp_path / "back")
    assert_same_bits(logits_of(tmp_path / "back", seed), logits)
    if name == "gpt2 of openai":  # names as transformers writes them
        hf = write_hf(tmp_path / "named", Gpt2(), np.random.default_rng(seed), dtype)
    assert_same_tensors(hf, tmp_path / "back")
    with gptoss.Model(hf) as first, gptoss.Model(tmp_path / "back") as second:
        assert first.config == second.config
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    for key, value in spec.config().items():
        if key in ("rope_parameters", "scale_attn_weights", "scale_attn_by_inverse_layer_idx"):
            continue
        if key == "n_inner":
            value = value or 4 * spec.hidden_size
        if key == "rope_scaling" and value is not None and value["rope_type"] == "yarn":
            value = value | {"truncate": True}
        assert written[key] == value, key


@settings(max_examples=40)
@given(
    spec=llamas() | gpt2s(),
    dtype=st.sampled_from(["F32", "F16", "BF16"]),
    shard_bytes=st.sampled_from([None, 10_000, 100_000]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_model_and_back(spec: Spec, dtype: str, shard_bytes: int | None, seed: int) -> None:
    note(json.dumps(spec.config()))
    if isinstance(spec, Gpt2):
        spec = replace(spec, prefix="transformer.")
    elif spec.rope is not None and spec.rope["rope_type"] == "llama3":
        spec = replace(spec, rope=spec.rope | {"low_freq_factor": 1.0, "high_freq_factor": 4.0})
        divisors = set(spec.divisors().tolist())
        assume(spec.rope["factor"] in divisors or divisors == {1.0})
    with tempfile.TemporaryDirectory() as name:
        hf = write_hf(Path(name) / "hf", spec, np.random.default_rng(seed), dtype)
        file, back = Path(name) / "m.gguf", Path(name) / "back"
        gptoss.convert(hf, file)
        gptoss.convert(file, back, max_shard_size=shard_bytes)
        assert_same_tensors(hf, back)
        assert_same_bits(logits_of(back, seed), logits_of(hf, seed))


@every_spec
def test_same_file_as_the_other_writer(tmp_path: Path, name: str, seed: int) -> None:
    """tests/dense_models.py makes its weights by itself, and the gguf package reads both."""
    hf = write_hf(tmp_path / "hf", SPECS[name], np.random.default_rng(seed))
    gptoss.convert(hf, tmp_path / "m.gguf")
    write_gguf(tmp_path / "expected.gguf", SPECS[name], np.random.default_rng(seed))
    found, wanted = gguf_tensors(tmp_path / "m.gguf"), gguf_tensors(tmp_path / "expected.gguf")
    assert found.keys() == wanted.keys()
    for tensor, (format, values) in wanted.items():
        assert found[tensor][0] == format
        np.testing.assert_array_equal(found[tensor][1], values, tensor)
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    for key, field in gguf.GGUFReader(tmp_path / "expected.gguf").fields.items():
        if not key.startswith("GGUF"):
            assert fields[key].contents() == field.contents(), key
            assert fields[key].types == field.types, key


@every_spec
def test_compare_sees_no_difference(tmp_path: Path, name: str, seed: int) -> None:
    hf = write_hf(tmp_path / "hf", SPECS[name], np.random.default_rng(seed), "BF16")
    gptoss.convert(hf, tmp_path / "m.gguf")
    errors = gptoss.compare(hf, tmp_path / "m.gguf")
    assert len(errors) == len(gguf_tensors(tmp_path / "m.gguf"))
    assert all(error.max_abs == 0 for error in errors)
    gptoss.convert(hf, tmp_path / "again")
    assert all(error.max_abs == 0 for error in gptoss.compare(hf, tmp_path / "again"))
    other = write_hf(tmp_path / "other", SPECS[name], np.random.default_rng(seed + 1), "BF16")
    assert any(error.max_abs > 0 for error in gptoss.compare(other, tmp_path / "m.gguf"))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_bounded_pieces(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, seed: int
) -> None:
    hf = write_hf(tmp_path / "hf", SPECS[name], np.random.default_rng(seed))
    gptoss.convert(hf, tmp_path / "whole.gguf")
    monkeypatch.setattr(weights, "_PIECE_ELEMENTS", 100)
    gptoss.convert(hf, tmp_path / "pieces.gguf")
    gptoss.convert(tmp_path / "whole.gguf", tmp_path / "back")
    assert_same_tensors(hf, tmp_path / "back")
    first, second = (gguf_tensors(tmp_path / f"{name}.gguf") for name in ("whole", "pieces"))
    for tensor, (_, values) in first.items():
        np.testing.assert_array_equal(values, second[tensor][1], tensor)


# ---- quantized ----

LARGE: dict[str, Spec] = {
    "llama": Llama(hidden_size=256, intermediate_size=512, num_kv_heads=2, rope=LLAMA3),
    "gpt2": Gpt2(hidden_size=256, num_heads=4, tied=False),
}


@pytest.mark.parametrize("format", ["Q8_0", "Q6_K", "Q4_K", "MXFP4", "F16"])
@pytest.mark.parametrize("name", LARGE)
def test_quantized_and_back(tmp_path: Path, name: str, format: str, seed: int) -> None:
    """Matrices are in the format, the rest F32; Hugging Face's layout has what they decode to."""
    hf = write_hf(tmp_path / "hf", LARGE[name], np.random.default_rng(seed), "BF16")
    gptoss.quantize(hf, tmp_path / "q.gguf", format)
    tensors = gguf_tensors(tmp_path / "q.gguf")
    exact = {weight.name: weight.floats() for weight in weights.Source(hf).weights()}
    assert tensors.keys() == exact.keys()
    for tensor, (stored, values) in tensors.items():
        is_matrix = values.ndim == 2 and tensor != "position_embd.weight"
        assert stored == (format if is_matrix else "F32"), tensor
        expected = blocks.decode(blocks.encode(exact[tensor], stored), stored)
        np.testing.assert_array_equal(values, expected, tensor)
    report = gptoss.convert(tmp_path / "q.gguf", tmp_path / "back")
    is_told = any("decoded and rounded to BF16" in note for note in report.notes)
    assert is_told == (format != "F16") and set(report.formats) <= {"F16", "BF16"}
    decoded = {
        weight.name: weight.floats() for weight in weights.Source(tmp_path / "back").weights()
    }
    for tensor, (stored, values) in tensors.items():
        if stored == format != "F16":
            values = values.astype(models.DTYPES["BF16"]).astype(np.float32)
        np.testing.assert_array_equal(decoded[tensor], values, tensor)


def test_vectors_take_the_format_of_the_embedding(tmp_path: Path, seed: int) -> None:
    """Norms of 1, which any format has, do not change it."""
    spec = Llama(tied=True)
    for dtype in ("F32", "F16", "BF16"):
        tensors = spec.tensors(np.random.default_rng(seed), dtype)
        for name, tensor in tensors.items():
            if name.endswith("norm.weight"):
                tensor[:] = 1
        hf = tmp_path / dtype
        hf.mkdir()
        (hf / "config.json").write_text(json.dumps(spec.config()))
        models.write_safetensors(hf / "model.safetensors", tensors)
        gptoss.convert(hf, tmp_path / f"{dtype}.gguf")
        gptoss.convert(tmp_path / f"{dtype}.gguf", tmp_path / f"{dtype}-back")
        assert_same_tensors(hf, tmp_path / f"{dtype}-back")


# ---- what the other layout has no words for ----


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"truncate": False}, "truncate of YaRN is False: of llama it is always True"),
        ({"attention_factor": 1.5}, r"attention_factor of YaRN is 1\.5: .* always 1\.138"),
    ],
)
def test_yarn_that_gguf_cannot_say(tmp_path: Path, change: dict[str, Any], found: str) -> None:
    spec = Llama(rope=YARN | change)
    hf = write_hf(tmp_path / "hf", spec, np.random.default_rng(0))
    with pytest.raises(gptoss.UnsupportedError, match=found):
        gptoss.convert(hf, tmp_path / "m.gguf")
    assert leftovers(tmp_path) == ["hf"]
    gptoss.convert(hf, tmp_path / "again")
    with gptoss.Model(hf) as first, gptoss.Model(tmp_path / "again") as second:
        assert first.config == second.config


def with_divisors(path: Path, divisors: np.ndarray, **values: Any) -> Path:
    spec = Llama()
    metadata, tensors = spec.gguf(spec.tensors(np.random.default_rng(0), "F32"))
    tensors["rope_freqs.weight"] = divisors.astype(np.float32)
    path.write_bytes(encode_gguf(metadata | values, tensors, "F32"))
    return path


@pytest.mark.parametrize("values", [{}, {"llama.rope.scaling.factor": 2.0}])
def test_divisors_that_config_json_cannot_say(tmp_path: Path, values: dict[str, Any]) -> None:
    divisors = np.ones(8) if values else np.array([1, 2, 1, 2, 3, 4, 5, 6])
    path = with_divisors(tmp_path / "m.gguf", divisors, **values)
    with pytest.raises(
        gptoss.UnsupportedError, match=r"cannot say how rope_freqs\.weight"
    ) as caught:
        gptoss.convert(path, tmp_path / "hf")
    assert caught.value.tensor == "rope_freqs.weight" and leftovers(tmp_path) == ["m.gguf"]


@given(
    factor=st.sampled_from([2.0, 3.5, 8.0, 32.0]),
    positions=st.sampled_from([16, 1024, 8192, 1 << 20]),
    theta=st.sampled_from([100.0, 10000.0, 500000.0]),
    head_dim=st.integers(1, 64).map(lambda half: 2 * half),
)
def test_scaling_from_divisors(factor: float, positions: int, theta: float, head_dim: int) -> None:
    """Some settings, not always those it was made with, give the same divisors."""
    rope = LLAMA3 | {"factor": factor, "original_max_position_embeddings": positions}
    spec = Llama(rope=rope, rope_theta=theta, head_dim=head_dim)
    config = gptoss.Config(**CONFIG | {"head_dim": head_dim, "rope_theta": theta})
    divisors = spec.divisors()
    assume(factor != 3.5 or 3.5 in divisors)  # no model's, so that the divisors must tell
    found = gptoss.rope.settings(config, divisors)
    assert found is not None
    np.testing.assert_allclose(replace(spec, rope=found).divisors(), divisors, rtol=1e-5)
    if divisors.max() == np.float32(factor):
        assert found["factor"] == factor


CONFIG: dict[str, Any] = dict.fromkeys(gptoss.Config.__dataclass_fields__, 0)
CONFIG |= {"architecture": "llama", "rope_scaling": "divisors", "rope_factor": 1.0}


def test_missing_weights(tmp_path: Path) -> None:
    spec = Llama()
    tensors = spec.tensors(np.random.default_rng(0), "F32")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(spec.config()))
    models.write_safetensors(tmp_path / "hf" / "model.safetensors", tensors)
    for write in (gptoss.convert, lambda *paths: gptoss.quantize(*paths, "Q8_0")):
        with pytest.raises(gptoss.FormatError, match=r"layers\.1\.mlp\.up_proj\.weight"):
            write(tmp_path / "hf", tmp_path / "m.gguf")
    assert leftovers(tmp_path) == ["hf"]


# ---- tokenizers ----


@pytest.mark.parametrize("way", ["gpt-2", "llama-bpe", "smollm"])
def test_byte_level_tokenizers(tmp_path: Path, way: str, seed: int) -> None:
    hf = write_hf(tmp_path / "hf", Llama(vocab_size=710), np.random.default_rng(seed))
    from_json = trained(way, hf, seed, bos=way == "llama-bpe")
    assert gptoss.convert(hf, tmp_path / "m.gguf").notes == ()
    gptoss.convert(tmp_path / "m.gguf", tmp_path / "back")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "gpt2"
    assert fields["tokenizer.ggml.pre"].contents() == way
    for path in ("m.gguf", "back"):
        with gptoss.Model(tmp_path / path) as model:
            assert model.tokenizer is not None
            assert_same(model.tokenizer, from_json, [*TEXTS, *corpus(seed)[:5]])


def piece_tokenizer(directory: Path, pieces: Any) -> Tokenizer:
    """The tokenizer.json that transformers makes of a sentencepiece model: all ways to make a piece
    of two, best score first, shortest left part first."""
    library = from_metadata(piece_metadata(pieces))._tokenizer
    settings = json.loads(library.to_str())
    settings["model"]["merges"].sort(
        key=lambda merge: (
            -pieces.get_score(pieces.piece_to_id("".join(merge))),
            len(merge[0]),
        )
    )
    settings["post_processor"] = None
    (directory / "tokenizer.json").write_text(json.dumps(settings))
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer(directory)


@pytest.mark.parametrize("spelling", ["Prepend", "Metaspace"])
def test_sentence_pieces(tmp_path: Path, piece_model: Any, spelling: str, seed: int) -> None:
    hf = write_hf(tmp_path / "hf", Llama(vocab_size=910), np.random.default_rng(seed))
    from_json = piece_tokenizer(hf, piece_model)
    if spelling == "Metaspace":
        settings = json.loads((hf / "tokenizer.json").read_text())
        settings["normalizer"] = None
        settings["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": "\u2581",
            "prepend_scheme": "always",
            "split": False,
        }
        (hf / "tokenizer.json").write_text(json.dumps(settings))
    assert gptoss.convert(hf, tmp_path / "m.gguf").notes == ()
    gptoss.convert(tmp_path / "m.gguf", tmp_path / "back")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "llama"
    assert fields["tokenizer.ggml.add_space_prefix"].contents() is True
    kinds = fields["tokenizer.ggml.token_type"].contents()
    expected = piece_metadata(piece_model)["tokenizer.ggml.token_type"]
    assert kinds == [*expected.tolist(), *[5] * (910 - len(expected))]
    assert fields["tokenizer.ggml.unknown_token_id"].contents() == 0
    for path in ("m.gguf", "back"):
        with gptoss.Model(tmp_path / path) as model:
            tokenizer = model.tokenizer
            assert tokenizer is not None and tokenizer.opening_ids == [1]
            assert tokenizer.special_tokens == from_json.special_tokens
            for text in [*PIECE_TEXTS, *corpus(seed)[:60]]:
                ids = tokenizer.encode(text)
                assert ids == piece_model.encode(text) == from_json.encode(text), text[:80]
                assert tokenizer.decode(ids) == from_json.decode(ids)


def merges_changed(settings: dict[str, Any], rng: random.Random) -> None:
    """One merge less of a token that others make too, or one moved to the end."""
    made = ["".join(merge) for merge in settings["model"]["merges"]]
    several = [i for i, token in enumerate(made[:-1]) if made.count(token) > 1]
    moved = settings["model"]["merges"].pop(rng.choice(several))
    if rng.random() < 0.5 and made[-1] != "".join(moved):
        settings["model"]["merges"].append(moved)


@pytest.mark.parametrize("change", ["merges", "split", "normalizer", "prefix"])
def test_pieces_that_scores_cannot_say(
    tmp_path: Path, piece_model: Any, change: str, seed: int
) -> None:
    hf = write_hf(tmp_path / "hf", Llama(vocab_size=910), np.random.default_rng(0))
    piece_tokenizer(hf, piece_model)
    settings = json.loads((hf / "tokenizer.json").read_text())
    if change == "merges":
        merges_changed(settings, random.Random(seed))
    elif change == "split":
        settings["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    elif change == "normalizer":
        settings["normalizer"]["normalizers"].insert(0, {"type": "NFKC"})
    else:
        settings["normalizer"] = None
        settings["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": "\u2581",
            "prepend_scheme": "first",
            "split": True,
        }
    (hf / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(gptoss.UnsupportedError, match="not as sentencepiece makes them") as caught:
        gptoss.convert(hf, tmp_path / "m.gguf")
    assert caught.value.file == str(hf / "tokenizer.json") and leftovers(tmp_path) == ["hf"]


def test_scores_of_tokens_without_merges(tmp_path: Path, piece_model: Any) -> None:
    """transformers once left out the merges of a score of 0."""
    full = data_of(tokenizer_values(piece_tokenizer(tmp_path, piece_model), 900))
    settings = json.loads((tmp_path / "tokenizer.json").read_text())
    best = "".join(settings["model"]["merges"][0])
    kept = [merge for merge in settings["model"]["merges"] if "".join(merge) != best]
    settings["model"]["merges"] = kept
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    values = data_of(tokenizer_values(Tokenizer(tmp_path), 900))
    at = full["tokenizer.ggml.tokens"].index(best)
    assert full["tokenizer.ggml.scores"][at] == 0
    assert values["tokenizer.ggml.scores"][at] == values["tokenizer.ggml.scores"].min()


# ---- weights in several files ----


@pytest.mark.parametrize("limit", ["20KB", 5000, 1, "1 MiB"])
def test_shards(tmp_path: Path, limit: int | str, seed: int) -> None:
    hf = write_hf(tmp_path / "hf", Llama(), np.random.default_rng(seed))
    gptoss.convert(hf, tmp_path / "out", max_shard_size=limit)
    assert_same_tensors(hf, tmp_path / "out")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    if limit == "1 MiB":
        assert [file.name for file in files] == ["model.safetensors"]
        return
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    names = [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]
    assert [file.name for file in files] == names and len(files) > 1
    held: dict[str, list[int]] = {name: [] for name in names}
    with gptoss.Model(tmp_path / "out") as model:
        infos = {name: model.tensor_info(name) for name in model.tensors}
    assert index["weight_map"] == {name: info.file.name for name, info in infos.items()}
    assert index["metadata"]["total_size"] == sum(info.num_bytes for info in infos.values())
    for info in infos.values():
        held[info.file.name].append(info.num_bytes)
    for sizes in held.values():
        assert sum(sizes) <= parse_size(limit) or len(sizes) == 1
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "out", again)
    gptoss.convert(hf, again, force=True)
    assert leftovers(again) == ["config.json", "model.safetensors"]
    gptoss.convert(tmp_path / "out", tmp_path / "m.gguf")
    assert all(error.max_abs == 0 for error in gptoss.compare(hf, tmp_path / "m.gguf"))


def test_shards_of_experts(tmp_path: Path) -> None:
    gptoss.convert("demo", tmp_path / "out", max_shard_size="4MB")
    with gptoss.Model("demo") as demo:
        assert_same_tensors(demo.path, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*-of-00004.safetensors"))) == 4


def test_an_interruption_between_shards_leaves_nothing(tmp_path: Path) -> None:
    hf = write_hf(tmp_path / "hf", Llama(), np.random.default_rng(0))

    def progress(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gptoss.convert(hf, tmp_path / "out", max_shard_size=5000, progress=progress)
    assert leftovers(tmp_path) == ["hf"]


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        *((5, 5), ("5", 5), ("5GB", 5 * 10**9), ("5 gb", 5 * 10**9), ("500MB", 5 * 10**8)),
        *(
            ("1.5KB", 1500),
            ("1KiB", 1024),
            ("2 MIB", 1 << 21),
            ("0.5 gib", 1 << 29),
            ("1TB", 10**12),
        ),
    ],
)
def test_sizes(text: int | str, num_bytes: int) -> None:
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize(
    "text", ["", "GB", "-5GB", "5 XB", "1e9", "5GB5", "0", 0, -1, True, 1.5, None, "0.1B", "٣GB"]
)
def test_sizes_that_are_none(text: Any) -> None:
    with pytest.raises(gptoss.ArgumentError, match="a number of bytes or a text such as '5GB'"):
        parse_size(text)


# ---- the command line ----


def test_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hf = write_hf(tmp_path / "hf", Llama(), np.random.default_rng(0))
    code, out, _ = run(capsys, "convert", hf, tmp_path / "m.gguf")
    assert code == 0 and "tensors: 21 F32" in out
    code, _, _ = run(capsys, "quantize", hf, tmp_path / "q.gguf", "--type", "Q4_0")
    assert code == 0
    code, out, _ = run(capsys, "compare", hf, tmp_path / "q.gguf")
    assert code == 0 and "blk.N.attn_q.weight" in out
    output = tmp_path / "back"
    code, _, _ = run(capsys, "convert", tmp_path / "m.gguf", output, "--max-shard-size", "50kB")
    assert code == 0 and "model.safetensors.index.json" in leftovers(output)
    code, _, err = run(capsys, "convert", hf, tmp_path / "x.gguf", "--max-shard-size", "1GB")
    assert code == 1 and "a GGUF file is one" in err
    code, _, err = run(capsys, "convert", hf, tmp_path / "x", "--max-shard-size", "much")
    assert code == 1 and "not 'much'" in err
