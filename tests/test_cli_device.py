"""--device of the verbs, and `gptoss doctor` comparing a device with the CPU."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from models import Spec
from test_cli import cli  # noqa: F401
from vulkan_support import needs_vulkan

import gptoss
from gptoss import _core, device_test
from gptoss.cli import doctor


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the kernels and the question, which test_cli.py has, and with few tokens."""
    monkeypatch.setattr(doctor, "self_test", lambda isa, seed: [])
    check = doctor.Check("demo model", True, "not asked")
    monkeypatch.setattr(doctor, "check_demo", lambda: (check, "avx2"))
    monkeypatch.setattr(device_test, "_NUM_TOKENS", 12)


def test_doctor_lists_devices_or_says_why_not(cli: Any, quick: None) -> None:  # noqa: F811
    facts = json.loads(cli("doctor", "--json")[1])
    try:
        devices = _core.vulkan_devices()
    except gptoss.Error as error:
        assert facts["vulkan_devices"] == [] and facts["vulkan_problem"] == str(error)
        return
    assert [(d["name"], d["kind"], d["memory_bytes"]) for d in facts["vulkan_devices"]] == devices
    if devices:
        assert f"vulkan:0  {'':<4}{devices[0][0]}" in cli("doctor")[1]


def test_doctor_without_a_driver(cli: Any, quick: None, monkeypatch: Any) -> None:  # noqa: F811
    def refuse() -> Any:
        raise gptoss.UnsupportedError("Vulkan is not available: no driver was found")

    monkeypatch.setattr(_core, "vulkan_devices", refuse)
    code, out, _ = cli("doctor")
    assert code == 0 and "no driver was found" in out
    code, out, _ = cli("doctor", "--device", "vulkan:no such")
    assert code == 1 and "demo on vulkan:no such" in out


def test_doctor_options_that_need_a_device(cli: Any) -> None:  # noqa: F811
    code, _, err = cli("doctor", "--model", "demo")
    assert code == 2 and "--device" in err


@needs_vulkan
def test_doctor_compares(cli: Any, quick: None, monkeypatch: Any) -> None:  # noqa: F811
    run, known = device_test._run, dict[str, Any]()

    def remember(model: gptoss.Model, *rest: Any) -> Any:
        known[model.device] = run(model, *rest)
        return known[model.device]

    monkeypatch.setattr(device_test, "_run", remember)
    code, out, _ = cli("doctor", "--device", "vulkan", "--precision", "fp32")
    assert code == 0 and "demo on vulkan" in out and "largest difference" in out
    assert len(known) == 2

    def wrong(model: gptoss.Model, *_: Any) -> Any:
        result = dict(known[model.device])
        if model.device != "cpu":
            result["layers.3.mlp_norm"] = result["layers.3.mlp_norm"] * np.float32(1.1)
            result["layers.5.q"] = result["layers.5.q"] * np.float32(np.nan)
        return result

    monkeypatch.setattr(device_test, "_run", wrong)
    code, out, _ = cli("doctor", "--device", "vulkan", "--precision", "fp32", "--json")
    facts = json.loads(out.replace("NaN", "null"))
    assert code == 1 and not facts["passed"]
    check = facts["checks"][-1]
    assert check["detail"].startswith("layers.3.mlp_norm is the first beyond the tolerance")
    beyond = {
        each["name"]
        for each in facts["comparisons"][0]["differences"]
        if each["largest"] is None or each["largest"] > facts["comparisons"][0]["tolerance"]
    }
    assert beyond == {"layers.3.mlp_norm", "layers.5.q"}


def test_router_ties_end_a_comparison_and_nothing_else_does() -> None:
    rng = np.random.default_rng(0)
    logits = np.array([[3, 2, 1, 0.0], [3, 2, 1.999, 0]])
    theirs = {
        "layers.0.router_logits": logits,
        "layers.0.router_experts": np.array([[0, 1], [0, 1]], np.int32),
        "layers.0.residual": rng.standard_normal((2, 8)),
    }
    ours = {name: array.copy() for name, array in theirs.items()}
    ours["layers.0.router_experts"][1] = [0, 2]
    ours["layers.0.residual"][1] += 1
    for is_tie in (True, False):
        result = device_test.DeviceComparison("x", "fp32", 2e-3, 2, 2)
        result.differences += device_test._compare(ours, theirs, result)
        assert result.passed is is_tie and result.num_compared == 1
        logits[1, 2] = 1


@needs_vulkan
def test_generate_on_a_device(cli: Any) -> None:  # noqa: F811
    options = ("--max-tokens", "3", "--temperature", "0")
    expected = cli("generate", "Once", *options)
    assert cli("generate", "Once", *options, "--device", "vulkan") == expected
    assert expected[0] == 0 and len(expected[1]) > 4


@needs_vulkan
def test_several_devices_and_a_limit(cli: Any, quick: None) -> None:  # noqa: F811
    options = ("--max-tokens", "3", "--temperature", "0")
    expected = cli("generate", "Once", *options)
    two, limit = ("--device", "vulkan:0,vulkan:0"), ("--gpu-memory", "60MB")
    for how in (two, (*two, "--gpu-memory", "50MB,60MB"), ("--device", "vulkan", *limit)):
        assert cli("generate", "Once", *options, *how) == expected
    code, out, _ = cli("doctor", "--device", "vulkan", *limit, "--precision", "fp32", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["comparisons"][0]["device"].endswith(" + cpu")
    code, _, err = cli("doctor", *limit)
    assert code == 2 and "--gpu-memory" in err
    for verb in (("generate", "x"), ("chat",), ("bench",), ("perplexity", __file__)):
        code, _, err = cli(*verb, "--device", "vulkan", "--gpu-memory", "1MB")
        assert code == 1 and "no room for one layer" in err and len(err.splitlines()) == 1


@needs_vulkan
def test_bench_on_a_device(cli: Any, make_directory: Any) -> None:  # noqa: F811
    directory = make_directory(Spec())
    tests = (directory, "--prompt", "9", "--generate", "2", "--repeat", "1", "--profile")
    code, out, _ = cli("bench", *tests, "--device", "vulkan")
    name = _core.vulkan_devices()[0][0]
    assert code == 0 and name in out and "limits are measured on CPUs only" in out
    assert "reached" not in out and "Prefill" in out
    code, out, _ = cli("bench", *tests, "--device", "vulkan", "--json")
    report = json.loads(out)
    assert report["limits"] is None and report["options"]["device"] == name
    assert report["results"][0]["limit"]["share"] is None


@needs_vulkan
def test_perplexity_on_a_device(cli: Any, tmp_path: Any) -> None:  # noqa: F811
    text = tmp_path / "text"
    text.write_text("Once upon a time there was a little girl who lived in a small house. " * 2)
    values = []
    for device in ("cpu", "vulkan"):
        size = ("--context", "9", "--chunks", "1")
        code, out, _ = cli("perplexity", str(text), *size, "--device", device, "--json")
        assert code == 0
        values.append(json.loads(out)["perplexity"]["value"])
    assert abs(values[0] - values[1]) < 1e-2 * values[0]


def test_a_device_that_is_not_there(cli: Any) -> None:  # noqa: F811
    for verb in (("generate", "x"), ("chat",), ("bench",), ("perplexity", __file__)):
        code, _, err = cli(*verb, "--device", "vulkan:no such GPU")
        assert code == 1 and "Vulkan" in err and len(err.splitlines()) == 1


@needs_vulkan
def test_loading_tells_its_progress_and_can_be_stopped() -> None:
    told: list[tuple[int, int]] = []
    with gptoss.Model("demo", device="vulkan", progress=lambda *bytes_: told.append(bytes_)):
        pass
    done = [each for each, _ in told]
    assert done == sorted(done) and told[-1][0] == told[-1][1] > 10_000_000 and len(told) > 10

    def stop(done: int, total: int) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError):
        gptoss.Model("demo", device="vulkan", progress=stop)
