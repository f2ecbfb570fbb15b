"""A model on a Vulkan device that fails: memory is refused, the device is lost. Exceptions, and the
process lives on. That nothing of the device leaks then is what the validation layer says in
test_vulkan_use.py."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import secrets
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from models import Spec, write_model
from support import assert_same_bits, open_generator, random_tokens
from test_adapters import write_adapter
from vulkan_support import needs_vulkan

import gptoss
from gptoss import _core

pytestmark = needs_vulkan

SEED = secrets.randbelow(2**32)
SPEC = Spec(num_layers=2, num_experts=4, window=8, max_positions=400)
# Work that begins with a new model costs a tenth of a second: failures every so often, others each
# time.
STEP = 4


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    print(f"seed {SEED}")
    directory = tmp_path_factory.mktemp("v")
    path = write_model(directory / "m", SPEC, np.random.default_rng(SEED))
    module = "model.layers.0.self_attn.o_proj"
    shape = (SPEC.hidden_size, SPEC.num_heads * SPEC.head_dim)
    adapter = write_adapter(directory / "adapter", {module: shape})
    return {"path": path, "device": "vulkan", "threads": 2, "adapters": [adapter]}


def steps(model: gptoss.Model, generator: gptoss.Generator | None = None) -> Any:
    """Whatever reaches the device but panels of many rows, whose pipelines take longer to make."""
    generator = generator or open_generator(model, 300)
    generator.capture("layers.1.mlp_output", "layers.0.mlp_norm")
    generator.prefill([5, 6, 7])
    generator.kv(1)
    fork = generator.fork()
    generator.capture()
    gptoss.score(model, random_tokens(model, 5, SEED))
    gptoss.forward([generator, fork], [[1], [2, 3]])
    fork._core.run_ahead(1, 4, 0.5, 0.0, SEED)
    return generator.step(3).copy()


def block(model: gptoss.Model, generator: gptoss.Generator | None = None) -> Any:
    """More than 64 rows, which run layer by layer."""
    generator = generator or open_generator(model, 300)
    return generator.prefill(random_tokens(model, 70, SEED)).copy()


def count(hook: Callable[[int], int], function: Callable[[], Any]) -> int:
    """How many times the hook counts while the function runs."""
    hook(0)
    function()
    return hook(0)


@pytest.fixture(scope="module")
def expected(options: dict[str, Any]) -> Any:
    with gptoss.Model(**options) as model:
        return steps(model)


@pytest.fixture(autouse=True)
def off() -> Iterator[None]:
    yield
    _core.fail_allocation(0)
    _core.lose_vulkan_device(0)


# ---- memory ----


def refuse(n: int, function: Callable[[], Any]) -> Any:
    """The function's result with allocation n refused, None if that was an exception."""
    _core.fail_allocation(n)
    try:
        return function()
    except gptoss.OutOfMemoryError as error:
        assert len(str(error)) > 20 and str(error).isprintable()
        return None
    finally:
        _core.fail_allocation(0)


def test_memory_refused_while_opening(options: dict[str, Any]) -> None:
    """Each allocation of the host and of the device, in turn."""

    def open_it() -> bool:
        gptoss.Model(**options).close()
        return True

    total = count(_core.fail_allocation, open_it)
    assert total > 50
    assert [n for n in range(1, total + 2) if refuse(n, open_it)] == [total + 1]


def test_memory_refused_while_working(options: dict[str, Any], expected: Any) -> None:
    """In a new model, where all is allocated first; what was open before goes on."""
    with gptoss.Model(**options) as used:
        steps(used)

        def work_anew() -> Any:
            with gptoss.Model(**options) as model:
                return steps(model)

        opening = count(_core.fail_allocation, lambda: gptoss.Model(**options).close())
        total = count(_core.fail_allocation, work_anew)
        assert total > opening + 60
        for n in range(opening + 1 + SEED % STEP, total + 1, STEP):
            logits = refuse(n, work_anew)
            if logits is not None:
                assert_same_bits(logits, expected, f"allocation {n}")
        assert_same_bits(steps(used), expected)


def test_memory_refused_to_a_model_in_use(options: dict[str, Any], expected: Any) -> None:
    with gptoss.Model(**options) as model:
        steps(model)
        total = count(_core.fail_allocation, lambda: steps(model))
        assert total > 20
        for n in range(1, total + 1):
            logits = refuse(n, lambda: steps(model))
            if logits is not None:
                assert_same_bits(logits, expected, f"allocation {n}")
            assert_same_bits(steps(model), expected, f"after allocation {n}")


# ---- a lost device ----


def assert_lost(model: gptoss.Model, generator: gptoss.Generator, message: str) -> None:
    """Every call says the same, and none asks anything of the device."""
    _core.lose_vulkan_device(0)
    calls: list[Callable[[], Any]] = [
        lambda: generator.step(1),
        lambda: open_generator(model, 20).prefill([1, 2, 3]),
        lambda: gptoss.forward([generator], [[1]]),
        lambda: gptoss.score(model, [1, 2, 3]),
        lambda: list(generator.generate([1], max_tokens=2)),
        lambda: generator.kv(0),
        lambda: generator.fork(),
    ]
    for call in calls:
        with pytest.raises(gptoss.DeviceError) as caught:
            call()
        assert str(caught.value) == message
    assert _core.lose_vulkan_device(0) == 0
    assert len(generator.tokens) == generator.position
    generator.reset()


def test_lost_while_opening(options: dict[str, Any]) -> None:
    total = count(_core.lose_vulkan_device, lambda: gptoss.Model(**options).close())
    assert total > 30
    for n in range(1, total + 1):
        _core.lose_vulkan_device(n)
        with pytest.raises(gptoss.DeviceError, match="was lost while it computed"):
            gptoss.Model(**options)
    _core.lose_vulkan_device(total + 1)
    gptoss.Model(**options).close()


@pytest.mark.parametrize(("work", "step"), [(steps, 1), (block, STEP)])
def test_lost_at_any_time(options: dict[str, Any], work: Any, step: int) -> None:
    """By each submission and each wait: exceptions that say what to do, and a model that is opened
    then works. Profiling reads the chosen experts back between."""
    options = options | {"profile": work is block}
    with gptoss.Model(**options) as model:
        expected: list[Any] = []
        total = count(_core.lose_vulkan_device, lambda: expected.append(work(model)))
    assert total > 10
    for n in range(1 + SEED % step, total + 1, step):
        model = gptoss.Model(**options)
        generator = open_generator(model, 300)
        _core.lose_vulkan_device(n)
        with pytest.raises(gptoss.DeviceError) as caught:
            work(model, generator)
        message = str(caught.value)
        assert model.device in message and "Open the model again, or use device='cpu'" in message
        assert caught.value.found == "VK_ERROR_DEVICE_LOST"
        assert_lost(model, generator, message)
        del caught, generator
        gc.collect()
        model.close()
    with gptoss.Model(**options) as model:
        assert_same_bits(work(model), expected[0])


def test_lost_to_several_threads(options: dict[str, Any]) -> None:
    """Those that wait for their turn learn of it, too."""
    model = gptoss.Model(**options)
    errors: list[str] = []

    def run() -> None:
        generator = open_generator(model, 300)
        try:
            for _ in range(10_000):
                generator.prefill([1, 2, 3])
                generator.reset()
        except gptoss.DeviceError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(3)]
    _core.lose_vulkan_device(60)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert len(errors) == 3 and len(set(errors)) == 1
    gc.collect()
    model.close()


def test_views_outlive_a_lost_device(options: dict[str, Any]) -> None:
    model = gptoss.Model(**options)
    generator = open_generator(model, 300)
    logits = generator.prefill([1, 2, 3])
    keys = generator.kv(0)[0]
    before = logits.copy(), keys.copy()
    _core.lose_vulkan_device(1)
    with pytest.raises(gptoss.DeviceError):
        generator.step(4)
    assert generator.tokens.tolist() == [1, 2, 3]
    assert_same_bits(keys, before[1])
    assert_same_bits(logits, before[0])
    with pytest.raises(gptoss.InUseError):
        model.close()
    del generator, logits, keys
    gc.collect()
    model.close()


# ---- leaks ----


class MallInfo(ctypes.Structure):
    """What mallinfo2 of the GNU C library returns."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def test_the_heap_does_not_grow(options: dict[str, Any]) -> None:
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        pytest.skip("the C library does not tell what its heap holds")
    mallinfo.restype = MallInfo

    def used() -> int:
        gc.collect()
        info = mallinfo()
        return int(info.uordblks + info.hblkhd)

    def fail(hook: Callable[[int], int]) -> None:
        for n in range(2, 30, 3):
            with gptoss.Model(**options) as model:
                generator = open_generator(model, 300)
                hook(n)
                with contextlib.suppress(gptoss.DeviceError, gptoss.OutOfMemoryError):
                    steps(model, generator)
                assert hook(0) >= n

    for hook in (_core.lose_vulkan_device, _core.fail_allocation):
        fail(hook)  # drivers keep what they compiled
        before = used()
        fail(hook)
        assert used() - before < 5000, hook  # a generator or a recording ten times is more
