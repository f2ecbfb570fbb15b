"""gpt-oss files of Ollama's own converter give the bits of the same weights as llama.cpp writes
them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf_models
import numpy as np
import pytest
from gguf_models import Values, raw_tensor, read_raw, write_parts, write_raw
from models import Spec, hf_config
from support import assert_same_bits, open_generator, random_tokens

import gptoss
from gptoss import write_gguf

pytestmark = pytest.mark.usefixtures("one_minute", "modest_memory")

SPEC = Spec(num_layers=3, hidden_size=96, intermediate_size=160, num_heads=4, num_kv_heads=2)
Tensors = dict[str, tuple[write_gguf.Tensor, bytes]]


@pytest.fixture(autouse=True)
def early_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(write_gguf.TYPES, "early", (4, 32, 17))


def ollama_values(values: Values) -> Values:
    """Keys as Ollama's converter names them, and without those that it leaves out."""
    renamed = {key.replace("gpt-oss.", "gptoss."): value for key, value in values.items()}
    renamed["general.architecture"] = (8, "gptoss")
    del renamed["gptoss.expert_feed_forward_length"]
    for key in ("type", "yarn_beta_fast", "yarn_beta_slow"):
        renamed.pop(f"gptoss.rope.scaling.{key}", None)
    return renamed


def early_blocks(data: bytes) -> bytes:
    """Blocks of elements j and j + 16 a byte -> 2 j and 2 j + 1."""
    blocks = np.frombuffer(data, np.uint8).reshape(-1, 17)
    codes = np.concatenate([blocks[:, 1:] & 15, blocks[:, 1:] >> 4], axis=1)
    return np.concatenate([blocks[:, :1], codes[:, ::2] | codes[:, 1::2] << 4], axis=1).tobytes()


def fuse(tensors: Tensors, layer: int) -> None:
    """Query, key and value into one tensor; gate and up into one of alternating rows."""
    prefix = f"blk.{layer}."
    for kind in ("weight", "bias"):
        parts = [tensors.pop(f"{prefix}attn_{which}.{kind}") for which in "qkv"]
        rows = sum(tensor.shape[0] for tensor, _ in parts)
        shape = (rows, *parts[0][0].shape[1:])
        name = f"{prefix}attn_qkv.{kind}"
        data = b"".join(data for _, data in parts)
        tensors[name] = (raw_tensor(name, shape, parts[0][0].type), data)

        gate, up = (tensors.pop(f"{prefix}ffn_{part}_exps.{kind}") for part in ("gate", "up"))
        experts, inner, *columns = gate[0].shape
        lines = [np.frombuffer(d, np.uint8).reshape(experts, inner, -1) for _, d in (gate, up)]
        name = f"{prefix}ffn_gate_up_exps.{kind}"
        tensor = raw_tensor(name, (experts, 2 * inner, *columns), gate[0].type)
        tensors[name] = (tensor, np.stack(lines, axis=2).tobytes())


def ollama_tensors(tensors: Tensors, *, fused: bool, early: bool) -> Tensors:
    tensors = dict(tensors)
    for layer in range(SPEC.num_layers):
        if fused:
            fuse(tensors, layer)
    result: Tensors = {}
    for name, (tensor, data) in tensors.items():
        new = name.replace("attn_output.", "attn_out.").replace("post_attention_norm", "ffn_norm")
        new = new.replace("attn_sinks.weight", "attn_sinks")
        kind = "early" if early and tensor.type == "MXFP4" else tensor.type
        result[new] = (
            raw_tensor(new, tensor.shape, kind),
            early_blocks(data) if kind == "early" else data,
        )
    return result


@pytest.fixture(scope="module", params=["bf16", "q8_0"])
def sound(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Values, Tensors]:
    path = tmp_path_factory.mktemp("sound") / "m.gguf"
    spec = Spec(**(vars(SPEC) | {"yarn": hf_config(SPEC)["rope_scaling"]}))
    gguf_models.write_model(path, spec, np.random.default_rng(5), request.param)
    values, tensors = read_raw(path)
    return path, values, {tensor.name: (tensor, data) for tensor, data in tensors}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("mmap", [True, False])
def test_same_bits(
    tmp_path: Path, sound: tuple[Path, Values, Tensors], fused: bool, early: bool, mmap: bool
) -> None:
    path, values, tensors = sound
    with gptoss.Model(path) as model:
        config, names = model.config, list(model.tensors)
        tokens = random_tokens(model, 40, 3)
        expected = open_generator(model, 40).prefill(tokens, all_logits=True)
        expert = model.expert(1, 2)
        gate, up_bias = expert.gate, expert.up_bias
    made = ollama_tensors(tensors, fused=fused, early=early)
    other = write_raw(tmp_path / "o.gguf", ollama_values(values), list(made.values()))
    seen: list[tuple[int, int]] = []
    with gptoss.Model(other, mmap=mmap, progress=lambda *at: seen.append(at)) as model:
        model.verify()
        assert model.config == config
        assert list(model.tensors) == names
        for name, (tensor, data) in tensors.items():
            assert model.tensor_info(name).element_shape == tensor.shape
            assert model.tensors[name].tobytes() == data, name
        logits = open_generator(model, 40).prefill(tokens, all_logits=True)
        assert_same_bits(logits, expected, "logits")
        assert np.array_equal(model.expert(1, 2).gate, gate)
        assert np.array_equal(model.expert(1, 2).up_bias, up_bias)
        # What lies in the file as the engine wants it is used there.
        assert (model.memory()["read"] > 0) == (fused or early or not mmap)
    if seen:
        assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize(("fused", "early"), [(True, True), (True, False), (False, True)])
def test_in_parts(
    tmp_path: Path,
    sound: tuple[Path, Values, Tensors],
    fused: bool,
    early: bool,
    count: int,
    mmap: bool,
) -> None:
    """Only the first part says whose converter made them, and how many heads there are."""
    _, values, tensors = sound
    made = list(ollama_tensors(tensors, fused=fused, early=early).values())
    write_parts(tmp_path, ollama_values(values), made, count)
    seen: list[tuple[int, int]] = []
    with gptoss.Model(tmp_path, mmap=mmap, progress=lambda *at: seen.append(at)) as model:
        assert list(model.tensors) == sorted(tensors)
        for name, (tensor, data) in tensors.items():
            assert model.tensor_info(name).element_shape == tensor.shape
            assert model.tensors[name].tobytes() == data, name
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize("architecture", ["gpt-oss", "llama"])
def test_number_4_elsewhere(
    tmp_path: Path, sound: tuple[Path, Values, Tensors], architecture: str
) -> None:
    """In later parts, too, the type is Ollama's alone."""
    _, values, tensors = sound
    made = list(ollama_tensors(tensors, fused=False, early=True).values())
    write_parts(tmp_path, values | {"general.architecture": (8, architecture)}, made, 2)
    with pytest.raises(gptoss.UnsupportedError, match="number 4"):
        gptoss.Model(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "missing"),
    [
        ("blk.0.attn_qkv.weight", (255, 97), "blk.0.attn_q.weight"),
        ("blk.0.attn_qkv.weight", (), "blk.0.attn_q.weight"),
        ("blk.0.attn_qkv.bias", (0,), "blk.0.attn_q.bias"),
        ("blk.1.ffn_gate_up_exps.weight", (4, 3, 32), "blk.1.ffn_gate_exps.weight"),
        ("blk.1.ffn_gate_up_exps.weight", (64,), "blk.1.ffn_gate_exps.weight"),
        ("blk.1.ffn_gate_up_exps.weight", (4, 320), "blk.1.ffn_gate_exps.weight"),
        ("blk.1.ffn_gate_up_exps.weight", (4, 2, 0), "blk.1.ffn_gate_exps.weight"),
        ("blk.1.ffn_gate_up_exps.weight", (4, 0, 32), "blk.1.ffn_gate_exps.weight"),
        ("blk.1.ffn_gate_up_exps.bias", (4, 319), "blk.1.ffn_gate_exps.bias"),
    ],
)
def test_fused_tensors_of_impossible_shapes(
    tmp_path: Path, sound: tuple[Path, Values, Tensors], name: str, shape: Any, missing: str
) -> None:
    _, values, tensors = sound
    made = ollama_tensors(tensors, fused=True, early=True)
    old = made[name][0].type
    kind = "early" if "exps.weight" in name else "F32" if "bias" in name else "BF16"
    assert old in (kind, "Q8_0")
    tensor = raw_tensor(name, shape, kind)
    made[name] = (tensor, bytes(tensor.num_bytes))
    path = write_raw(tmp_path / "o.gguf", ollama_values(values), list(made.values()))
    with pytest.raises(gptoss.FormatError, match=f"{missing}|whole blocks") as caught:
        gptoss.Model(path)
    assert caught.value.tensor in (missing, name)


@pytest.mark.parametrize("heads", [None, (4, 0), (4, 2**32 - 1), (8, "4"), (6, 0.5)])
def test_heads_that_cannot_be(
    tmp_path: Path, sound: tuple[Path, Values, Tensors], heads: Any
) -> None:
    _, values, tensors = sound
    values = ollama_values(values)
    del values["gptoss.attention.head_count"]
    if heads is not None:
        values["gptoss.attention.head_count"] = heads
    made = ollama_tensors(tensors, fused=True, early=True)
    with pytest.raises(gptoss.FormatError, match="head_count: expected"):
        gptoss.Model(write_raw(tmp_path / "o.gguf", values, list(made.values())))


def test_every_allocation_may_fail(tmp_path: Path, sound: tuple[Path, Values, Tensors]) -> None:
    _, values, tensors = sound
    made = ollama_tensors(tensors, fused=True, early=True)
    path = write_raw(tmp_path / "o.gguf", ollama_values(values), list(made.values()))
    gptoss._core.fail_allocation(0)
    gptoss.Model(path).close()
    count = gptoss._core.fail_allocation(0)
    for n in range(1, count + 1):
        gptoss._core.fail_allocation(n)
        try:
            gptoss.Model(path).close()
        except gptoss.Error:
            pass
        finally:
            gptoss._core.fail_allocation(0)


def test_stopped_while_tensors_are_rearranged(
    tmp_path: Path, sound: tuple[Path, Values, Tensors]
) -> None:
    _, values, tensors = sound
    made = ollama_tensors(tensors, fused=True, early=True)
    path = write_raw(tmp_path / "o.gguf", ollama_values(values), list(made.values()))

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gptoss.Model(path, progress=stop)
