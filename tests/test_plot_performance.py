"""benchmarks/plot_performance.py draws what the benchmarks print."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from test_benchmark import fixed_limits, make_peer  # noqa: F401
from test_cli import cli  # noqa: F401

pytest.importorskip("matplotlib")
import plot_performance

KERNEL = {
    "operation": "matvec_mxfp4",
    "isa": "avx2",
    "what": "1 core, cache",
    "value": 4.5,
    "unit": "GB/s",
    "limit": 9.0,
}


def draw(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["plot_performance.py", *map(str, arguments)])
    return plot_performance.main()


def test_every_picture(cli, fixed_limits, make_peer, tmp_path, monkeypatch):  # noqa: F811
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"")
    sizes = ("-p", "64,8", "-n", "8", "-d", "0,128", "-r", "2")
    peer = ("--peer", make_peer("llama"), "--peer-model", gguf)
    code, out, _ = cli("bench", "--json", *sizes, *peer)
    assert code == 1  # the recorded output has no pp8
    run, kernels, output = tmp_path / "demo.json", tmp_path / "kernels.jsonl", tmp_path / "images"
    run.write_text(out)
    kernels.write_text("".join(json.dumps(one) + "\n" for one in (KERNEL, KERNEL)))
    assert draw(monkeypatch, run, kernels, "--output", output) == 0
    first = {path.name: path.read_bytes() for path in output.iterdir()}
    assert set(first) == {f"{name}.svg" for name in plot_performance.PICTURES}
    assert all(b"</svg>" in picture for picture in first.values())
    assert draw(monkeypatch, run, kernels, "--output", output) == 0
    assert first == {path.name: path.read_bytes() for path in output.iterdir()}


def test_pictures_without_figures_are_left_out(tmp_path, monkeypatch):
    kernels = tmp_path / "kernels.jsonl"
    kernels.write_text(json.dumps(KERNEL))
    assert draw(monkeypatch, kernels, "--output", tmp_path, "--format", "png") == 0
    assert [path.name for path in tmp_path.glob("*.png")] == ["performance_kernels.png"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", "no JSON", '{"operation": "x"}'])
def test_other_files_are_refused(tmp_path: Path, monkeypatch, capsys, text: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(text)
    assert draw(monkeypatch, file, "--output", tmp_path / "images") == 1
    assert "other.json is neither" in capsys.readouterr().err
