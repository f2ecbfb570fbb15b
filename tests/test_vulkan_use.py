"""A model on a Vulkan device, used: sequences, batches, views, interruptions, refusals. The numbers
are compared with the CPU's in test_vulkan.py; what fails is in test_vulkan_failures.py."""

from __future__ import annotations

import gc
import os
import secrets
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dense_models
import numpy as np
import pytest
from conftest import REPOSITORY
from models import Spec, write_model
from support import assert_same_bits, ctrl_c_after, open_generator, random_tokens
from vulkan_support import TOLERANCE, assert_close, needs_vulkan

import gptoss
from gptoss import _core

pytestmark = needs_vulkan

SEED = secrets.randbelow(2**32)
GREEDY = gptoss.Sampling(temperature=0)
SPEC = Spec(num_layers=2, num_experts=4, window=8, max_positions=400)
CLOSE = TOLERANCE["f16"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    print(f"seed {SEED}")
    return write_model(tmp_path_factory.mktemp("v") / "m", SPEC, np.random.default_rng(SEED))


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[gptoss.Model]:
    with gptoss.Model(path, device="vulkan", precision="fp32") as opened:
        yield opened


@pytest.fixture(scope="module")
def reference(path: Path) -> Iterator[gptoss.Model]:
    with gptoss.Model(path) as opened:
        yield opened


def start(model: gptoss.Model, tokens: list[int], **options: Any) -> gptoss.Generator:
    generator = open_generator(model, 400, **options)
    generator.prefill(tokens)
    return generator


# ---- sequences ----


def test_rewind_fork_and_reset(model: gptoss.Model, reference: gptoss.Model) -> None:
    """Beyond the window, too; the same rows in the same calls are the same bits."""
    tokens = random_tokens(model, 30, SEED)
    generator, cpu = start(model, tokens), start(reference, tokens)
    expected = generator.step(5).copy()
    for position in (30, 21, 12):
        generator.rewind(position)
        cpu.rewind(position)
        with pytest.raises(gptoss.StateError):
            _ = generator.logits
        assert generator.tokens.tolist() == tokens[:position]
        ours, theirs = (each.prefill([*tokens[position:], 5]) for each in (generator, cpu))
        assert_close(ours[None], theirs[None], CLOSE, f"rewound to {position}")
        assert_close(ours[None], expected[None], CLOSE, f"rewound to {position}, before")
    fork = generator.fork()
    assert_same_bits(fork.logits, generator.logits)
    ours = generator.step(7).copy()
    assert_same_bits(fork.step(7), ours, "fork")
    fork.step(9)
    assert_same_bits(generator.logits, ours, "parent after its fork")
    generator.reset()
    assert generator.position == 0
    assert_same_bits(generator.prefill(tokens), start(model, tokens).logits, "reset")


def test_the_cache_grows_without_a_trace(model: gptoss.Model) -> None:
    """Room is made for 256 positions, then twice that."""
    tokens = random_tokens(model, 258, SEED)
    generator = start(model, tokens[:250])
    keys, values = (view.copy() for view in generator.kv(1))
    generator.prefill(tokens[250:])
    assert generator.kv(1)[0].shape[1] == 258
    assert_same_bits(generator.kv(1)[0][:, :250], keys)
    assert_same_bits(generator.kv(1)[1][:, :250], values)


def test_kv_is_a_snapshot_that_each_call_refreshes(model: gptoss.Model) -> None:
    tokens = random_tokens(model, 12, SEED)
    generator = start(model, tokens)
    keys, values = generator.kv(1)
    assert keys.shape == values.shape == (SPEC.num_kv_heads, 12, SPEC.head_dim)
    assert keys.dtype == np.float16 and not keys.flags.writeable and not values.flags.writeable
    before = keys.copy()
    generator.step(1)
    later = generator.kv(1)[0]
    assert later.shape[1] == 13
    assert_same_bits(later[:, :12], before)
    assert_same_bits(keys, before)
    assert generator.kv_range(0)[1] == 13
    with pytest.raises(gptoss.InUseError):
        generator.close()
    del keys, values, later
    gc.collect()
    generator.close()


def test_views_outlive_the_model(path: Path) -> None:
    with gptoss.Model(path, device="vulkan") as model:
        generator = start(model, [1, 2, 3])
        logits, (keys, _) = generator.logits, generator.kv(0)
        expected = logits.copy(), keys.copy()
        with pytest.raises(gptoss.InUseError):
            model.close()
    assert model.closed
    del generator
    gc.collect()
    assert_same_bits(logits, expected[0])
    assert_same_bits(keys, expected[1])


def test_captured_and_not_captured_are_the_same_bits(model: gptoss.Model) -> None:
    tokens = random_tokens(model, 20, SEED)
    plain, seen = open_generator(model, 40), open_generator(model, 40)
    seen.capture("*", keep="all")
    for size in (12, 1, 7):
        position = plain.position
        chunk = tokens[position : position + size]
        assert_same_bits(seen.prefill(chunk), plain.prefill(chunk), f"{size}")
    assert seen.taps["final_norm"].shape == (20, SPEC.hidden_size)
    mass = seen.taps["layers.0.sink_mass"]
    assert mass.shape == (20, SPEC.num_heads) and (mass > 0).all() and (mass < 1).all()


# ---- many sequences ----


def test_batches(model: gptoss.Model, reference: gptoss.Model) -> None:
    """Generators of different lengths in one pass, beside the CPU's."""
    lengths, counts = (3, 20, 9, 1), (1, 4, 2, 12)
    pairs = [[start(m, random_tokens(m, n, n)) for n in lengths] for m in (model, reference)]
    chunks = [random_tokens(model, n, 100 + n) for n in counts]
    for generators in pairs:
        gptoss.forward(generators, chunks)
    for ours, theirs in zip(*pairs, strict=True):
        assert ours.position == theirs.position
        assert_close(ours.logits[None], theirs.logits[None], CLOSE, f"{ours.position}")
    alone = start(model, random_tokens(model, lengths[1], lengths[1]))
    alone.prefill(chunks[1])
    assert_close(pairs[0][1].logits[None], alone.logits[None], CLOSE, "alone")


def test_generate_batch_and_score(model: gptoss.Model, reference: gptoss.Model) -> None:
    prompts = [random_tokens(model, n, n) for n in (2, 5, 11)]
    options: dict[str, Any] = {"max_tokens": 5, "sampling": GREEDY, "stop_tokens": ()}
    runs = [
        list(gptoss.generate_batch(m, prompts, batch_size=2, top_logprobs=2, **options))
        for m in (model, model, reference)
    ]
    assert [c.tokens for c in runs[0]] == [c.tokens for c in runs[1]]
    for ours, theirs in zip(*(sorted(run, key=lambda c: c.index) for run in runs[1:]), strict=True):
        assert ours.error is None and len(ours.tokens) == 5
        same = 0  # up to where a near tie may part them
        while same < 5 and ours.tokens[same] == theirs.tokens[same]:
            assert abs(ours.logprobs[same] - theirs.logprobs[same]) < 0.05
            same += 1
        if same < 5:
            first, second = theirs.top_logprobs[same]
            assert first.logprob - second.logprob < 0.1
    tokens = random_tokens(model, 70, SEED)
    score = gptoss.score(model, tokens, reference=reference)
    assert abs(score.mean_logprob - gptoss.score(reference, tokens).mean_logprob) < 1e-3
    assert score.mean_kl is not None and score.mean_kl < 1e-4


def test_speculation_gives_the_same_text(model: gptoss.Model) -> None:
    def echo(tokens: Any, logits: Any) -> None:
        if len(tokens) >= 5:
            logits[tokens[-5]] += 100

    tokens = random_tokens(model, 12, SEED)
    texts = []
    for speculate in (False, True):
        generator = open_generator(model, 80, speculate=speculate)
        outputs = generator.generate(
            tokens, max_tokens=25, sampling=GREEDY, processors=[echo], stop_tokens=()
        )
        texts.append([out.token for out in outputs])
        stats = generator.speculation
    assert texts[0] == texts[1] and stats is not None and stats.accepted > 5


def test_generators_on_several_threads(model: gptoss.Model) -> None:
    tokens = [random_tokens(model, 12, n) for n in range(3)]
    expected = [start(model, each).logits.copy() for each in tokens]
    results: dict[int, Any] = {}

    def work(n: int) -> None:
        for _ in range(3):
            generator = start(model, tokens[n])
            results[n] = generator.logits.copy()
            generator.fork().kv(n % 2)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(3):
        assert_same_bits(results[n], expected[n], f"thread {n}")


# ---- interrupted, forked, refused ----


def test_ctrl_c_and_progress_stop_a_prefill(model: gptoss.Model) -> None:
    generator = open_generator(model, 400, block_size=16)
    tokens = random_tokens(model, 400, SEED)

    with ctrl_c_after(0.1):
        for _ in range(1000):
            generator.prefill(tokens)
            generator.reset()
    position = generator.position
    assert position % 16 == 0 and generator.tokens.tolist() == tokens[:position]

    def stop(done: int, total: int) -> None:
        assert total == 40
        if done >= 16:
            raise LookupError("enough")

    generator.reset()
    with pytest.raises(LookupError):
        generator.prefill(tokens[:40], progress=stop)
    assert generator.position in (16, 32)
    generator.reset()
    fresh = start(model, tokens[:10])
    assert_same_bits(generator.prefill(tokens[:10]), fresh.logits)


def test_a_long_block_stops_at_a_layer(model: gptoss.Model) -> None:
    if "llvmpipe" not in repr(model):
        pytest.skip("a GPU is done before the callback first comes")
    generator = open_generator(model, 100)
    tokens = random_tokens(model, 80, SEED)

    def stop(done: int, total: int) -> None:
        if 0 < done < total:
            raise LookupError("enough")

    with pytest.raises(LookupError):
        for _ in range(100):  # the callback comes every 20 ms
            generator.reset()
            generator.prefill(tokens, progress=stop)
    assert generator.position == 0
    assert_same_bits(generator.prefill(tokens), start(model, tokens).logits)


def test_after_fork_the_child_is_refused_and_the_parent_goes_on(model: gptoss.Model) -> None:
    generator = start(model, [1, 2, 3])
    expected = start(model, [1, 2, 3, 4]).logits.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            generator.step(4)
        except gptoss.StateError as error:
            try:
                del generator
                code = 0 if "fork" in str(error) else 2
            except BaseException:
                code = 3
        except BaseException:
            code = 4
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert_close(generator.step(4)[None], expected[None], CLOSE)


def test_devices_by_number_and_name(path: Path) -> None:
    name, kind, num_bytes = _core.vulkan_devices()[0]
    assert name and kind and num_bytes > 0
    part = name.split()[0].upper()
    for device in ("vulkan:0", f"vulkan:{part}"):
        with gptoss.Model(path, device=device) as model:
            assert model.device == name and model.isa == "vulkan"
            assert repr(model).endswith(f"{model.precision} on {name}>")
    with gptoss.Model(path) as model:
        assert model.device == "cpu"
    for which in ("99", "-1", "no such GPU", "99999999999999999999999"):
        with pytest.raises(gptoss.UnsupportedError, match="available: 0: ") as caught:
            gptoss.Model(path, device=f"vulkan:{which}")
        assert caught.value.found == which and caught.value.expected


def test_what_a_device_does_not_do_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(gptoss.ArgumentError, match="isa 'avx2' is for device='cpu'"):
        gptoss.Model(path, device="vulkan", isa="avx2")
    for precision in ("bf16", "fp8"):
        with pytest.raises(gptoss.UnsupportedError, match=r"use .*fp32") as caught:
            gptoss.Model(path, device="vulkan", precision=precision)
        assert caught.value.found == precision
    with gptoss.Model(path, device="vulkan") as model:
        has_matrices = model.precision == "fp16"
    if not has_matrices:
        with pytest.raises(gptoss.UnsupportedError, match="no cooperative matrices"):
            gptoss.Model(path, device="vulkan", precision="fp16")
    odd = dense_models.Gpt2(hidden_size=45, num_heads=5, vocab_size=33)
    odd_path = dense_models.write_hf(tmp_path / "odd", odd, np.random.default_rng(0))
    with pytest.raises(gptoss.UnsupportedError, match=r"heads of 9 elements .*device='cpu'"):
        gptoss.Model(odd_path, device="vulkan")


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(REPOSITORY / "tests"), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_without_a_driver_the_sentence_says_what_to_do() -> None:
    code = """
import gptoss
try:
    gptoss.Model("demo", device="vulkan")
except gptoss.UnsupportedError as error:
    print(error)
"""
    done = run_python(code, VK_DRIVER_FILES="/nonexistent", VK_ICD_FILENAMES="/nonexistent")
    assert done.returncode == 0, done.stderr
    assert "driver" in done.stdout and "device='cpu'" in done.stdout


# ---- memory ----


def test_memory_on_the_device_is_counted(path: Path, reference: gptoss.Model) -> None:
    assert reference.memory()["device"] == 0
    with gptoss.Model(path, device="vulkan") as model:
        weights = model.memory()["device"]
        assert weights >= sum(info.num_bytes for _, info in model.tensors._entries.values())
        generator = start(model, [1, 2, 3])
        used = model.memory()["device"]
        row_bytes = 2 * 2 * SPEC.num_kv_heads * SPEC.head_dim * SPEC.num_layers
        fork = generator.fork()
        assert model.memory()["device"] == used + 256 * row_bytes > weights + 256 * row_bytes
        del fork, generator
        gc.collect()
        assert model.memory()["device"] == used - 256 * row_bytes
        heap = model.memory()["heap"]
        assert 0 < heap < 10_000_000


# ---- validation ----

VALIDATED = """
import pathlib
import numpy as np
import dense_models, gptoss, models
from gptoss import _core
from support import open_generator
from test_adapters import write_adapter
rng, root = np.random.default_rng(0), pathlib.Path(ROOT)
GPT2 = dense_models.Gpt2(num_layers=1, max_positions=300)
paths = [
    models.write_model(root / "moe", models.Spec(num_layers=2), rng),
    dense_models.write_hf(root / "llama", dense_models.Llama(num_layers=1), rng, "BF16"),
    dense_models.write_gguf(root / "gpt2.gguf", GPT2, rng, "Q8_0"),
]
try:
    gptoss.Model(paths[0], device="vulkan", gpu_memory=1)
except gptoss.OutOfMemoryError as error:
    LIMIT = int(error.expected.split()[0])
tensors = gptoss.Model(paths[1]).tensors
modules = {name[:-7]: tensors[name].shape for name in tensors if "_proj" in name}
adapter = write_adapter(root / "adapter", modules)
def work(model):
    generator = open_generator(model, 300)
    generator.capture("*")
    generator.prefill(range(12))
    generator.capture()
    generator.step(3)
    generator.fork().kv(0)
    gptoss.forward([generator, open_generator(model, 9)], [[1], [2, 3]])
    return generator

for path, adapters in [*((path, []) for path in paths), (paths[1], [adapter, adapter])]:
    with gptoss.Model(path, device="vulkan", profile=True, adapters=adapters) as model:
        generator = work(model)
        generator.prefill([7] * 250)
        generator.rewind(20)
        generator.step(1)
    with gptoss.Model(path, device="vulkan") as model:  # which runs ahead, as without profile
        generator = open_generator(model, 300)
        generator.prefill([7] * 250)
        for temperature in (0.0, 1.0):
            generator._core.run_ahead(3, 8, temperature, 0.1, 5)
            while (token := generator._core.next_ahead) is not None:
                generator.step(token)
for how in ({"device": "vulkan,vulkan"}, {"device": "vulkan", "gpu_memory": LIMIT}):
    with gptoss.Model(paths[0], **how) as model:  # layers, and experts, apart
        work(model)
        assert len(model.placement) == 2
for failing in range(FIRST, 500, STEP):  # what was made before memory ran out is given back
    _core.fail_allocation(failing)
    try:
        with gptoss.Model(paths[0], device="vulkan", threads=2) as model:
            generator = open_generator(model, 300)
            generator.capture("layers.0.mlp_output")
            generator.prefill(range(12))
            generator.fork().kv(0)
    except gptoss.OutOfMemoryError:
        pass
    if _core.fail_allocation(0) < failing:
        break
for losing in range(FIRST, 500, STEP):
    _core.lose_vulkan_device(losing)
    try:
        with gptoss.Model(paths[0], device="vulkan", threads=2, profile=True) as model:
            generator = open_generator(model, 300)
            generator.capture("layers.0.mlp_output")
            generator.prefill(range(12))
            generator.fork().kv(0)
            generator.step(3)
    except gptoss.DeviceError:
        pass
    if _core.lose_vulkan_device(0) < losing:
        break
assert losing > 30
assert "khronos_validation" in pathlib.Path("/proc/self/maps").read_text()
"""
LAYER = Path("/usr/share/vulkan/explicit_layer.d/VkLayer_khronos_validation.json")


@pytest.mark.skipif(not LAYER.exists(), reason="no validation layer")
def test_the_validation_layer_has_nothing_to_say(tmp_path: Path) -> None:
    (tmp_path / "vk_layer_settings.txt").write_text(
        "khronos_validation.debug_action = VK_DBG_LAYER_ACTION_LOG_MSG\n"
        "khronos_validation.report_flags = error,warn,perf,info\n"
        "khronos_validation.log_filename = stdout\n"
        "khronos_validation.enables = VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT\n"
    )
    done = run_python(
        f"ROOT, FIRST, STEP = {str(tmp_path)!r}, {1 + SEED % 16}, 16\n{VALIDATED}",
        VK_INSTANCE_LAYERS="VK_LAYER_KHRONOS_validation",
        VK_LAYER_SETTINGS_PATH=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    # Of every instance the layer tells its settings, which shows that messages arrive; no more, but
    # for a file of its own that is not there when it first runs on a machine.
    messages = [line for line in done.stdout.splitlines() if "Validation" in line]
    messages = [line for line in messages if "cache-file-error" not in line]
    settings = [line for line in messages if "createinstance-status-message" in line]
    assert len(settings) >= 3 and messages == settings, done.stdout[:4000]
