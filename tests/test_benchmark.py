"""What gptoss.benchmark counts, computes and reads from other engines. No test looks at a time."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import gptoss
from gptoss import _core, benchmark, synthetic
from gptoss.benchmark import Limits, Peer, PeerError, Result, Statistics, Test, make_tests
from gptoss.benchmark import measure as measure_module
from gptoss.profile import Profile

RECORDED = Path(__file__).parent / "peers"
HELP = {
    "llama": "  -p, --n-prompt <n>\n  -n, --n-gen <n>\n  -d, --n-depth <n>\n",
    "ik": "  -p, --n-prompt <n>\n  -n, --n-gen <n>\n  -gp <pp,tg>\n",
}


@pytest.fixture
def fixed_limits(monkeypatch: pytest.MonkeyPatch) -> Limits:
    """Limits that are there at once."""
    limits = Limits(2, "avx2", (10e9, 20e9), (90e9, 100e9), 1)
    monkeypatch.setattr(measure_module, "measure_limits", lambda *_: limits)
    return limits


# ---- limits ----


UNITS = [
    *((name, "fp32") for name, available in _core.isas() if available),
    *((name, "bf16") for name, available in _core.bf16_isas() if available),
]


@pytest.mark.parametrize(("isa", "precision"), UNITS)
@pytest.mark.parametrize("threads", [1, 3])
def test_limits_are_above_zero(
    isa: str, precision: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark.limits, "_MIN_READ_BYTES", 1 << 22)
    monkeypatch.setattr(benchmark.limits, "last_cache_bytes", lambda: 0)
    monkeypatch.setattr(benchmark.limits, "_FMA_SECONDS", 0.001)
    limits = benchmark.measure_limits(threads, isa, precision)
    assert limits.bytes_per_second == max(limits.read_samples) > 0
    assert (limits.threads, limits.isa, limits.precision) == (threads, isa, precision)
    if _core.measure_fma(isa, 1):
        assert limits.flops_per_second == max(limits.flop_samples) > 0
    else:
        assert limits.flops_per_second is None
    both = limits | limits
    assert both.read_samples == 2 * limits.read_samples
    assert both.bytes_per_second == limits.bytes_per_second and both.precision == precision


def test_bf16_multiplies_on_its_unit_and_reads_with_vectors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    multiplied: list[str] = []

    def measure_fma(isa: str, num_rounds: int) -> int:
        multiplied.append(isa)
        return num_rounds

    monkeypatch.setattr(benchmark.limits, "_MIN_READ_BYTES", 1 << 16)
    monkeypatch.setattr(_core, "measure_fma", measure_fma)
    limits = benchmark.measure_limits(1, "amx", "bf16")
    assert limits.flops_per_second and limits.bytes_per_second > 0
    assert set(multiplied) == {limits.isa} == {"amx"}


@pytest.mark.parametrize("isa", ["amx", "avx512_bf16", "avx512", "no such"])
def test_only_what_is_there_is_measured(isa: str) -> None:
    if (isa, True) in [*_core.isas(), *_core.bf16_isas()]:
        assert _core.measure_fma(isa, 3) > 0
    else:
        with pytest.raises(gptoss.UnsupportedError, match=f"no kernels for {isa}"):
            _core.measure_fma(isa, 3)


def test_a_thread_that_fails_ends_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise MemoryError("no room")

    monkeypatch.setattr(benchmark.limits, "_MIN_READ_BYTES", 1 << 16)
    monkeypatch.setattr(_core, "measure_read", fail)
    with pytest.raises(MemoryError, match="no room"):
        benchmark.measure_limits(3, "scalar")


# ---- tests and figures ----


def test_names_and_order_of_tests() -> None:
    tests = make_tests([512, 64], [128], [4096, 0, 0], [1, 16])
    assert [str(test) for test in tests] == [
        *("pp512", "pp64", "tg128", "tg128x16"),
        *("pp512@4096", "pp64@4096", "tg128@4096", "tg128x16@4096"),
    ]
    assert tests[-1].context == 4224 and tests[-1].all_tokens == 2048
    assert make_tests([], []) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("prefil", 1), "'prefil'"),
        (("prefill", 0), "tokens must be at least 1"),
        (("decode", 1, -1), "depth must be at least 0"),
        (("decode", 1, 0, 0), "sequences"),
        (("prefill", 1, 0, 2), "not prefilled"),
    ],
)
def test_wrong_tests_are_refused(arguments: tuple, words: str) -> None:
    with pytest.raises(gptoss.ArgumentError, match=words):
        Test(*arguments)


def test_statistics() -> None:
    assert Statistics.of([3.0, 1.0, 10.0, 2.0]) == Statistics(2.5, 1.0, 10.0)
    assert Statistics.of([4.0]) == Statistics(4.0, 4.0, 4.0)


def profile_of(weight_bytes: int, kv_bytes: int, linear: int, attention: int) -> Profile:
    return Profile.of(
        [
            ("norm_linear", 1, 1000, 1, weight_bytes, 0, linear),
            ("attention", 1, 1000, 1, 0, kv_bytes, attention),
            ("pass", 1, 3000, 0, 0, 0, 0),
        ]
    )


def test_shares_by_hand() -> None:
    limits = Limits(2, "avx2", (10e9, 20e9, 5e9), (90e9, 100e9), 1)
    profile = profile_of(3 * 800_000_000, 3 * 200_000_000, 3 * 600_000_000, 3 * 1_000_000)
    decode = Result(Test("decode", 10), (1.0, 2.0, 4.0), profile, limits)  # 3 * 10 tokens
    assert decode.tokens_per_second == Statistics(5.0, 2.5, 10.0)
    assert decode.weight_bytes_per_token == 80e6 and decode.kv_bytes_per_token == 20e6
    assert decode.read_share == pytest.approx(5 * 100e6 / 20e9)
    assert decode.fma_share == pytest.approx(5 * 60e6 / 100e9)
    assert decode.limited_by == "read" and decode.share == decode.read_share
    assert decode.limit_tokens_per_second == pytest.approx(200)

    busy = profile_of(80_000_000, 0, 6_000_000_000, 1)
    prefill = Result(Test("prefill", 10), (1.0,), busy, limits)
    assert prefill.limited_by == "fma"
    assert prefill.share == pytest.approx(6e9 / 100e9)
    scalar = Result(prefill.test, (1.0,), busy, Limits(1, "scalar", (8e9,), (), 1))
    assert scalar.fma_share is None
    assert scalar.limited_by == "read" and scalar.share == pytest.approx(0.01)


# ---- a run ----


def test_run_counts_what_the_model_reads(fixed_limits: Limits) -> None:
    tests = make_tests([20], [5], [0, 30])
    told: list[tuple[int, int]] = []
    report = benchmark.run(
        "demo",
        tests,
        repetitions=3,
        threads=2,
        kv_dtype="f32",
        block_size=16,
        progress=lambda done, total: told.append((done, total)),
    )
    assert [result.test for result in report.results] == tests
    assert report.limits.read_samples == 2 * fixed_limits.read_samples
    assert report.options == {
        "device": "cpu",
        "threads": 2,
        "isa": report.options["isa"],
        "precision": "fp32",
        "kv_dtype": "f32",
        "block_size": 16,
        "seed": 0,
    }
    for result in report.results:
        passes = 1 if result.test.kind == "prefill" else 5
        assert result.profile.passes == 3 * passes
        assert result.profile["embed"].rows == 3 * result.test.tokens
        assert len(result.seconds) == 3 and min(result.seconds) > 0
        assert result.share > 0 and result.kv_bytes_per_token > 0
    assert all(0 <= done <= total for done, total in told)
    assert told[-1] == (5 + 3 * 5, 5 + 3 * 5)  # the last test's warm-up and repetitions
    # One token of an empty context, by hand: every dense weight, half of the experts.
    decode = benchmark.run("demo", [Test("decode", 1)], repetitions=1).results[0]
    with gptoss.Model("demo") as model:
        sizes = {name: model.tensor_info(name).num_bytes for name in model.tensors}
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    embedding = sizes["model.embed_tokens.weight"]
    dense = sum(sizes.values()) - experts - embedding + embedding // 4096
    assert decode.weight_bytes_per_token == dense + experts // 2


def test_the_same_seed_gives_the_same_tokens(fixed_limits: Limits) -> None:
    def counts(seed: int) -> list[int]:
        report = benchmark.run("demo", [Test("prefill", 3)], repetitions=4, seed=seed)
        return [operation.weight_bytes for operation in report.results[0].profile]

    assert counts(1) == counts(1)
    assert any(counts(seed) != counts(1) for seed in range(2, 6))


def test_several_sequences(fixed_limits: Limits) -> None:
    tests = make_tests([], [4], [0, 10], [1, 3])
    for result in benchmark.run("demo", tests, repetitions=2).results:
        assert result.profile["embed"].rows == 2 * result.test.all_tokens
        assert result.profile.passes == 2 * 4


def test_interruption_keeps_what_was_timed(fixed_limits: Limits) -> None:
    def stop(done: int, total: int) -> None:
        if done >= 8 + 2 * 8:  # the warm-up and two repetitions
            raise KeyboardInterrupt

    with benchmark.Benchmark("demo", [Test("prefill", 8)]) as bench:
        with pytest.raises(KeyboardInterrupt):
            bench.measure(bench.tests[0], 5, stop)
        (result,) = bench.report(again=False).results
        assert len(result.seconds) == 1
        assert result.profile.passes == 1
        again = bench.measure(bench.tests[0], 2)
        assert len(again.seconds) == 2


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(gptoss.ArgumentError, match="nothing to measure"):
        benchmark.run("demo", [])


# ---- synthetic models ----


def test_synthetic_model_comes_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    preset = synthetic.find_preset("mini", 1)
    told: list[tuple[int, int]] = []
    with synthetic.synthetic_model(preset, progress=lambda *done: told.append(done)) as path:
        assert path.is_relative_to(tmp_path)
        with gptoss.Model(path) as model:
            assert model.config.num_layers == 1
    assert told[-1] == (synthetic.weight_bytes(preset),) * 2
    assert not list(tmp_path.iterdir())


def test_synthetic_model_is_kept_and_used_again(tmp_path: Path) -> None:
    preset, keep = synthetic.find_preset("mini", 1), tmp_path / "kept"
    with synthetic.synthetic_model(preset, keep=keep) as path:
        assert path == keep
    before = (keep / "config.json").stat().st_mtime_ns
    with synthetic.synthetic_model(preset, keep=keep):
        assert (keep / "config.json").stat().st_mtime_ns == before
    other = synthetic.find_preset("mini", 2)
    with (
        pytest.raises(gptoss.ArgumentError, match="another model"),
        synthetic.synthetic_model(other, keep=keep),
    ):
        pass


def test_interrupted_writing_leaves_nothing(tmp_path: Path) -> None:
    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthetic.synthesize(synthetic.find_preset("mini"), 0, tmp_path / "model", stop)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1_000_000_000})
    monkeypatch.setattr(synthetic.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(gptoss.FileError, match=r"needs 13\.8 GB, .* has 1\.0 GB free"):
        synthetic.synthesize(synthetic.find_preset("gpt-oss-20b"), 0, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_unknown_presets_are_refused() -> None:
    with pytest.raises(gptoss.ArgumentError, match="did you mean 'gpt-oss-20b'"):
        synthetic.find_preset("gpt-oss-20")
    with pytest.raises(gptoss.ArgumentError, match="layers must be from 1"):
        synthetic.find_preset("mini", 0)


# ---- peers ----

MakePeer = Callable[..., str]


@pytest.fixture
def make_peer(tmp_path: Path) -> MakePeer:
    """make_peer(variant, output=None, code=0, stderr="") -> the path of a program that does what a
    llama-bench did when its output was recorded."""

    def make(variant: str, output: str | None = None, code: int = 0, stderr: str = "") -> str:
        if output is None:
            output = (RECORDED / f"{variant}.json").read_text()
        program = tmp_path / f"{variant}-llama-bench"
        program.write_text(
            f"#!{sys.executable}\nimport sys\n"
            f"if sys.argv[1] == '--help':\n    print({HELP[variant]!r})\n    sys.exit()\n"
            f"print({output!r})\nprint({stderr!r}, file=sys.stderr)\nsys.exit({code})\n"
        )
        program.chmod(0o755)
        return str(program)

    return make


@pytest.mark.parametrize(
    ("variant", "name", "deep"),
    [("llama", "llama.cpp", ["-d", "128"]), ("ik", "ik_llama.cpp", ["-gp", "128,8"])],
)
def test_recorded_outputs(make_peer: MakePeer, variant: str, name: str, deep: list[str]) -> None:
    entries = json.loads((RECORDED / f"{variant}.json").read_text())
    peer = Peer(f"{make_peer(variant)} -fa 1")
    assert peer.name == name
    for test, index in ((Test("prefill", 64), 0), (Test("decode", 8), 1)):
        result = peer.measure(test, Path("tiny.gguf"), threads=2, repetitions=3)
        assert result.samples == pytest.approx(entries[index]["samples_ts"], rel=1e-4)
        assert result.tokens_per_second.maximum == max(result.samples)
        assert result.command[-2:] == ("-fa", "1")
        assert result.facts["n_threads"] == 2 and "samples_ns" not in result.facts
    test = Test("decode", 8, 128)
    result = peer.measure(test, Path("tiny.gguf"), threads=2)
    (expected,) = (
        entry
        for entry in entries
        if entry["n_gen"] == 8 and 128 in (entry.get("n_depth"), entry["n_prompt"])
    )
    assert result.samples == pytest.approx(expected["samples_ts"], rel=1e-4)
    words = list(result.command)
    assert words[words.index(deep[0]) + 1] == deep[1]
    with pytest.raises(PeerError, match="no result of tg9"):
        peer.measure(Test("decode", 9), Path("tiny.gguf"), threads=2)
    json.dumps(result.as_dict())


def test_tests_that_a_peer_lacks(make_peer: MakePeer) -> None:
    ik = Peer(make_peer("ik"))
    with pytest.raises(gptoss.UnsupportedError, match="no prompt behind others"):
        ik.measure(Test("prefill", 64, 128), Path("tiny.gguf"), threads=1)
    with pytest.raises(gptoss.UnsupportedError, match="one sequence"):
        ik.measure(Test("decode", 8, 0, 2), Path("tiny.gguf"), threads=1)


def test_lines_around_the_json(make_peer: MakePeer) -> None:
    recorded = (RECORDED / "ik.json").read_text()
    peer = Peer(make_peer("ik", f"loading [model]\n{recorded}\ndone\n"))
    assert peer.measure(Test("prefill", 64), Path("x.gguf"), threads=1).samples


@pytest.mark.parametrize(
    ("output", "code", "words"),
    [
        ("", 1, r"failed with 1: two \| three \| four \| five \| six"),
        ("nothing", 0, "printed no JSON: two"),
        ("[\n{\n]", 0, "printed no JSON"),
        ('[\n{"n_prompt": 8, "n_gen": 0}\n]', 0, "no times of pp8"),
    ],
)
def test_failures_show_the_last_lines(
    make_peer: MakePeer, output: str, code: int, words: str
) -> None:
    peer = Peer(make_peer("llama", output, code, "one\ntwo\n\nthree\nfour\nfive\nsix"))
    with pytest.raises(PeerError, match=words):
        peer.measure(Test("prefill", 8), Path("x.gguf"), threads=1)


def test_what_is_no_llama_bench(tmp_path: Path) -> None:
    with pytest.raises(gptoss.FileError, match="there is no program 'no-such-bench'"):
        Peer("no-such-bench")
    with pytest.raises(PeerError, match="is no llama-bench"):
        Peer("true" if os.path.exists("/bin/true") else "/usr/bin/true")
