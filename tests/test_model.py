"""Opening, describing and closing a Model; its options, names and errors."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from models import Spec

import gptoss
from gptoss import _core
from gptoss.locate import DEMO, hugging_face_cache, locate


@pytest.fixture
def model() -> Iterator[gptoss.Model]:
    with gptoss.Model("demo") as opened:
        yield opened


# ---- what it is ----


def test_config_is_the_files(model: gptoss.Model) -> None:
    file = json.loads((DEMO / "config.json").read_text())
    config = model.config
    assert config.architecture == "gpt_oss"
    assert config.num_layers == file["num_hidden_layers"]
    assert config.num_heads == file["num_attention_heads"]
    assert config.num_kv_heads == file["num_key_value_heads"]
    assert config.num_experts == file["num_local_experts"]
    assert config.max_positions == file["max_position_embeddings"]
    assert config.layer_types == tuple(file["layer_types"])
    for name in ("hidden_size", "intermediate_size", "vocab_size", "head_dim", "sliding_window"):
        assert getattr(config, name) == file[name], name
    assert (config.rms_norm_eps, config.swiglu_limit, config.swiglu_alpha) == (1e-5, 7.0, 1.702)
    assert (config.rope_scaling, config.rope_factor) == ("yarn", file["rope_scaling"]["factor"])
    with pytest.raises(AttributeError):
        config.num_layers = 1  # type: ignore[misc]


def test_describes_itself(model: gptoss.Model) -> None:
    assert model.path == DEMO
    assert model.precision == "fp32"
    assert model.isa in [name for name, available in _core.isas() if available]
    assert model.threads == _core.usable_cores()
    assert model.memory()["mapped"] == (DEMO / "model.safetensors").stat().st_size
    text = repr(model)
    assert "gpt_oss" in text and "8 layers" in text and model.isa in text
    model.close()
    assert "closed" in repr(model)


def test_options_are_taken() -> None:
    with gptoss.Model("demo", isa="scalar", threads=3, precision="fp32", device="cpu") as model:
        assert (model.isa, model.threads, model.precision) == ("scalar", 3, "fp32")


def test_files_read_into_memory_are_the_same(model: gptoss.Model) -> None:
    seen: list[tuple[int, int]] = []
    with gptoss.Model("demo", mmap=False, progress=lambda *counts: seen.append(counts)) as copied:
        memory = copied.memory()
        assert memory["mapped"] == 0 and memory["read"] == model.memory()["mapped"]
        assert seen and seen[-1][0] == seen[-1][1]
        for name in model.tensors:
            assert np.array_equal(
                copied.tensors[name].view(np.uint8), model.tensors[name].view(np.uint8)
            )


def test_exception_in_progress_stops_opening() -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    for options in ({"mmap": False}, {"verify": True}):
        with pytest.raises(KeyboardInterrupt):
            gptoss.Model("demo", progress=stop, **options)


def test_verify(model: gptoss.Model) -> None:
    seen: list[tuple[int, int]] = []
    model.verify(progress=lambda *counts: seen.append(counts))
    assert seen[-1][0] == seen[-1][1] > 1_000_000


# ---- tensors and experts ----


def test_tensors_are_those_of_the_file(model: gptoss.Model) -> None:
    file = DEMO / "model.safetensors"
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    assert set(model.tensors) == set(header) and len(model.tensors) == len(header)
    for name, entry in header.items():
        info = model.tensor_info(name)
        begin, end = entry["data_offsets"]
        assert (info.name, info.shape, info.num_bytes) == (name, tuple(entry["shape"]), end - begin)
        assert (info.file, info.file_offset) == (file, 8 + length + begin)
        array = model.tensors[name]
        assert (array.shape, array.dtype) == (info.shape, info.dtype)
        assert array.tobytes() == data[8 + length + begin : 8 + length + end]
    assert model.tensors["model.norm.weight"].dtype.name == "bfloat16"


def test_unknown_tensor(model: gptoss.Model) -> None:
    for access in (model.tensors.__getitem__, model.tensor_info):
        with pytest.raises(KeyError, match=r"did you mean 'model\.norm\.weight'") as caught:
            access("model.norm.weigth")
        assert isinstance(caught.value, gptoss.Error)
        assert caught.value.tensor == "model.norm.weigth"
    assert "nothing" not in model.tensors and model.tensors.get("nothing") is None


@pytest.mark.parametrize(
    ("layout", "dtype"), [("hf", "MXFP4"), ("original", "MXFP4"), ("hf", "BF16"), ("hf", "F32")]
)
def test_experts_are_decoded(make_directory: Callable[..., Path], layout: str, dtype: str) -> None:
    spec = Spec(hidden_size=64, intermediate_size=96, expert_dtype=dtype)
    expected = reference.Model(make_directory(spec)).experts(1)
    with gptoss.Model(make_directory(spec, layout=layout)) as model:
        for number in range(spec.num_experts):
            expert = model.expert(layer=1, expert=number)
            assert expert.gate is expert.gate
            gate_up, down = expected.gate_up[number], expected.down[number]
            assert np.array_equal(expert.gate, gate_up[0::2])
            assert np.array_equal(expert.up, gate_up[1::2])
            assert np.array_equal(expert.down, down)
            assert np.array_equal(expert.gate_bias, expected.gate_up_bias[number][0::2])
            assert np.array_equal(expert.up_bias, expected.gate_up_bias[number][1::2])
            assert np.array_equal(expert.down_bias, expected.down_bias[number])
            assert expert.gate.dtype == np.float32 and expert.gate.flags.writeable
            planes = (expert.gate_up_blocks, expert.gate_up_scales)
            planes += (expert.down_blocks, expert.down_scales)
            if dtype == "MXFP4":
                shapes = [(192, 2, 16), (192, 2), (64, 3, 16), (64, 3)]
                assert [plane.shape for plane in planes if plane is not None] == shapes
            else:
                assert planes == (None,) * 4


@pytest.mark.parametrize(("layer", "expert"), [(-1, 0), (8, 0), (0, 8), (0, -1), (2**40, 0)])
def test_experts_that_are_not(model: gptoss.Model, layer: int, expert: int) -> None:
    with pytest.raises(gptoss.ArgumentError):
        model.expert(layer, expert)


# ---- refusals ----


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"thread": 2}, "did you mean 'threads'"),
        ({"colour": 2}, "the options are"),
        ({"threads": 0}, "at least|from 1"),
        ({"threads": 2.5}, "integer"),
        ({"threads": 2**40}, "threads"),
        ({"isa": "avx1024"}, "avx1024"),
        ({"isa": 512}, "isa"),
        ({"precision": "int3"}, "int3"),
        ({"device": "cuda"}, "cuda"),
        ({"progress": 3}, "progress"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises((gptoss.ArgumentError, gptoss.UnsupportedError), match=words):
        gptoss.Model("demo", **options)


def test_cannot_be_copied_or_pickled(model: gptoss.Model) -> None:
    generator = gptoss.Generator(model)
    for handle in (model, generator):
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(gptoss.UnsupportedError, match="copied"):
                attempt(handle)
        with pytest.raises(TypeError):
            pickle.dumps(handle._core)


def test_handles_are_closed_types() -> None:
    for handle in (_core.Model, _core.Generator, _core.ArrayView):
        with pytest.raises(TypeError):
            type("Child", (handle,), {})
        with pytest.raises(TypeError):
            handle.extra = 1  # type: ignore[union-attr]
    with pytest.raises(TypeError):
        _core.ArrayView()


def test_errors_know_their_parts(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "model.safetensors"
    with open(file, "r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(gptoss.FormatError) as caught:
        gptoss.Model(tmp_path)
    error = caught.value
    assert isinstance(error, ValueError) and error.file == str(file)
    assert str(file) in str(error) and error.expected and error.found
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.file) == (type(error), str(error), error.file)
    with open(file, "wb"):
        pass
    os.chmod(file, 0)
    if os.geteuid() != 0:
        with pytest.raises(gptoss.FileError) as refused:
            gptoss.Model(tmp_path)
        assert isinstance(refused.value, OSError) and refused.value.errno == 13


def test_every_refused_allocation_is_an_exception() -> None:
    """Each allocation in turn fails, until the work is done without one failing."""

    def work() -> int:
        with gptoss.Model("demo", threads=2) as model:
            generator = gptoss.Generator(model, max_context=64)
            generator.capture("layers.*.router*")
            generator.prefill([1, 2, 3], all_logits=True)
            token = generator.fork().sample(gptoss.Sampling(seed=1, repetition_penalty=1.1))
            _core.top_logprobs(generator.logits, 3)
            generator.rewind(1)
            return token

    expected = work()
    for failing in range(1, 10_000):
        _core.fail_allocation(failing)
        try:
            token = work()
        except gptoss.OutOfMemoryError as error:
            assert str(error) and isinstance(error, MemoryError)
            continue
        finally:
            counted = _core.fail_allocation(0)
        assert token == expected
        if counted < failing:
            break
    assert failing > 50


# ---- closing ----


def test_everything_after_close_is_refused() -> None:
    model = gptoss.Model("demo")
    tensors, expert = model.tensors, model.expert(0, 0)
    model.close()
    model.close()
    assert model.closed
    for use in (
        lambda: model.config,
        lambda: model.tensors,
        lambda: model.tokenizer,
        lambda: model.isa,
        lambda: model.threads,
        lambda: model.precision,
        lambda: tensors["model.norm.weight"],
        lambda: expert.gate,
        lambda: expert.gate_up_blocks,
        model.memory,
        model.verify,
        model.__enter__,
        lambda: model.tensor_info("model.norm.weight"),
        lambda: gptoss.Generator(model),
    ):
        with pytest.raises(gptoss.StateError, match="the model is closed"):
            use()


def test_close_under_views_and_generators() -> None:
    model = gptoss.Model("demo")
    arrays = [model.tensors["model.norm.weight"], model.tensors["lm_head.weight"][3:5]]
    generator = gptoss.Generator(model)
    with pytest.raises(gptoss.InUseError, match="2 arrays of it and 1 Generator are") as caught:
        model.close()
    assert isinstance(caught.value, BufferError)
    assert not model.closed and len(model.tensors) > 0
    arrays.clear()
    with pytest.raises(BufferError, match="0 arrays of it and 1 Generator are"):
        model.close()
    generator.close()
    model.close()
    with pytest.raises(gptoss.StateError, match="the Generator is closed"):
        generator.step(1)


def test_leaving_the_block_defers() -> None:
    with gptoss.Model("demo") as model:
        generator = gptoss.Generator(model)
        logits = generator.prefill([1, 2, 3]).copy()
    assert model.closed
    generator.rewind(2)
    assert np.array_equal(generator.step(3), logits)  # what is alive goes on


# ---- tokenizer ----


def test_tokenizer_is_found(tmp_path: Path, make_directory: Callable[..., Path]) -> None:
    with gptoss.Model("demo") as model:
        assert model.tokenizer is model.tokenizer
        assert model.tokenizer is not None and model.tokenizer.path == DEMO / "tokenizer.json"
    with gptoss.Model(DEMO / "model.safetensors") as model:
        assert model.tokenizer is not None
    bare = make_directory(Spec())
    with gptoss.Model(bare) as model:
        assert model.tokenizer is None and model.default_sampling == gptoss.Sampling()
    for tokenizer in (DEMO, DEMO / "tokenizer.json", gptoss.Tokenizer(DEMO)):
        with gptoss.Model(bare, tokenizer=tokenizer) as model:
            assert model.tokenizer is not None and model.tokenizer.vocab_size > 4000


def test_tokenizer_beside_the_original_layout(
    tmp_path: Path, make_directory: Callable[..., Path]
) -> None:
    shutil.copytree(make_directory(Spec(), layout="original"), tmp_path / "original")
    shutil.copy(DEMO / "tokenizer.json", tmp_path)
    with gptoss.Model(tmp_path / "original") as model:
        assert model.tokenizer is not None


def test_default_sampling(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "generation_config.json"
    for values, expected in (
        ({"do_sample": False, "temperature": 0.6}, gptoss.Sampling(temperature=0)),
        ({"do_sample": True, "top_k": 7}, gptoss.Sampling(top_k=7)),
        ({"temperature": 0.6, "top_p": 0.9}, gptoss.Sampling(temperature=0.6, top_p=0.9)),
    ):
        file.write_text(json.dumps(values))
        with gptoss.Model(tmp_path) as model:
            assert model.default_sampling == expected
    file.write_text('{"top_p": 1.5}')
    with (
        gptoss.Model(tmp_path) as model,
        pytest.raises(gptoss.FormatError, match=r"top_p") as error,
    ):
        _ = model.default_sampling
    assert error.value.file == str(file)


# ---- names ----


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_demo_is_the_model_that_comes_with_gptoss(cache: Path) -> None:
    assert locate("demo") == DEMO
    (cache.parent / "demo").mkdir()
    assert locate("demo") == Path("demo")  # an existing path comes first
    assert locate(cache.parent) == cache.parent


def test_hugging_face_cache(cache: Path) -> None:
    repository = cache / "models--openai--gpt-oss-20b"
    for commit, layout in (("old", "original"), ("new", ".")):
        place = repository / "snapshots" / commit / layout
        place.mkdir(parents=True)
        (place / "model.safetensors").touch()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("new\n")
    assert locate("openai/gpt-oss-20b") == repository / "snapshots" / "new"
    (repository / "refs" / "main").write_text("old")
    assert locate("openai/gpt-oss-20b") == repository / "snapshots" / "old" / "original"
    with pytest.raises(gptoss.FileError, match="did you mean 'openai/gpt-oss-20b'"):
        locate("openai/gpt-oss-20")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("HF_HOME", "/h")
    assert hugging_face_cache() == cache
    monkeypatch.delenv("HF_HUB_CACHE")
    assert hugging_face_cache() == Path("/h/hub")
    monkeypatch.delenv("HF_HOME")
    assert hugging_face_cache() == Path("/x/huggingface/hub")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert hugging_face_cache() == Path("~/.cache/huggingface/hub").expanduser()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dmeo", "did you mean 'demo'"),
        ("/nowhere/at/all", "'/nowhere/at' does not exist"),
        ("openai/gpt-oss-120b", "hf download openai/gpt-oss-120b"),
        ("", "is|directory|model"),
    ],
)
def test_names_that_are_not(cache: Path, name: str, words: str) -> None:
    with pytest.raises(gptoss.Error, match=words) as caught:
        gptoss.Model(name)
    assert caught.value.file is not None
    assert isinstance(caught.value, OSError | ValueError)


@pytest.mark.parametrize("name", [None, 7, b"demo"])
def test_names_of_other_types(name: Any) -> None:
    with pytest.raises(gptoss.ArgumentError):
        gptoss.Model(name)
