"""Arrays over the engine's memory: nothing is copied, nothing can be written, nothing dangles."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from models import Spec, random_tensors, safetensors_header, write_model, write_safetensors
from support import assert_same_bits, random_tokens

import gptoss
from gptoss import _core
from gptoss.locate import DEMO
from gptoss.model import DTYPES

FILE = DEMO / "model.safetensors"


@pytest.fixture
def model() -> Iterator[gptoss.Model]:
    with gptoss.Model("demo") as opened:
        yield opened


@pytest.fixture
def generator(model: gptoss.Model) -> gptoss.Generator:
    return gptoss.Generator(model, max_context=300)


def mappings() -> list[tuple[int, int, int]]:
    """(first address, end address, offset in the file) of each mapping of the demo model."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(FILE)):
            first, end, offset = re.match(r"(\w+)-(\w+) \S+ (\w+)", line).groups()  # type: ignore[union-attr]
            found.append((int(first, 16), int(end, 16), int(offset, 16)))
    return found


def address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def assert_read_only(array: Any) -> None:
    assert not array.flags.writeable
    with pytest.raises(ValueError):
        array[...] = 0
    with pytest.raises(ValueError):
        array.flags.writeable = True


# ---- tensors ----


def test_tensors_are_the_mapped_file(model: gptoss.Model) -> None:
    for name, array in model.tensors.items():
        info = model.tensor_info(name)
        places = [
            first - offset + info.file_offset
            for first, end, offset in mappings()
            if first <= address(array) < end
        ]
        assert places == [address(array)], name
        assert np.shares_memory(array, model.tensors[name])
        assert_read_only(array)


def test_bfloat16(model: gptoss.Model) -> None:
    array = model.tensors["model.norm.weight"]
    assert array.dtype == ml_dtypes.bfloat16
    assert np.isfinite(array.astype(np.float32)).all()


def test_planes_of_an_expert_are_the_mapped_file(model: gptoss.Model) -> None:
    expert = model.expert(2, 5)
    prefix = "model.layers.2.mlp.experts."
    for plane, name in (
        (expert.gate_up_blocks, "gate_up_proj_blocks"),
        (expert.gate_up_scales, "gate_up_proj_scales"),
        (expert.down_blocks, "down_proj_blocks"),
        (expert.down_scales, "down_proj_scales"),
    ):
        whole = model.tensors[prefix + name]
        assert plane is not None and np.shares_memory(plane, whole)
        assert address(plane) == address(whole) + 5 * whole.strides[0]
        assert_read_only(plane)


def test_tensors_outlive_the_model() -> None:
    model = gptoss.Model("demo")
    expected = model.tensors["model.norm.weight"].tobytes()
    array = model.tensors["model.norm.weight"]
    before = len(mappings())
    del model
    gc.collect()
    assert len(mappings()) == before and array.tobytes() == expected
    del array
    gc.collect()
    assert len(mappings()) == before - 1


def test_leaving_the_block_unmaps_with_the_last_array() -> None:
    before = len(mappings())
    with gptoss.Model("demo") as model:
        row = model.tensors["lm_head.weight"][7]
    assert len(mappings()) == before + 1 and np.isfinite(row.astype(np.float32)).all()
    del row
    assert len(mappings()) == before


@pytest.mark.parametrize("pad", [True, False])
def test_every_dtype_of_a_file(tmp_path: Path, pad: bool) -> None:
    """Tensors the model has no use for are there to be read, aligned in the file or not."""
    spec = Spec(num_layers=1)
    write_model(tmp_path, spec, np.random.default_rng(0))
    tensors = random_tensors(spec, np.random.default_rng(0))
    header = safetensors_header(tensors)
    end = max(entry["data_offsets"][1] for name, entry in header.items() if "." in name)
    for name, dtype in DTYPES.items():
        tensors[f"extra.{name}"] = np.arange(6).reshape(2, 3).astype(dtype)
        size = 6 * dtype.itemsize
        where = [end, end + size]
        header[f"extra.{name}"] = {"dtype": name, "shape": [2, 3], "data_offsets": where}
        end += size
    write_safetensors(tmp_path / "model.safetensors", tensors, header, pad)
    with gptoss.Model(tmp_path) as model:
        for name, expected in tensors.items():
            array = model.tensors[name]
            assert (array.dtype, array.shape) == (expected.dtype, expected.shape), name
            assert array.tobytes() == expected.tobytes(), name
            assert_read_only(array)


# ---- logits ----


def test_logits_are_one_live_array(generator: gptoss.Generator) -> None:
    logits = generator.prefill([1, 2, 3])
    assert logits is generator.logits
    assert (logits.shape, logits.dtype) == ((4096,), np.float32)
    assert_read_only(logits)
    where, first = address(logits), logits.copy()
    assert generator.step(4) is logits
    assert address(logits) == where
    assert not np.array_equal(logits, first)  # live
    del logits
    assert address(generator.logits) == where  # a new array, the same memory


def test_logits_outlive_generator_and_model() -> None:
    model = gptoss.Model("demo")
    generator = gptoss.Generator(model)
    logits = generator.prefill([1, 2, 3])
    expected = logits.copy()
    del model, generator
    gc.collect()
    assert_same_bits(logits, expected)


def test_all_logits_are_the_callers(generator: gptoss.Generator) -> None:
    every = generator.prefill([1, 2, 3], all_logits=True)
    assert every.flags.owndata and every.flags.writeable
    assert not np.shares_memory(every, generator.logits)


# ---- cache ----


@pytest.mark.parametrize(("kv_dtype", "dtype"), [("f16", np.float16), ("f32", np.float32)])
def test_kv_is_the_cache(model: gptoss.Model, kv_dtype: str, dtype: Any) -> None:
    generator = gptoss.Generator(model, kv_dtype=kv_dtype)
    generator.prefill(random_tokens(model, 100))
    first = [generator.kv(layer) for layer in range(model.config.num_layers)]
    generator.prefill(random_tokens(model, 50, seed=1))
    for layer, old in enumerate(first):
        for before, after in zip(old, generator.kv(layer), strict=True):
            assert (before.shape, after.shape) == ((2, 100, 64), (2, 150, 64))
            assert before.dtype == dtype
            assert address(before) == address(after)  # it never moves
            assert np.shares_memory(before, after)
            assert_same_bits(before, after[:, :100])
            assert_read_only(before)


def test_kv_of_a_sliding_layer_begins_at_what_is_held(model: gptoss.Model) -> None:
    generator = gptoss.Generator(model, max_context=2000)
    generator.capture("layers.0.k", "layers.0.v", keep="all")
    generator.prefill(random_tokens(model, 2000))
    first, end = generator.kv_range(0)
    assert 0 < first < 2000 - 128 and end == 2000
    for view, name in zip(generator.kv(0), "kv", strict=True):
        rows = generator.taps[f"layers.0.{name}"][first:end]
        assert np.abs(view - rows.swapaxes(0, 1)).max() < 2e-2  # rounded to float16


def test_kv_is_live(generator: gptoss.Generator) -> None:
    generator.prefill([1, 2, 3, 4])
    keys, _ = generator.kv(1)
    before = keys.copy()
    generator.rewind(2)
    generator.prefill([9, 8])
    assert_same_bits(keys[:, :2], before[:, :2])
    assert not np.array_equal(keys[:, 2:], before[:, 2:])


def test_empty_kv(generator: gptoss.Generator) -> None:
    keys, values = generator.kv(0)
    assert keys.shape == values.shape == (2, 0, 64)


def test_close_counts_arrays(generator: gptoss.Generator) -> None:
    arrays = [*generator.kv(0), generator.prefill([1])]
    with pytest.raises(gptoss.InUseError, match="3 arrays of it are alive"):
        generator.close()
    assert generator.step(2) is arrays[2]  # nothing happened
    del arrays[:2]
    with pytest.raises(BufferError, match="1 array of it is alive"):
        generator.close()
    arrays.clear()
    generator.close()
    generator.close()
    for use in (lambda: generator.position, lambda: generator.logits, lambda: generator.step(1)):
        with pytest.raises(gptoss.StateError, match="the Generator is closed"):
            use()
    assert "closed" in repr(generator)


def test_a_view_of_a_generator_holds_the_model() -> None:
    model = gptoss.Model("demo")
    generator = gptoss.Generator(model)
    logits = generator.prefill([1, 2])
    del generator
    with pytest.raises(gptoss.InUseError, match="0 arrays of it and 1 Generator are"):
        model.close()
    del logits
    model.close()


def test_leaving_the_block_of_a_generator_defers(model: gptoss.Model) -> None:
    with gptoss.Generator(model) as generator:
        logits = generator.prefill([1, 2])
        expected = logits.copy()
    with pytest.raises(gptoss.StateError):
        _ = generator.position
    assert_same_bits(logits, expected)


def test_cycles_through_arrays_are_collected() -> None:
    class Notebook:
        pass

    model = gptoss.Model("demo")
    page: Any = Notebook()
    page.generator = gptoss.Generator(model)
    page.logits = page.generator.prefill([1, 2, 3])
    page.generator.page = page
    page.itself = page
    del page
    gc.collect()
    model.close()


# ---- taps and tokens ----


def test_taps_are_the_readers(generator: gptoss.Generator) -> None:
    generator.capture("final_norm", "layers.0.q")
    generator.prefill([1, 2, 3])
    taps = generator.taps
    norm = taps["final_norm"]
    assert norm is not None and norm.flags.writeable
    assert np.shares_memory(norm, taps["final_norm"])
    assert taps.first_position == 0
    norm[:] = 0
    generator.step(4)
    assert taps.first_position == 3 and taps["final_norm"].shape == (1, 256)
    assert taps["final_norm"].any() and not norm.any()
    model = generator.model
    generator.close()
    assert not norm.any()  # a tap is no view: it kept nothing from closing
    model.close()


def test_taps_of_all_calls_follow_a_rewind(generator: gptoss.Generator) -> None:
    generator.prefill([7, 7])
    generator.capture("embedding", keep="all")
    generator.prefill([1, 2, 3])
    generator.step(4)
    whole = generator.taps["embedding"]
    assert (generator.taps.first_position, whole.shape) == (2, (4, 256))
    generator.rewind(4)
    assert_same_bits(generator.taps["embedding"], whole[:2])
    generator.prefill([3, 4, 5])
    assert_same_bits(generator.taps["embedding"][:4], whole)
    assert generator.taps["embedding"].shape == (5, 256)
    generator.rewind(1)
    assert len(generator.taps) == 0
    generator.step(1)
    assert generator.taps.first_position == 1
    generator.reset()
    assert len(generator.taps) == 0


def test_names_of_taps(generator: gptoss.Generator) -> None:
    generator.capture("final_norm")
    for name, words in (
        ("final_norm", "from the next call on"),
        ("embedding", "is not captured"),
        ("embeding", "did you mean 'embedding'"),
    ):
        with pytest.raises(KeyError, match=words):
            _ = generator.taps[name]
    for options in ({"keep": "some"}, {"max_bytes": -1}, {"max_bytes": 1.5}):
        with pytest.raises(gptoss.ArgumentError):
            generator.capture("final_norm", **options)


def test_tokens_are_a_read_only_copy(generator: gptoss.Generator) -> None:
    generator.prefill([1, 2, 3])
    tokens = generator.tokens
    assert (tokens.dtype, tokens.tolist()) == (np.int32, [1, 2, 3])
    assert_read_only(tokens)
    generator.step(4)
    assert tokens.tolist() == [1, 2, 3]


# ---- the buffers themselves ----


def test_buffer_protocol(generator: gptoss.Generator) -> None:
    generator.prefill([1, 2, 3])
    logits = memoryview(generator._core.logits())
    assert (logits.format, logits.shape, logits.strides) == ("f", (4096,), (4,))
    assert logits.readonly and logits.c_contiguous and logits.nbytes == 4 * 4096
    keys = memoryview(generator._core.kv(0)[0])
    assert (keys.format, keys.shape, keys.itemsize) == ("e", (2, 3, 64), 2)
    assert keys.strides[1:] == (128, 2) and keys.strides[0] > 3 * 128
    assert not keys.c_contiguous
    assert keys.tobytes() == np.ascontiguousarray(generator.kv(0)[0]).tobytes()
    with pytest.raises(BufferError, match="contiguous"):
        _core.top_logprobs(generator._core.kv(0)[0], 1)  # wants plain bytes
    with pytest.raises((TypeError, BufferError)):
        generator._core.prefill([1], generator._core.logits(), None)  # wants to write


def test_too_small_a_buffer_is_refused(generator: gptoss.Generator) -> None:
    with pytest.raises(ValueError, match="too small"):
        generator._core.prefill([1, 2], np.empty(4096, np.float32), None)
    with pytest.raises(ValueError, match="float32 values"):
        generator.model._core.decode_expert(0, 0, "gate", np.empty(7, np.float32))
    with pytest.raises(ValueError, match="no part"):
        generator.model._core.decode_expert(0, 0, "gait", np.empty(7, np.float32))
    assert generator.position == 0
