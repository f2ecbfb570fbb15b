"""A model on several devices: layers over GPUs, and on the CPU what a limit leaves no room for. The
one Vulkan device there is stands for two."""

from __future__ import annotations

import gc
import os
import secrets
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dense_models
import numpy as np
import pytest
from models import Spec, write_model
from support import assert_same_bits, ctrl_c_after, open_generator, random_tokens
from test_adapters import write_adapter
from vulkan_support import TOLERANCE, assert_close, feed_both, needs_vulkan

import gptoss
from gptoss import _core
from gptoss.placement import read_devices, read_limits, read_size

SEED = secrets.randbelow(2**32)
SPEC = Spec(num_layers=4, max_positions=128)
LLAMA = dense_models.Llama(num_layers=4)
GPT2 = dense_models.Gpt2(num_layers=3)
FAMILIES = ("gpt_oss", "llama", "gpt2")
TWO = ["vulkan", "vulkan:0"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    print(f"seed {SEED}")
    root, rng = tmp_path_factory.mktemp("placed"), np.random.default_rng(SEED)
    return {
        "gpt_oss": write_model(root / "gpt_oss", SPEC, rng),
        "llama": dense_models.write_hf(root / "llama", LLAMA, rng, "BF16"),
        "gpt2": dense_models.write_gguf(root / "gpt2.gguf", GPT2, rng, "Q8_0"),
    }


@pytest.fixture(scope="module")
def on_gpu(paths: dict[str, Path]) -> Iterator[dict[str, gptoss.Model]]:
    models = {
        name: gptoss.Model(path, device="vulkan", precision="fp32") for name, path in paths.items()
    }
    yield models


@pytest.fixture(scope="module")
def on_cpu(paths: dict[str, Path]) -> dict[str, gptoss.Model]:
    return {name: gptoss.Model(path) for name, path in paths.items()}


def place(path: Path, limit: Any = None, device: Any = "vulkan", **how: Any) -> gptoss.Model:
    return gptoss.Model(path, device=device, gpu_memory=limit, precision="fp32", **how)


def holds(model: gptoss.Model) -> list[tuple[str, str]]:
    """Devices as "gpu" or "cpu", and what they hold."""
    return [("cpu" if s.device == "cpu" else "gpu", s.holds) for s in model.placement]


# ---- what sizes should be: the layouts of csrc/vulkan/vulkan_weights.c, once more ----


def align(size: int) -> int:
    return -size % 256 + size


def vector(size: int) -> int:
    return align(-(-size // 32) * 128)


def bf16(rows: int, columns: int) -> int:
    return align(rows * -(-columns // 32) * 64)


def mxfp4(rows: int, columns: int) -> int:
    return align(rows * columns // 2) + align(rows * -(-columns // 128) * 4)


class Sizes:
    """Bytes on a GPU of the parts of SPEC."""

    embedding = bf16(SPEC.vocab_size, SPEC.hidden_size)
    unembedding = embedding + vector(SPEC.hidden_size)
    queries, keys = SPEC.num_heads * SPEC.head_dim, SPEC.num_kv_heads * SPEC.head_dim
    cache = 2 * keys * 2 * SPEC.max_positions * 3 // 2
    layer = (
        2 * vector(SPEC.hidden_size)
        + bf16(queries, SPEC.hidden_size)
        + vector(queries)
        + 2 * (bf16(keys, SPEC.hidden_size) + vector(keys))
        + vector(SPEC.num_heads)
        + bf16(SPEC.hidden_size, queries)
        + vector(SPEC.hidden_size)
        + bf16(SPEC.num_experts, SPEC.hidden_size)
        + vector(SPEC.num_experts)
    )
    experts = (
        mxfp4(SPEC.num_experts * 2 * SPEC.intermediate_size, SPEC.hidden_size)
        + vector(SPEC.num_experts * 2 * SPEC.intermediate_size)
        + mxfp4(SPEC.num_experts * SPEC.hidden_size, SPEC.intermediate_size)
        + vector(SPEC.num_experts * SPEC.hidden_size)
    )


@pytest.fixture(scope="module")
def activations(paths: dict[str, Path]) -> int:
    with place(paths["gpt_oss"], "1GB") as model:
        return model.placement[0].activation_bytes


# ---- layers over GPUs ----


def compare(ours: gptoss.Generator, theirs: gptoss.Generator, tokens: list[int]) -> None:
    """The same tokens to both: logits and every tap are the same bits."""
    for generator in (ours, theirs):
        generator.capture("*")
    actual, expected = (g.prefill(tokens, all_logits=True) for g in (ours, theirs))
    assert_same_bits(actual, expected, "logits")
    assert list(ours.taps) == list(theirs.taps)
    for name in theirs.taps:
        assert_same_bits(ours.taps[name], theirs.taps[name], name)
    for generator in (ours, theirs):
        generator.capture()


@needs_vulkan
@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_over_gpus_are_the_same_bits(
    family: str, devices: int, paths: dict[str, Path], on_gpu: dict[str, gptoss.Model]
) -> None:
    print(f"seed {SEED}")
    one = on_gpu[family]
    with place(paths[family], device=["vulkan:0"] * devices) as several:
        assert len(several.placement) == devices
        assert {kind for kind, _ in holds(several)} == {"gpu"}
        assert holds(several)[0][1].startswith("embedding, layer")
        assert holds(several)[-1][1].endswith(", unembedding")
        assert several.device == " + ".join([one.device] * devices)
        assert several.isa == "vulkan" and several.precision == "fp32"
        tokens = random_tokens(one, 120, SEED)
        for kv in ("f16", "f32"):
            pair = [open_generator(model, 128, kv_dtype=kv) for model in (several, one)]
            start = 0
            for size in (12, 1, 8, 70, 1):  # a few lines, a panel, two tiles
                compare(*pair, tokens[start : start + size])
                start += size
            for generator in pair:
                generator.rewind(50)
            compare(*pair, tokens[50:53])
            forks = [generator.fork() for generator in pair]
            compare(*forks, tokens[53:60])
            assert_same_bits(pair[0].step(3), pair[1].step(3), "after its fork")
            for layer in range(one.config.num_layers):
                for ours, theirs in zip(pair[0].kv(layer), pair[1].kv(layer), strict=True):
                    assert_same_bits(ours, theirs, f"cache of layer {layer}")
            batch = [[g, f] for g, f in zip(pair, forks, strict=True)]
            for generators in batch:
                gptoss.forward(generators, [tokens[:3], tokens[3:12]])
            for ours, theirs in zip(*batch, strict=True):
                assert_same_bits(ours.logits, theirs.logits, "batch")


@needs_vulkan
@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_adapters(family: str, paths: dict[str, Path], tmp_path: Path) -> None:
    """Over GPUs the bits of one; with layers, or experts, on the CPU near the CPU's."""
    ends = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    tensors = gptoss.Model(paths[family]).tensors
    shapes = {name[:-7]: tensors[name].shape for name in tensors if name.endswith(".weight")}
    modules = {name: shape for name, shape in shapes.items() if name.endswith(ends)}
    assert len(modules) >= 16
    how = {"adapters": [write_adapter(tmp_path / "adapter", modules)]}
    tokens = random_tokens(gptoss.Model(paths[family]), 70, SEED)
    with (
        place(paths[family], **how) as one,
        place(paths[family], device=TWO, **how) as two,
        gptoss.Model(paths[family], **how) as cpu,
    ):
        compare(open_generator(two, 128), open_generator(one, 128), tokens)
        with place(paths[family], "1GB", **how) as whole:
            (needs,) = whole.placement
        for part in (0.4, 0.8):
            room = int(part * (needs.weight_bytes + needs.cache_bytes))
            with place(paths[family], needs.activation_bytes + room, **how) as mixed:
                assert [device for device, _ in holds(mixed)] == ["gpu", "cpu"]
                pair = open_generator(mixed, 128), open_generator(cpu, 128)
                feed_both(pair, tokens, TOLERANCE["f16"], f"{part} fits")
                feed_both(pair, [1], TOLERANCE["f16"], f"{part} fits, a step")


@needs_vulkan
def test_shares_follow_the_limits(paths: dict[str, Path], activations: int) -> None:
    """A GPU that may take half of another's gets about half as many layers."""
    sizes = [activations + 2 * (Sizes.layer + Sizes.cache + Sizes.experts), 10**9]
    with place(paths["gpt_oss"], sizes, TWO) as model:
        assert [what for _, what in holds(model)] == ["embedding", "layers 0-3, unembedding"]
    sizes = [activations + 4 * (Sizes.layer + Sizes.cache + Sizes.experts)] * 2
    with place(paths["gpt_oss"], sizes, TWO) as model:
        assert [what for _, what in holds(model)] == [
            "embedding, layers 0-1",
            "layers 2-3, unembedding",
        ]
    # Neither has room for its layers' experts and the embedding.
    sizes = [activations + 2 * (Sizes.layer + Sizes.cache) + Sizes.experts] * 2
    sizes[1] += Sizes.unembedding
    with place(paths["gpt_oss"], sizes, TWO) as model:
        assert holds(model) == [
            ("gpu", "layer 0, attention of layer 1"),
            ("gpu", "layer 2, attention of layer 3, unembedding"),
            ("cpu", "embedding, experts of layers 1, 3"),
        ]


# ---- limits ----


def boundaries(activations: int) -> list[tuple[int, list[tuple[str, str]]]]:
    """Limits, and what is where within them."""
    size, count = Sizes, SPEC.num_layers
    attention = count * (size.layer + size.cache)
    experts = count * size.experts
    whole = activations + size.embedding + attention + experts + size.unembedding
    three = (count - 1) * (size.layer + size.cache)
    left = activations + attention - 1 - (activations + three)  # beside three layers
    assert left >= 3 * size.experts and size.unembedding < size.experts
    return [
        (whole, [("gpu", "embedding, layers 0-3, unembedding")]),
        (whole - 1, [("gpu", "layers 0-3, unembedding"), ("cpu", "embedding")]),
        (whole - size.embedding, [("gpu", "layers 0-3, unembedding"), ("cpu", "embedding")]),
        (
            whole - size.embedding - 1,
            [
                ("gpu", "layers 0-2, attention of layer 3, unembedding"),
                ("cpu", "embedding, experts of layer 3"),
            ],
        ),
        (
            activations + attention + size.unembedding + size.experts - 1,
            [
                ("gpu", "attention of layers 0-3, unembedding"),
                ("cpu", "embedding, experts of layers 0-3"),
            ],
        ),
        (
            activations + attention + size.unembedding - 1,
            [
                ("gpu", "attention of layers 0-3"),
                ("cpu", "embedding, experts of layers 0-3, unembedding"),
            ],
        ),
        (
            activations + attention - 1,
            [("gpu", "layers 0-2"), ("cpu", "embedding, layer 3, unembedding")],
        ),
        (
            activations + size.layer + size.cache,
            [
                ("gpu", "attention of layer 0"),
                ("cpu", "embedding, layers 1-3, experts of layer 0, unembedding"),
            ],
        ),
    ]


@needs_vulkan
@pytest.mark.parametrize("case", range(8))
def test_what_does_not_fit_is_on_the_cpu(
    case: int, paths: dict[str, Path], on_cpu: dict[str, gptoss.Model], activations: int
) -> None:
    print(f"seed {SEED}")
    limit, expected = boundaries(activations)[case]
    with place(paths["gpt_oss"], limit) as model:
        assert holds(model) == expected
        share = model.placement[0]
        assert share.weight_bytes + share.cache_bytes + share.activation_bytes <= limit
        assert model.memory()["device"] == share.weight_bytes
        assert model.device == " + ".join(share.device for share in model.placement)
        tokens = random_tokens(model, 110, SEED)
        for kv in ("f32", "f16"):
            pair = [open_generator(m, 128, kv_dtype=kv) for m in (model, on_cpu["gpt_oss"])]
            start = 0
            for size in (12, 1, 8, 70, 1):
                feed_both(pair, tokens[start : start + size], TOLERANCE[kv], f"{kv} at {start}")
                start += size
            for generator in pair:
                generator.rewind(33)
            feed_both(pair, tokens[33:36], TOLERANCE[kv], "rewound")
            fork = pair[0].fork()
            assert_same_bits(fork.step(5), pair[0].step(5), "fork")
            pair[1].step(5)
            for layer in range(SPEC.num_layers):
                rows = [g.kv(layer)[0][:, -30:] for g in pair]
                assert_close(*rows, TOLERANCE[kv], f"keys of layer {layer}")
        assert model.memory()["device"] <= limit


@needs_vulkan
def test_one_byte_less_than_a_layer_is_refused(paths: dict[str, Path], activations: int) -> None:
    needed = activations + Sizes.layer + Sizes.cache
    for limit, device in ((needed - 1, "vulkan"), ([1, needed - 1], TWO)):
        with pytest.raises(gptoss.OutOfMemoryError, match="no room for one layer") as caught:
            place(paths["gpt_oss"], limit, device)
        assert caught.value.expected == f"{needed} bytes"
        assert caught.value.found == f"{needed - 1} bytes"
        assert "gpu_memory" in str(caught.value) and "device='cpu'" in str(caught.value)


@needs_vulkan
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_dense_models_are_divided_by_layers(
    family: str, paths: dict[str, Path], on_cpu: dict[str, gptoss.Model]
) -> None:
    print(f"seed {SEED}")
    reference = on_cpu[family]
    last = reference.config.num_layers - 1
    with place(paths[family], "1GB") as model:
        assert holds(model) == [("gpu", f"embedding, layers 0-{last}, unembedding")]
        share = model.placement[0]
        whole = share.weight_bytes + share.cache_bytes + share.activation_bytes
    # Of tied weights the embedding takes nothing beside the unembedding.
    tied = family == "gpt2"
    with place(paths[family], whole - 1) as model:
        on_gpu = f"layers 0-{last}" + ("" if tied else ", unembedding")
        expected = "embedding, unembedding" if tied else "embedding"
        assert holds(model) == [("gpu", on_gpu), ("cpu", expected)]
        without = model.placement[0].weight_bytes if tied else None
    with pytest.raises(gptoss.OutOfMemoryError) as caught:
        place(paths[family], 1)
    needed = int(str(caught.value.expected).split()[0])
    with place(paths[family], needed) as model:
        layers = f"layers 1-{last}"
        assert holds(model) == [("gpu", "layer 0"), ("cpu", f"embedding, {layers}, unembedding")]
        assert without is None or model.placement[0].weight_bytes < without
        pair = [open_generator(m, 128, kv_dtype="f32") for m in (model, reference)]
        for tokens in ([1, 2, 3], [4], list(range(20))):
            feed_both(pair, tokens, TOLERANCE["f32"], "one layer")


@needs_vulkan
def test_cpu_last_in_a_list_takes_what_does_not_fit(paths: dict[str, Path]) -> None:
    with place(paths["llama"], device=["vulkan", "cpu"]) as model:
        assert holds(model) == [("gpu", "embedding, layers 0-3, unembedding")]
    with place(paths["llama"], device="vulkan,vulkan:0,cpu", limit=[1, "1GB"]) as model:
        assert [kind for kind, _ in holds(model)] == ["gpu", "cpu"]
        assert holds(model)[0][1] == "layers 0-3, unembedding"


@needs_vulkan
def test_what_is_reserved_is_enough(tmp_path: Path) -> None:
    """Blocks of 2048 and a context of 5000, within a limit that all of it just fits."""
    spec = Spec(
        num_layers=1, hidden_size=32, intermediate_size=32, num_heads=1, num_kv_heads=1, head_dim=8
    )
    spec = Spec(**vars(spec) | {"max_positions": 5000})
    path = write_model(tmp_path / "m", spec, np.random.default_rng(SEED))
    with place(path, "1GB") as model:
        share = model.placement[0]
    limit = share.weight_bytes + share.cache_bytes + share.activation_bytes
    with place(path, limit) as model:
        generator = open_generator(model, 5000)
        for size in (300, 1700, 2048, 900, 52):
            generator.prefill([7] * size)
        assert generator.position == 5000
        assert model.memory()["device"] <= limit


@needs_vulkan
def test_a_cache_beyond_the_limit_is_an_error_that_leaves_all_usable(
    paths: dict[str, Path], activations: int
) -> None:
    limit = activations + 4 * (Sizes.layer + Sizes.cache) + Sizes.unembedding
    with place(paths["gpt_oss"], limit) as model:
        tokens = random_tokens(model, 100, SEED)
        first = open_generator(model, 1000, kv_dtype="f32")
        expected = first.prefill(tokens).copy()
        others = [first]
        with pytest.raises(gptoss.OutOfMemoryError, match="gpu_memory has no room") as caught:
            for _ in range(1000):
                others.append(first.fork())
        assert "close generators" in str(caught.value) and caught.value.found.endswith(" bytes")
        assert limit - 10**6 < model.memory()["device"] <= limit
        for _ in range(2):
            with pytest.raises(gptoss.OutOfMemoryError, match="gpu_memory has no room"):
                first.prefill([1] * 200)
            assert first.position == 100
        first.step(3)
        first.rewind(90)
        assert_close(first.prefill(tokens[90:])[None], expected[None], TOLERANCE["f32"], "later")
        del others
        gc.collect()
        first.prefill([1] * 200)
        assert first.position == 300


# ---- what else a model does ----


@pytest.fixture(scope="module")
def mixed(paths: dict[str, Path], activations: int) -> Iterator[gptoss.Model]:
    """Two GPUs, experts on the CPU, and a layer there altogether: every kind of border."""
    limit = activations + 2 * (Sizes.layer + Sizes.cache)
    first = limit - Sizes.layer - Sizes.cache
    with place(paths["gpt_oss"], [first + Sizes.experts, limit], TWO) as model:
        assert holds(model) == [
            ("gpu", "layer 0"),
            ("gpu", "attention of layers 1-2"),
            ("cpu", "embedding, layer 3, experts of layers 1-2, unembedding"),
        ]
        yield model


@needs_vulkan
def test_every_kind_of_border(mixed: gptoss.Model, on_cpu: dict[str, gptoss.Model]) -> None:
    print(f"seed {SEED}")
    tokens = random_tokens(mixed, 128, SEED)
    pair = [open_generator(m, 128, kv_dtype="f32") for m in (mixed, on_cpu["gpt_oss"])]
    start = 0
    for size in (1, 20, 8, 66, 1):
        feed_both(pair, tokens[start : start + size], TOLERANCE["f32"], f"{start}+{size}")
        start += size
    batch = [[g, g.fork(), open_generator(g.model, 50, kv_dtype="f32")] for g in pair]
    for generators in batch:
        gptoss.forward(generators, [[1], [2, 3], list(range(30))])
    for ours, theirs in zip(*batch, strict=True):
        assert_close(ours.logits[None], theirs.logits[None], TOLERANCE["f32"], "batch")
    again = open_generator(mixed, 128, kv_dtype="f32")
    first = again.prefill(tokens).copy()
    again.reset()
    assert_same_bits(again.prefill(tokens), first, "again")


@needs_vulkan
def test_scores(mixed: gptoss.Model, on_cpu: dict[str, gptoss.Model]) -> None:
    tokens, reference = random_tokens(mixed, 100, SEED), on_cpu["gpt_oss"]
    for model, other in ((mixed, reference), (reference, mixed)):
        score = gptoss.score(model, tokens, reference=other)
        assert score.mean_kl is not None and score.mean_kl < 1e-3
        assert abs(score.mean_logprob - gptoss.score(reference, tokens).mean_logprob) < 1e-2


@needs_vulkan
def test_rewinding_beyond_what_cpu_layers_keep(tmp_path: Path) -> None:
    """The CPU's sliding layers give rows back that the GPU's keep."""
    spec = Spec(**vars(SPEC) | {"num_layers": 3, "max_positions": 900})
    path = write_model(tmp_path / "m", spec, np.random.default_rng(SEED))
    with pytest.raises(gptoss.OutOfMemoryError) as caught:
        place(path, 1)
    needed = int(str(caught.value.expected).split()[0])
    with place(path, needed + 1) as model, gptoss.Model(path) as reference:
        assert "layers 1-2" in holds(model)[1][1]
        tokens = random_tokens(model, 800, SEED)
        pair = [open_generator(m, 900, kv_dtype="f32") for m in (model, reference)]
        for generator in pair:
            generator.prefill(tokens)
            assert generator.kv_range(2)[0] > 0
            generator.rewind(150)
        feed_both(pair, tokens[150:160], TOLERANCE["f32"], "rewound")


@needs_vulkan
def test_profile(paths: dict[str, Path], activations: int) -> None:
    limit = activations + 4 * (Sizes.layer + Sizes.cache) + Sizes.unembedding
    with (
        place(paths["gpt_oss"], limit, profile=True) as model,
        place(paths["gpt_oss"], profile=True) as reference,
    ):
        profiles = []
        for each in (model, reference):
            generator = open_generator(each, 128)
            each.reset_profile()
            generator.prefill(random_tokens(each, 30, SEED))
            generator.step(1)
            profiles.append(each.profile())
        for ours, theirs in zip(*profiles, strict=True):
            assert (ours.name, ours.calls, ours.rows) == (theirs.name, theirs.calls, theirs.rows)
            assert ours.flops == theirs.flops and ours.kv_bytes == theirs.kv_bytes
            assert 0 < ours.seconds < profiles[0].seconds
        for share, other in zip(model.placement, ("attention", "experts"), strict=True):
            assert other in share.holds


@needs_vulkan
def test_loading_tells_one_progress(paths: dict[str, Path]) -> None:
    told: list[tuple[int, int]] = []
    with place(paths["llama"], device=TWO, progress=lambda *b: told.append(b)) as model:
        total = sum(share.weight_bytes for share in model.placement)
    assert told == sorted(told) and {each[1] for each in told} == {total}
    assert told[-1][0] == total

    def stop(done: int, total: int) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError):
        place(paths["llama"], device=TWO, progress=stop)


# ---- interrupted, forked, refused ----


@needs_vulkan
def test_ctrl_c_and_progress(mixed: gptoss.Model) -> None:
    generator = open_generator(mixed, 128, block_size=16)
    tokens = random_tokens(mixed, 128, SEED)

    with ctrl_c_after(0.1):
        for _ in range(1000):
            generator.prefill(tokens)
            generator.reset()
    assert generator.position % 16 == 0

    def stop(done: int, total: int) -> None:
        assert total == 40
        if done >= 16:
            raise LookupError("enough")

    generator.reset()
    with pytest.raises(LookupError):
        generator.prefill(tokens[:40], progress=stop)
    assert generator.position in (16, 32)
    generator.reset()
    expected = open_generator(mixed, 128).prefill(tokens[:10])
    assert_same_bits(generator.prefill(tokens[:10]), expected)


@needs_vulkan
def test_threads_take_turns(mixed: gptoss.Model) -> None:
    tokens = [random_tokens(mixed, 20, n) for n in range(3)]
    expected = [open_generator(mixed, 64).prefill(each).copy() for each in tokens]
    results: dict[int, Any] = {}

    def work(n: int) -> None:
        for _ in range(4):
            generator = open_generator(mixed, 64)
            results[n] = generator.prefill(tokens[n]).copy()
            generator.fork().kv(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(3):
        assert_same_bits(results[n], expected[n], f"thread {n}")


@needs_vulkan
def test_after_fork_the_child_is_refused(mixed: gptoss.Model) -> None:
    generator = open_generator(mixed, 64)
    generator.prefill([1, 2, 3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            generator.step(4)
        except gptoss.StateError as error:
            del generator
            code = 0 if "fork" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    generator.step(4)


@needs_vulkan
@pytest.mark.parametrize("kind", ["gpus", "experts"])
def test_memory_refused_anywhere(kind: str, paths: dict[str, Path], activations: int) -> None:
    """Each allocation fails once, of the host and of the devices. What was open goes on."""
    how: dict[str, Any] = {"device": TWO, "threads": 2}
    if kind == "experts":
        limit = activations + 2 * (Sizes.layer + Sizes.cache)
        how |= {"limit": [limit - Sizes.layer - Sizes.cache, limit]}

    def work(model: gptoss.Model) -> Any:
        generator = open_generator(model, 300)
        generator.capture("layers.2.mlp_output")
        generator.prefill(list(range(12)))
        generator.fork().kv(0)
        generator.capture()
        generator.prefill(list(range(20)))
        return generator.logits.copy()

    def open_and_work() -> Any:
        with place(paths["gpt_oss"], **how) as model:
            return work(model)

    expected = open_and_work()
    with place(paths["gpt_oss"], **how) as used:
        work(used)
        for function, model in ((open_and_work, ()), (work, (used,))):
            _core.fail_allocation(1_000_000_000)
            function(*model)
            total = _core.fail_allocation(0)
            step = max(1, total // 25)
            refused = 0
            for failing in range(1 + SEED % step, total + 1, step):
                _core.fail_allocation(failing)
                try:
                    logits = function(*model)
                except gptoss.OutOfMemoryError as error:
                    refused += 1
                    assert len(str(error)) > 20 and str(error).isprintable()
                else:
                    assert_same_bits(logits, expected, f"allocation {failing}")
                finally:
                    _core.fail_allocation(0)
            assert refused > 5
        assert_same_bits(work(used), expected)


# ---- arguments ----


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("6GB", 6 * 10**9),
        ("1.5 gb", 15 * 10**8),
        ("512MiB", 512 * 2**20),
        (" 2KB ", 2000),
        ("1TiB", 2**40),
        ("77", 77),
        ("77b", 77),
        (2**40, 2**40),
        (np.int64(5), 5),
    ],
)
def test_sizes(text: Any, size: int) -> None:
    assert read_size(text) == size
    assert read_limits(text) == (size,)
    assert read_limits([text, 3]) == (size, 3)


def test_lists_in_texts() -> None:
    assert read_limits("6GB,4 MB") == (6 * 10**9, 4 * 10**6)
    assert read_limits(None) == ()
    assert read_devices(("vulkan:0", "cpu")) == "vulkan:0,cpu"
    assert read_devices("vulkan:1") == "vulkan:1"


@pytest.mark.parametrize(
    "bad", ["", "GB", "six", "-1GB", "0", 0, -5, "1e9", "3 PB", "6iB", 1.5, True, [], "1,", 2**63]
)
def test_sizes_that_are_none(bad: Any) -> None:
    with pytest.raises(gptoss.ArgumentError, match="size"):
        gptoss.Model("demo", device="vulkan", gpu_memory=bad)


@pytest.mark.parametrize("bad", [5, None, [], ["vulkan", 1], ["vulkan:0,vulkan:1"], {"vulkan": 1}])
def test_devices_that_are_none(bad: Any) -> None:
    with pytest.raises(gptoss.ArgumentError, match="device must be a str"):
        gptoss.Model("demo", device=bad)


@needs_vulkan
@pytest.mark.parametrize(
    ("device", "limit", "words"),
    [
        ("cpu", "1GB", "gpu_memory is for Vulkan devices, and device is 'cpu'"),
        ("cpu,vulkan", None, "'vulkan' stands behind cpu"),
        ("vulkan,cpu,cpu", None, "'cpu' stands behind cpu"),
        ("vulkan,cuda", None, "'cuda' is not available in a list"),
        ("vulkan,", None, "'' is not available in a list"),
        (["vulkan"] * 9, None, "is one too many"),
        ("x" * 600 + ",vulkan", None, "is too long"),
        (TWO, [1, 2, 3], "3 numbers for 2 GPUs"),
        ("vulkan", [1] * 65, "65 numbers"),
    ],
)
def test_lists_that_are_refused(device: Any, limit: Any, words: str) -> None:
    with pytest.raises(gptoss.ArgumentError, match=words):
        gptoss.Model("demo", device=device, gpu_memory=limit)


@needs_vulkan
def test_a_device_of_a_list_that_is_not_there() -> None:
    with pytest.raises(gptoss.UnsupportedError, match="no Vulkan device '99'"):
        gptoss.Model("demo", device="vulkan:0,vulkan:99")
    with pytest.raises(gptoss.ArgumentError, match="isa 'avx2' is for device='cpu'"):
        gptoss.Model("demo", device=TWO, isa="avx2")


def test_the_placement_of_a_model_on_one_device() -> None:
    with gptoss.Model("demo") as model:
        assert model.placement == (gptoss.Share("cpu", "the whole model", 0, 0, 0),)
        assert str(model.placement[0]) == "cpu (the whole model)"
    if _core.vulkan_devices():
        with gptoss.Model("demo", device="vulkan", profile=True) as model:
            (share,) = model.placement
            assert share.device == model.device and share.holds == "the whole model"
            assert 10_000_000 < share.weight_bytes <= model.memory()["device"]
