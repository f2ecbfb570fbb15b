"""gptoss convert and quantize: round trips, what stays and what changes, and every refusal."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import gguf_models
import numpy as np
import pytest
from models import Spec, default_yarn, write_model
from numpy.typing import NDArray
from support import assert_same_bits, open_generator, random_tokens

import gptoss
from gptoss import blocks, quantization, weights
from gptoss.cli import main

Array = NDArray[Any]
DEMO = gptoss.Model("demo").path
# Widths of 96 and 256: blocks of 32 and 256; a head of 16, so that attention is 64 wide.
STAY = (".bias", "norm.weight", "sinks.weight", "gate_inp.weight")
SPEC = Spec(hidden_size=256, intermediate_size=96, head_dim=16, num_layers=3)


@pytest.fixture
def rng() -> np.random.Generator:
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("small") / "model"
    return write_model(directory, SPEC, np.random.default_rng(5))


def assert_same_tensors(a: Path, b: Path) -> None:
    with gptoss.Model(a) as first, gptoss.Model(b) as second:
        assert set(first.tensors) == set(second.tensors)
        for name, tensor in first.tensors.items():
            other = second.tensors[name]
            assert tensor.dtype == other.dtype and tensor.shape == other.shape, name
            assert tensor.tobytes() == other.tobytes(), name


def gguf_tensors(path: Path) -> dict[str, tuple[str, Array]]:
    """Format and values, by the gguf package."""
    return {
        tensor.name: (
            tensor.tensor_type.name,
            gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1]),
        )
        for tensor in gguf.GGUFReader(path).tensors
    }


def leftovers(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


# ---- round trips ----


def test_demo_to_gguf_and_back_is_the_same(tmp_path: Path) -> None:
    report = gptoss.convert("demo", tmp_path / "demo.gguf")
    assert report.formats == {"F32": 97, "BF16": 34, "MXFP4": 24} and report.notes == ()
    back = gptoss.convert(tmp_path / "demo.gguf", tmp_path / "back")
    assert back.output_bytes == report.source_bytes
    assert_same_tensors(DEMO, tmp_path / "back")
    with gptoss.Model("demo") as first, gptoss.Model(tmp_path / "back") as second:
        assert first.config == second.config
        text = "Once upon a time<|end|> \u00e4\u4e16 12345's\n\n"
        for allow in (False, True):
            ids = first.tokenizer.encode(text, allow_special=allow)
            assert second.tokenizer.encode(text, allow_special=allow) == ids
        for name in ("bos_id", "eos_id", "pad_id", "chat_template", "stop_token_ids"):
            assert getattr(second.tokenizer, name) == getattr(first.tokenizer, name), name
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    original = json.loads((DEMO / "config.json").read_text())
    unsaid = {key for key in original if key not in written}
    assert unsaid <= {
        *("attention_dropout", "initializer_range", "output_router_logits", "use_cache"),
        *("router_aux_loss_coef", "transformers_version"),
    }
    for key in set(written) & set(original):
        assert written[key] == original[key], key


SPECS = {
    "plain": SPEC,
    "no yarn": dataclasses.replace(SPEC, yarn=None),
    "yarn of factor 1": dataclasses.replace(SPEC, yarn=default_yarn() | {"factor": 1.0}),
    "odd": Spec(hidden_size=32, intermediate_size=32, num_heads=6, num_kv_heads=2, head_dim=20),
    "bf16 experts": dataclasses.replace(SPEC, expert_dtype="BF16"),
    "odd bf16": Spec(hidden_size=40, intermediate_size=36, expert_dtype="BF16"),
    "f32": dataclasses.replace(SPEC, dense_dtype="F32", expert_dtype="F32"),
    "f16": dataclasses.replace(SPEC, dense_dtype="F16", expert_dtype="F16"),
}


@pytest.mark.parametrize("name", SPECS)
def test_gguf_and_back(tmp_path: Path, name: str, rng: np.random.Generator) -> None:
    spec = SPECS[name]
    model = write_model(tmp_path / "model", spec, rng, rng.choice(["hf", "hf_sharded"]))
    gptoss.convert(model, tmp_path / "model.gguf")
    gptoss.convert(tmp_path / "model.gguf", tmp_path / "back")
    assert_same_tensors(model, tmp_path / "back")
    with gptoss.Model(model) as first, gptoss.Model(tmp_path / "back") as second:
        assert first.config == second.config
        tokens = random_tokens(first, 20)
        logits = [
            open_generator(each, 32).prefill(tokens, all_logits=True) for each in (first, second)
        ]
        assert_same_bits(logits[1], logits[0], name)
    with gptoss.Model(tmp_path / "model.gguf") as converted:
        found = open_generator(converted, 32).prefill(tokens, all_logits=True)
    assert np.abs(found - logits[0]).max() < 1e-3 * np.abs(logits[0]).max()


@pytest.mark.parametrize("layout", ["original", "original_sharded"])
def test_the_original_layout_is_the_same_model(tmp_path: Path, layout: str) -> None:
    original = write_model(tmp_path / "original", SPEC, np.random.default_rng(3), layout)
    hf = write_model(tmp_path / "hf", SPEC, np.random.default_rng(3))
    gptoss.convert(original, tmp_path / "new", to="hf")
    assert_same_tensors(hf, tmp_path / "new")
    for source in ("original", "hf"):
        gptoss.convert(tmp_path / source, tmp_path / f"{source}.gguf")
    first, second = (gguf_tensors(tmp_path / f"{name}.gguf") for name in ("original", "hf"))
    assert first.keys() == second.keys()
    for name, (format, values) in first.items():
        assert format == second[name][0]
        np.testing.assert_array_equal(values, second[name][1])


def test_same_file_as_the_other_writer(tmp_path: Path, rng: np.random.Generator) -> None:
    """tests/gguf_models.py makes its weights by itself."""
    seed = int(rng.integers(2**32))
    model = write_model(tmp_path / "model", SPEC, np.random.default_rng(seed))
    expected = tmp_path / "expected.gguf"
    gguf_models.write_model(expected, SPEC, np.random.default_rng(seed), dense="bf16")
    gptoss.convert(model, tmp_path / "model.gguf")
    found, wanted = gguf_tensors(tmp_path / "model.gguf"), gguf_tensors(expected)
    assert found.keys() == wanted.keys()
    for name, (format, values) in found.items():
        assert format == wanted[name][0], name
        np.testing.assert_array_equal(values, wanted[name][1])
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    for key, field in gguf.GGUFReader(expected).fields.items():
        if not key.startswith(("GGUF", "general.", "tokenizer.")):
            assert fields[key].contents() == field.contents(), key


def test_a_tied_matrix_is_written_twice(tmp_path: Path, rng: np.random.Generator) -> None:
    spec = dataclasses.replace(SPEC, tied=True)
    model = write_model(tmp_path / "model", spec, rng)
    gptoss.convert(model, tmp_path / "model.gguf")
    tensors = gguf_tensors(tmp_path / "model.gguf")
    np.testing.assert_array_equal(tensors["output.weight"][1], tensors["token_embd.weight"][1])
    gptoss.convert(model, tmp_path / "again", to="hf")
    assert_same_tensors(model, tmp_path / "again")


def test_files_of_the_tokenizer_come_along(tmp_path: Path) -> None:
    report = gptoss.convert(DEMO, tmp_path / "demo")
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja"):
        assert (tmp_path / "demo" / name).read_bytes() == (DEMO / name).read_bytes()
    assert report.notes == ()


# ---- quantize ----


@pytest.mark.parametrize("format", quantization.FORMATS)
def test_every_type(tmp_path: Path, small: Path, format: str) -> None:
    path = tmp_path / "out.gguf"
    report = gptoss.quantize(small, path, format.lower())
    with gptoss.Model(small) as model:
        source = {weight.name: weight for weight in weights.Source(small).weights()}
        assert model.config.num_layers == 3
    tensors = gguf_tensors(path)
    assert list(report.formats) and sum(report.formats.values()) == len(tensors) == len(source)
    for name, (stored, values) in tensors.items():
        weight = source[name]
        exact = weight.floats()
        if name.endswith(STAY):
            assert stored == "F32"
            np.testing.assert_array_equal(values, exact)
        elif weight.format == "MXFP4" and stored == "MXFP4":
            np.testing.assert_array_equal(values, exact)
        else:
            fits = exact.shape[-1] % blocks.block_of(format)[0] == 0
            assert stored == (format if fits else "Q8_0"), name
            error = np.sqrt(np.square(values - exact).mean() / np.square(exact).mean())
            assert error < {"MXFP4": 0.15, "Q4_0": 0.1}.get(stored, 0.085), name


@pytest.mark.parametrize("format", quantization.FORMATS)
def test_the_engine_runs_every_type(tmp_path: Path, small: Path, format: str) -> None:
    """As the same weights in float32, but for the order of sums."""
    path = tmp_path / "out.gguf"
    gptoss.quantize(small, path, format, rules=[f"*_exps.weight={format}"])
    gptoss.quantize(path, tmp_path / "wide.gguf", "F32", rules=["*.weight=F32"])
    logits = []
    for each in (path, tmp_path / "wide.gguf"):
        with gptoss.Model(each) as model:
            tokens = random_tokens(model, 12)
            logits.append(open_generator(model, 16, kv_dtype="f32").prefill(tokens))
    assert np.abs(logits[0] - logits[1]).max() < 1e-4 * np.abs(logits[1]).max()


def test_formats_that_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gptoss.write_gguf.TYPES, "IQ4_XS", (23, 256, 136))
    tensor = gguf_models.raw_tensor("t.weight", (2, 256), "IQ4_XS")
    path = gguf_models.write_raw(tmp_path / "m.gguf", {}, [(tensor, bytes(288))])
    with pytest.raises(gptoss.UnsupportedError, match=r"t\.weight is stored as IQ4_XS") as caught:
        gptoss.quantize(path, tmp_path / "out.gguf", "Q8_0")
    assert caught.value.tensor == "t.weight" and leftovers(tmp_path) == ["m.gguf"]


def test_quantized_bytes_are_those_of_the_gguf_package(tmp_path: Path, small: Path) -> None:
    gptoss.quantize(small, tmp_path / "out.gguf", "Q8_0")
    files = weights.Source(tmp_path / "out.gguf")
    stored = {weight.name: weight for weight in files.weights()}["blk.1.attn_q.weight"]
    with gptoss.Model(small) as model:
        source = model.tensors["model.layers.1.self_attn.q_proj.weight"].astype(np.float32)
    expected = gguf.quants.quantize(source, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(stored.data.reshape(expected.shape), expected)


def test_rules(tmp_path: Path, small: Path) -> None:
    rules = [
        "blk.0.*_exps.weight=Q4_0",
        "blk.*.ffn_down_exps.weight=q5_1",
        "blk.2.attn_*=F16",
        quantization.Rule("*gate_inp*", "Q8_0"),
    ]
    report = gptoss.quantize(small, tmp_path / "out.gguf", "Q6_K", rules=rules)
    formats = {name: format for name, (format, _) in gguf_tensors(tmp_path / "out.gguf").items()}
    assert formats["blk.0.ffn_down_exps.weight"] == "Q4_0"
    assert formats["blk.1.ffn_down_exps.weight"] == "Q5_1"
    assert formats["blk.1.ffn_up_exps.weight"] == "MXFP4"
    assert formats["blk.2.attn_q.weight"] == formats["blk.2.attn_norm.weight"] == "F16"
    assert formats["blk.2.attn_q.bias"] == "F16" and formats["blk.1.attn_q.bias"] == "F32"
    assert formats["blk.1.ffn_gate_inp.weight"] == "Q8_0"  # a matrix, which the rule names
    assert formats["blk.1.ffn_gate_inp.bias"] == "F32"  # no matrix
    assert formats["blk.1.attn_q.weight"] == "Q6_K"
    assert formats["blk.1.attn_output.weight"] == "Q8_0"  # 64 wide
    assert any("width 64 become Q8_0, as Q6_K has blocks of 256" in n for n in report.notes)
    assert any("stay MXFP4, which takes no more bits than Q6_K" in n for n in report.notes)


def test_widths_that_no_block_divides(tmp_path: Path, rng: np.random.Generator) -> None:
    spec = Spec(hidden_size=40, intermediate_size=36, expert_dtype="BF16")
    model = write_model(tmp_path / "model", spec, rng)
    report = gptoss.quantize(model, tmp_path / "out.gguf", "Q4_K")
    formats = {name: format for name, (format, _) in gguf_tensors(tmp_path / "out.gguf").items()}
    assert formats["blk.0.attn_q.weight"] == "BF16"
    assert formats["blk.0.attn_output.weight"] == "Q8_0"  # 128 wide
    assert any("width 40 become BF16" in note for note in report.notes)


def test_quantize_again(tmp_path: Path, small: Path) -> None:
    """From GGUF: metadata stays, blocks of fewer bits stay, others are decoded and encoded."""
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    gptoss.quantize(small, first, "Q8_0")
    gptoss.quantize(first, second, "Q5_0")
    a, b = gguf_tensors(first), gguf_tensors(second)
    assert b["blk.0.attn_q.weight"][0] == "Q5_0" and b["blk.0.ffn_up_exps.weight"][0] == "MXFP4"
    expected = blocks.decode(blocks.encode(a["blk.0.attn_q.weight"][1], "Q5_0"), "Q5_0")
    np.testing.assert_array_equal(b["blk.0.attn_q.weight"][1], expected)
    old, new = gguf.GGUFReader(first).fields, gguf.GGUFReader(second).fields
    assert set(old) == set(new)
    for key in set(old) - {"general.file_type"}:
        assert old[key].contents() == new[key].contents(), key
    assert new["general.file_type"].contents() in (8, 38)
    gptoss.quantize(second, tmp_path / "third.gguf", "Q8_0")  # more bits give nothing back
    assert gguf_tensors(tmp_path / "third.gguf")["blk.0.attn_q.weight"][0] == "Q5_0"


def test_threads_do_not_show(tmp_path: Path, small: Path) -> None:
    for threads in (1, 7):
        gptoss.quantize(small, tmp_path / "out.gguf", "Q4_K", threads=threads, force=True)
        shutil.move(tmp_path / "out.gguf", tmp_path / f"{threads}")
    assert (tmp_path / "1").read_bytes() == (tmp_path / "7").read_bytes()


def test_progress_is_whole(tmp_path: Path, small: Path) -> None:
    steps: list[tuple[int, int]] = []
    report = gptoss.quantize(
        small, tmp_path / "a.gguf", "Q4_0", progress=lambda *step: steps.append(step)
    )
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[-1] == (report.output_bytes, report.output_bytes)


def test_pieces_are_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: Path) -> None:
    """Pieces of a row or two give the same file."""
    gptoss.quantize(small, tmp_path / "whole.gguf", "Q6_K")
    gptoss.convert(small, tmp_path / "whole", to="hf")
    monkeypatch.setattr(weights, "_PIECE_ELEMENTS", 600)
    gptoss.quantize(small, tmp_path / "pieces.gguf", "Q6_K")
    gptoss.convert(small, tmp_path / "pieces", to="hf")
    assert_same_tensors(tmp_path / "whole", tmp_path / "pieces")
    first, second = (gguf_tensors(tmp_path / f"{name}.gguf") for name in ("whole", "pieces"))
    for name, (_, values) in first.items():
        np.testing.assert_array_equal(values, second[name][1])
    assert all(error.max_abs == 0 for error in gptoss.compare(small, tmp_path / "pieces"))


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The demo model has 12 MB of weights; what is held is some pieces and the vocabulary."""
    monkeypatch.setattr(weights, "_PIECE_ELEMENTS", 1 << 12)
    for write in (WRITERS["quantize"], WRITERS["gguf"], WRITERS["hf"]):
        tracemalloc.start()
        try:
            write(DEMO, tmp_path / "out", threads=2)
            assert tracemalloc.get_traced_memory()[1] < 4e6
        finally:
            tracemalloc.stop()
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        (tmp_path / "out").unlink(missing_ok=True)


def test_any_architecture_in_gguf(tmp_path: Path, rng: np.random.Generator) -> None:
    values = {"general.architecture": (8, "mamba"), "mamba.odd": (9, (6, [1.5, -2.0]))}
    shapes = {"blk.0.ssm_in.weight": (3, 64), "blk.0.ssm_a": (64,), "token_embd.weight": (5, 256)}
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    tensors = [
        (gguf_models.raw_tensor(name, array.shape, "F32"), array.tobytes())
        for name, array in arrays.items()
    ]
    gguf_models.write_raw(tmp_path / "in.gguf", values, tensors)
    gptoss.quantize(tmp_path / "in.gguf", tmp_path / "out.gguf", "Q6_K")
    found = gguf_tensors(tmp_path / "out.gguf")
    assert {name: format for name, (format, _) in found.items()} == {
        "blk.0.ssm_in.weight": "Q8_0",
        "blk.0.ssm_a": "F32",
        "token_embd.weight": "Q6_K",
    }
    np.testing.assert_array_equal(found["blk.0.ssm_a"][1], arrays["blk.0.ssm_a"])
    field = gguf.GGUFReader(tmp_path / "out.gguf").fields["mamba.odd"]
    assert field.contents() == [1.5, -2.0]
    with pytest.raises(gptoss.Error):
        gptoss.convert(tmp_path / "in.gguf", tmp_path / "hf")
    assert leftovers(tmp_path) == ["in.gguf", "out.gguf"]


# ---- refusals ----


Write = Callable[..., Any]
WRITERS: dict[str, Write] = {
    "gguf": lambda source, output, **options: gptoss.convert(source, output, to="gguf", **options),
    "hf": lambda source, output, **options: gptoss.convert(source, output, to="hf", **options),
    "quantize": lambda source, output, **options: gptoss.quantize(
        source, output, "Q8_0", **options
    ),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_nothing_is_overwritten_unasked(tmp_path: Path, small: Path, kind: str) -> None:
    write, output = WRITERS[kind], tmp_path / "out"
    write(small, output)
    before = leftovers(output) if output.is_dir() else output.read_bytes()
    with pytest.raises(gptoss.FileError, match=r"exists already; --force"):
        write(small, output)
    write(small, output, force=True)
    assert before == (leftovers(output) if output.is_dir() else output.read_bytes())
    assert leftovers(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_nothing(
    tmp_path: Path, small: Path, kind: str, stop: type[BaseException]
) -> None:
    def progress(done: int, total: int) -> None:
        if done > total // 2:
            raise stop

    (tmp_path / "old").write_text("kept")
    if kind != "hf":
        (tmp_path / "out").write_text("kept")
    with pytest.raises(stop):
        WRITERS[kind](small, tmp_path / "out", progress=progress, force=True)
    assert leftovers(tmp_path) == (["old"] if kind == "hf" else ["old", "out"])
    if kind != "hf":
        assert (tmp_path / "out").read_text() == "kept"


@pytest.mark.parametrize("kind", WRITERS)
def test_disk_space_is_asked_for_first(
    tmp_path: Path, small: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(gptoss.FileError, match=r"needs 0\.00 GB.*make room") as caught:
        WRITERS[kind](small, tmp_path / "out")
    assert caught.value.found == "1000 bytes" and leftovers(tmp_path) == []


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_leaves_nothing(tmp_path: Path, small: Path, kind: str) -> None:
    def progress(done: int, total: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        WRITERS[kind](small, tmp_path / "out", progress=progress)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("kind", WRITERS)
def test_the_input_is_safe(tmp_path: Path, small: Path, kind: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(small, model)
    for output in (model, model / "model.safetensors", tmp_path):
        with pytest.raises(gptoss.ArgumentError, match="is the input or holds it"):
            WRITERS[kind](model, output, force=True)
    (tmp_path / "link").symlink_to(model)
    with pytest.raises(gptoss.ArgumentError, match="is the input or holds it"):
        WRITERS[kind](model, tmp_path / "link", force=True)
    assert_same_tensors(small, model)


def test_force_replaces_only_models(tmp_path: Path, small: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "diary.txt").write_text("dear diary")
    with pytest.raises(gptoss.FileError, match=r"holds 'diary\.txt'.*not replaced"):
        gptoss.convert(small, tmp_path / "home", force=True)
    with pytest.raises(gptoss.FileError, match="is a directory, not a file"):
        gptoss.quantize(small, tmp_path / "home", "Q8_0", force=True)
    with pytest.raises(gptoss.FileError, match="is not a directory"):
        gptoss.convert(small, tmp_path / "home" / "diary.txt", to="hf", force=True)
    assert (tmp_path / "home" / "diary.txt").read_text() == "dear diary"
    with pytest.raises(gptoss.FileError, match="there is no directory"):
        gptoss.convert(small, tmp_path / "nowhere" / "model.gguf")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"layer_types": ("full_attention",) * 3}, "layer_types"),
        ({"swiglu_limit": 6.0}, "swiglu_limit is 6.0: it is always 7.0"),
        ({"attention_bias": False}, "self_attn.q_proj.bias"),
        ({"yarn": default_yarn() | {"truncate": True}}, "rope truncate is True"),
        ({"yarn": default_yarn() | {"attention_factor": 1.5}}, "attention factor is 1.5"),
    ],
)
def test_what_gguf_cannot_say(
    tmp_path: Path, changes: dict[str, Any], found: str, rng: np.random.Generator
) -> None:
    model = write_model(tmp_path / "model", dataclasses.replace(SPEC, **changes), rng)
    for write in (WRITERS["gguf"], WRITERS["quantize"]):
        with pytest.raises((gptoss.UnsupportedError, gptoss.FormatError), match=found):
            write(model, tmp_path / "out.gguf")
    assert leftovers(tmp_path) == ["model"]


def test_values_that_a_type_cannot_hold(tmp_path: Path, rng: np.random.Generator) -> None:
    model = write_model(tmp_path / "model", SPEC, rng)
    with open(model / "model.safetensors", "r+b") as file, gptoss.Model(model) as opened:
        info = opened.tensor_info("model.layers.1.self_attn.k_proj.weight")
        file.seek(info.file_offset + 2 * 300)
        file.write(np.float32(np.inf).tobytes()[2:])
    message = r"layers\.1\.self_attn\.k_proj\.weight: Q8_0 cannot hold.*inf is not finite"
    with pytest.raises(gptoss.NumericError, match=message) as caught:
        gptoss.quantize(model, tmp_path / "out.gguf", "Q8_0")
    assert caught.value.tensor == info.name and leftovers(tmp_path) == ["model"]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (["blk.0.atn_q.weight=Q8_0"], "matches no weight .did you mean 'blk.0.attn_q.weight'"),
        (["*_exp.weight=Q8_0"], "matches no weight"),
        (["*=F32", "output.weight=Q8_0"], "has no effect: rules before it"),
        (["output_norm.weight=Q8_0"], "names no matrix.*F32, F16, BF16 alone, not Q8_0"),
        (["output.weight=Q9_0"], "'Q9_0'.*did you mean.*'Q8_0'"),
        (["output.weight"], "a rule is GLOB=TYPE"),
        (["=Q8_0"], "a rule is GLOB=TYPE"),
    ],
)
def test_bad_rules(tmp_path: Path, small: Path, rules: list[str], message: str) -> None:
    with pytest.raises(gptoss.ArgumentError, match=message):
        gptoss.quantize(small, tmp_path / "out.gguf", "Q8_0", rules=rules)
    assert leftovers(tmp_path) == []


def test_wrong_arguments(tmp_path: Path, small: Path) -> None:
    with pytest.raises(gptoss.ArgumentError, match=r"'Q4K'.*did you mean 'Q4_K'"):
        gptoss.quantize(small, tmp_path / "out.gguf", "Q4K")
    with pytest.raises(gptoss.ArgumentError, match="'Q2_K'"):
        gptoss.quantize(small, tmp_path / "out.gguf", "Q2_K")
    with pytest.raises(gptoss.ArgumentError, match="'gguf' or 'hf'"):
        gptoss.convert(small, tmp_path / "out", to="onnx")
    with pytest.raises(gptoss.ArgumentError, match="threads must be at least 1"):
        gptoss.convert(small, tmp_path / "out", threads=0)
    with pytest.raises(gptoss.ArgumentError, match=r"option 'rule'.*did you mean 'rules'"):
        gptoss.quantize(small, tmp_path / "out", "Q8_0", rule=["*=F32"])
    with pytest.raises(gptoss.FileError, match="there is no model"):
        gptoss.convert(tmp_path / "nothing", tmp_path / "out.gguf")
    assert leftovers(tmp_path) == []


# ---- compare ----


def test_compare_measures(tmp_path: Path, rng: np.random.Generator) -> None:
    a, b = (write_model(tmp_path / name, SPEC, rng) for name in "ab")
    errors = gptoss.compare(a, b)
    assert len(errors) == len(weights.Source(a).weights())
    with gptoss.Model(a) as first, gptoss.Model(b) as second:
        x, y = (
            model.tensors["model.layers.2.self_attn.v_proj.weight"].astype(np.float64).ravel()
            for model in (first, second)
        )
    error = next(error for error in errors if error.name == "blk.2.attn_v.weight")
    assert error.shape == (32, 256) and error.formats == ("BF16", "BF16")
    assert error.max_abs == np.abs(x - y).max()
    assert np.isclose(error.relative_rms, np.linalg.norm(x - y) / np.linalg.norm(x), rtol=1e-12)
    assert np.isclose(error.cosine, x @ y / np.linalg.norm(x) / np.linalg.norm(y), atol=1e-12)
    assert all(e.relative_rms == 0 and e.cosine == 1 for e in gptoss.compare(a, a))


def test_compare_refuses_others(tmp_path: Path, small: Path, rng: np.random.Generator) -> None:
    fewer = write_model(tmp_path / "fewer", dataclasses.replace(SPEC, num_layers=2), rng)
    wider = write_model(tmp_path / "wider", dataclasses.replace(SPEC, vocab_size=98), rng)
    with pytest.raises(gptoss.FormatError, match=r"has no weight blk\.2\.attn_norm\.weight, which"):
        gptoss.compare(small, fewer)
    with pytest.raises(gptoss.FormatError, match=r"has no weight blk\.2\.attn_norm\.weight, which"):
        gptoss.compare(fewer, small)
    with pytest.raises(gptoss.FormatError, match=r"token_embd.*\(97, 256\) in .*\(98, 256\) in"):
        gptoss.compare(small, wider)


# ---- the command line ----


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_verbs(tmp_path: Path, small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "convert", small, tmp_path / "m.gguf")
    assert code == 0 and "m.gguf: " in out and "MXFP4" in out
    assert err == f"note: no tokenizer is beside {small}: the file has no vocabulary\n"
    code, out, err = run(
        capsys,
        "quantize",
        tmp_path / "m.gguf",
        tmp_path / "q.gguf",
        "--type",
        "Q4_K",
        "--rule",
        "output.weight=Q6_K",
        "--json",
    )
    assert code == 0 and json.loads(out)["formats"]["Q6_K"] == 1
    assert any("stay MXFP4" in note for note in json.loads(out)["notes"])
    code, out, _ = run(capsys, "compare", small, tmp_path / "q.gguf")
    assert code == 0 and "blk.N.attn_q.weight" in out and "weights have equal values" in out
    code, out, _ = run(capsys, "compare", small, tmp_path / "q.gguf", "--tensors")
    assert "blk.2.attn_q.weight" in out
    code, out, _ = run(capsys, "compare", small, tmp_path / "q.gguf", "--json")
    told = json.loads(out)
    formats = {entry["name"]: entry["formats"] for entry in told["weights"]}
    assert formats["output.weight"] == ["BF16", "Q6_K"] and told["text"] is None
    code, _, err = run(capsys, "quantize", small, tmp_path / "q.gguf")
    assert code == 1 and "exists already; --force" in err
    code, _, err = run(capsys, "quantize", small, tmp_path / "x.gguf", "--rule", "blk.9.*=F16")
    assert code == 1 and "matches no weight" in err
    assert leftovers(tmp_path) == ["m.gguf", "q.gguf"]
