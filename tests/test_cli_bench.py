"""`gptoss bench`: its options, its JSON, its tables, Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys

import pytest
from test_benchmark import fixed_limits, make_peer  # noqa: F401
from test_cli import cli, start  # noqa: F401

import gptoss
from gptoss import synthetic
from gptoss.cli import bench, bench_tables

QUICK = ("--prompt", "8", "--generate", "3", "--repeat", "2")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "1,x"], "--prompt takes numbers such as 128,512, not '1,x'"),
        (["-n", "-4"], "--generate takes numbers from 1 on, not -4"),
        (["-d", "0,-5"], "--depth takes numbers from 0 on, not -5"),
        (["--batch", "0"], "--batch takes numbers from 1 on, not 0"),
        (["-p", "0", "-n", "0"], "leave nothing to measure"),
        (["-r", "0"], "--repeat"),
        (["--kv", "f8"], "--kv"),
        (["--precision", "fp7"], "--precision"),
        (["--layers", "3"], "--layers, --layout and --keep are for the models of --preset"),
        (["--preset", "mini", "--layers", "0"], "--layers"),
        (["demo", "--preset", "mini"], "give MODEL or --preset, not both"),
        (["--peer-model", "x.gguf"], "--peer-model is the file for --peer"),
        (["--peer", "llama-bench"], "give it --peer-model FILE.gguf"),
        (["--precision", "fp7"], "fp7"),
    ],
)
def test_wrong_usage(cli, arguments, words):  # noqa: F811
    code, out, err = cli("bench", *arguments)
    assert (code, out) == (2, "")
    assert words in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no/such/model"], "no/such/model"),
        (["--isa", "avx9"], "avx9"),
        (["--preset", "gpt-oss-20"], "did you mean 'gpt-oss-20b'"),
        (["--peer", "no-such-bench", "--peer-model", "x.gguf"], "there is no file 'x.gguf'"),
    ],
)
def test_errors(cli, fixed_limits, arguments, words):  # noqa: F811
    code, out, err = cli("bench", *arguments)
    assert (code, out) == (1, "")
    assert words in err and err.count("\n") == 1


def test_a_synthetic_model_beyond_memory_is_refused(cli, monkeypatch):  # noqa: F811
    monkeypatch.setattr(bench, "available_memory", lambda: 10_000_000_000)
    code, out, err = cli("bench", "--preset", "gpt-oss-20b")
    assert (code, out) == (1, "")
    assert "needs 13.8 GB of memory, and 10.0 GB is available: choose fewer --layers" in err


def test_json_says_everything(cli, fixed_limits):  # noqa: F811
    options = ("--threads", "2", "--isa", "scalar", "--kv", "f32", "--block-size", "4")
    code, out, err = cli("bench", "--json", "--depth", "0,6", "--seed", "3", *QUICK, *options)
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert facts["schema"] == 1 and facts["gptoss"] == gptoss.__version__
    assert {"python", "numpy", "platform", "time"} <= facts.keys()
    assert {"cpu", "cpu_features", "cpus"} == facts["machine"].keys()
    assert facts["model"]["config"]["num_layers"] == 8 and facts["model"]["bytes"] > 1e7
    assert facts["options"] == {
        "device": "cpu",
        "threads": 2,
        "isa": "scalar",
        "precision": "fp32",
        "kv_dtype": "f32",
        "block_size": 4,
        "seed": 3,
    }
    assert facts["limits"]["bytes_per_second"] == 20e9 and facts["limits"]["read_samples"]
    assert [entry["test"] for entry in facts["results"]] == ["pp8", "tg3", "pp8@6", "tg3@6"]
    for entry in facts["results"]:
        assert {"kind", "tokens", "depth", "sequences", "per_token", "limit"} <= entry.keys()
        speeds = sorted(entry["tokens"] / seconds for seconds in entry["seconds"])
        speed = entry["tokens_per_second"]
        assert len(speeds) == 2
        assert [speed["minimum"], speed["maximum"]] == pytest.approx(speeds)
        assert entry["limit"]["share"] == pytest.approx(
            speed["median"] / entry["limit"]["tokens_per_second"]
        )
        operations = entry["profile"]["operations"]
        assert len(operations) == 9 and all(one["calls"] > 0 for one in operations)
    assert (facts["peers"], facts["peer_failures"], facts["interrupted"]) == ([], [], False)


def test_tables(cli, fixed_limits):  # noqa: F811
    code, out, err = cli("bench", "--profile", *QUICK)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("demo  gpt_oss, 8 layers · ")
    assert lines[1].endswith("reads 20.0 GB/s, float32 FMA 100 GFLOP/s")
    assert lines[3].split()[:2] == ["test", "tok/s"]
    assert [line.split()[0] for line in lines[4:6]] == ["pp8", "tg3"]
    assert "of read bandwidth" in lines[5]
    assert sum(line.startswith("expert_gate_up ") for line in lines) == 2
    assert lines[-1].startswith("Prefill ") and "; decode " in lines[-1]
    assert not any("\x1b" in line for line in lines)


def test_numbers_for_people():
    cases = {0.0123: "0.012", 1.234: "1.23", 12.345: "12.3", 310.44: "310.4", 1234.5: "1,234"}
    assert {value: bench_tables.number(value) for value in cases} == cases
    assert bench_tables.amount(8_110_000, "B") == "8.11 MB"
    assert bench_tables.amount(12, "FLOP") == "12 FLOP"


def test_preset(cli, fixed_limits, tmp_path, monkeypatch):  # noqa: F811
    tiny = synthetic.Preset(3, 4, 64, 64, 2, 1, 32, 2, 100)
    monkeypatch.setitem(synthetic.PRESETS, "gpt-oss-20b", tiny)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    command = ("bench", "--json", *QUICK, "--preset", "gpt-oss-20b", "--layers", "1")
    code, out, err = cli(*command)
    assert code == 0 and "random weights" in err
    assert json.loads(out)["model"]["config"]["num_layers"] == 1
    assert not list(tmp_path.iterdir())
    code, _, _ = cli(*command, "--keep", tmp_path / "kept")
    assert code == 0 and (tmp_path / "kept" / "config.json").exists()


def test_preset_as_gguf(cli, fixed_limits, make_peer, tmp_path):  # noqa: F811
    keep = tmp_path / "kept.gguf"
    command = ("bench", "--json", "--preset", "mini", "--layers", "1", "--layout", "gguf")
    command += ("-p", "64", "-n", "0", "-r", "1", "--keep", keep, "--peer", make_peer("ik"))
    code, out, _ = cli(*command)
    assert code == 0
    (peer,) = json.loads(out)["peers"]
    assert peer["command"][1:3] == ["-m", str(keep)]
    before = keep.stat().st_mtime_ns
    assert cli(*command)[0] == 0 and keep.stat().st_mtime_ns == before
    command = ("bench", "--preset", "mini", "--layout", "gguf", "--keep")
    code, _, err = cli(*command, keep)
    assert code == 1 and "another model" in err
    code, _, err = cli(*command, tmp_path / "directory")
    assert code == 1 and "ends in .gguf" in err


def test_peers_stand_beside_ours(cli, fixed_limits, make_peer, tmp_path):  # noqa: F811
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"")
    peers = ("--peer", make_peer("llama"), "--peer", make_peer("ik"), "--peer-model", gguf)
    sizes = ("-p", "64", "-n", "8", "-d", "0,128", "-r", "1")
    code, out, err = cli("bench", *sizes, *peers)
    assert code == 0  # in spite of one test that one of them lacks
    assert err == "gptoss: pp64@128: ik_llama.cpp: this llama-bench times no prompt behind others\n"
    lines = out.splitlines()
    start = next(number for number, line in enumerate(lines) if "llama.cpp" in line)
    assert lines[start].split() == [
        *("test", "gptoss", "llama.cpp", "ratio", "ik_llama.cpp", "ratio")
    ]
    rows = [line.split() for line in lines[start + 1 : start + 5]]
    assert [row[0] for row in rows] == ["pp64", "tg8", "pp64@128", "tg8@128"]
    assert [len(row) for row in rows] == [6, 6, 5, 6]
    for row in rows:
        ours, theirs, ratio = (float(cell.rstrip("x").replace(",", "")) for cell in row[1:4])
        assert ratio == pytest.approx(ours / theirs, rel=0.01, abs=0.006)


def test_a_failing_peer_is_asked_once(cli, fixed_limits, make_peer, tmp_path):  # noqa: F811
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"")
    peer = make_peer("llama", "", 3, "cannot load")
    code, out, err = cli("bench", "--json", *QUICK, "--peer", peer, "--peer-model", gguf)
    assert code == 1
    assert err == "gptoss: llama.cpp failed with 3: cannot load\n"
    facts = json.loads(out)
    assert len(facts["results"]) == 2 and facts["peers"] == []
    assert facts["peer_failures"] == ["llama.cpp failed with 3: cannot load"]


def test_interrupt_shows_what_was_measured():
    """The second test is far too long; it is interrupted once its bar is there."""
    program = (
        "import os, sys\n"
        "from gptoss.benchmark import measure, Limits\n"
        "measure.measure_limits = lambda threads, isa, _: Limits(threads, isa, (1e9,), (1e9,), 1)\n"
        "from gptoss.cli import bench, main\n"
        "run = measure.Benchmark.measure\n"
        "def spy(self, test, *arguments):\n"
        "    if test.kind == 'decode': print('now', file=sys.stderr, flush=True)\n"
        "    return run(self, test, *arguments)\n"
        "measure.Benchmark.measure = spy\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", program, "bench", "--json", "-p", "8", "-n", "100000"]
    command += ["-r", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any(line == "now\n" for line in process.stderr)
    with process:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    facts = json.loads(out)
    assert facts["interrupted"] is True
    assert [entry["test"] for entry in facts["results"]] == ["pp8"]


def test_narrow_terminal():
    """60 columns: no line is longer, and the speeds are whole."""
    leader, follower = pty.openpty()
    environment = os.environ | {"COLUMNS": "60", "TERM": "xterm", "NO_COLOR": "1"}
    process = start("bench", "--profile", *QUICK, stdout=follower, stderr=None, env=environment)
    os.close(follower)
    output = b""
    try:
        while chunk := os.read(leader, 4096):
            output += chunk
    except OSError:  # how a terminal says that nobody writes any more
        pass
    os.close(leader)
    assert process.wait() == 0
    assert b"\x1b" not in output
    lines = output.decode().splitlines()
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("test")) :]
    end = next(i for i, line in enumerate(table) if line.startswith("Prefill"))
    assert max(len(line.rstrip()) for line in table[:end]) <= 60
    assert not any("…" in line for line in table[:end])
    assert {"pp8", "tg3", "expert_gate_up"} <= {line.split()[0] for line in table if line.strip()}
