"""`gptoss perplexity` and its statistics, beside llama-perplexity's definitions, written here anew
from the logits of every token."""

from __future__ import annotations

import errno
import fractions
import io
import json
import math
import random
import re
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import Spec

import gptoss
from gptoss.cli import main, perplexity
from gptoss.perplexity import Chunks, Estimate, Statistics, encode_pieces
from gptoss.score import Score, text_ids
from gptoss.spool import Spool

SEED = secrets.randbelow(2**32)
WORDS = "Once upon a time there was small cat dog who lived in house near river and ran"


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """cli(*arguments, stdin=bytes) -> (exit code, standard output, standard error)."""

    def run(*arguments: Any, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code = main(["perplexity", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(SEED)
    path = tmp_path_factory.mktemp("text") / "story.txt"
    path.write_text(". ".join(" ".join(rng.choices(WORDS.split(), k=9)) for _ in range(40)) + "\n")
    return path


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory, demo: gptoss.Model) -> Iterator[gptoss.Model]:
    """The demo model with coarser router weights, behind a tokenizer that adds BOS."""
    from models import write_safetensors

    directory = tmp_path_factory.mktemp("rounded")
    tensors = {name: np.asarray(tensor) for name, tensor in demo.tensors.items()}
    for name, tensor in tensors.items():
        if name.endswith(("q_proj.weight", "lm_head.weight")):
            tensors[name] = tensor.astype(np.float16) * np.float16(0.97)
    write_safetensors(directory / "model.safetensors", tensors)
    for file in demo.path.iterdir():
        if file.name not in ("model.safetensors", "tokenizer_config.json"):
            (directory / file.name).symlink_to(file)
    config = json.loads((demo.path / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": True}))
    with gptoss.Model(directory) as opened:
        yield opened


def log_softmax(model: gptoss.Model, tokens: list[int]) -> np.ndarray:
    logits = gptoss.Generator(model).prefill(tokens, all_logits=True).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def llama_losses(
    model: gptoss.Model, tokens: list[int], n_ctx: int, bos: int | None, max_chunks: int = 10**9
) -> list[tuple[np.ndarray, int]]:
    """(distribution, right token) of every token that llama-perplexity scores: the text in chunks
    of n_ctx, BOS in place of the first token of each, tokens n_ctx / 2 + 1 and on."""
    scored = []
    for chunk in range(min(len(tokens) // n_ctx, max_chunks)):
        part = tokens[chunk * n_ctx : (chunk + 1) * n_ctx]
        fed = part if bos is None else [bos, *part[1:]]
        rows = log_softmax(model, fed)
        for row in range(n_ctx // 2, n_ctx - 1):
            scored.append((rows[row], part[row + 1]))
    return scored


def llama_strided(model: gptoss.Model, tokens: list[int], n_ctx: int, stride: int) -> list[Any]:
    """The same of its --ppl-stride: the context grows by half the stride, the last `stride` tokens
    of each window count, BOS comes too late to have an effect."""
    n_ctx += stride // 2
    scored = []
    for chunk in range((len(tokens) - n_ctx + stride - 1) // stride):
        part = tokens[chunk * stride : chunk * stride + n_ctx]
        rows = log_softmax(model, part)
        for row in range(n_ctx - stride - 1, n_ctx - 1):
            scored.append((rows[row], part[row + 1]))
    return scored


def llama_estimate(scored: list[Any]) -> tuple[float, float]:
    """Its final estimate and +/-."""
    nll = np.array([-row[token] for row, token in scored])
    mean, square = nll.mean(), (nll**2).mean() - nll.mean() ** 2
    return math.exp(mean), math.sqrt(square / (len(nll) - 1)) * math.exp(mean)


# ---- the definition ----


@pytest.mark.parametrize("context", [3, 64, 101])
@pytest.mark.parametrize("with_bos", [False, True])
def test_perplexity_is_llamas(
    cli: Any, story: Path, demo: gptoss.Model, rounded: gptoss.Model, context: int, with_bos: bool
) -> None:
    model = rounded if with_bos else demo
    tokens = model.tokenizer.encode(story.read_text()[:-1])
    bos = model.tokenizer.bos_id if with_bos else None
    tokens = tokens if bos is None else [bos, *tokens]
    limit = 3 if context == 64 else 20
    code, out, _ = cli(story, "-m", model.path, "-c", context, "--chunks", limit, "--json")
    assert code == 0
    facts = json.loads(out)
    scored = llama_losses(model, tokens, context, bos, limit)
    value, error = llama_estimate(scored)
    assert facts["tokens"] == len(tokens) and facts["scored"] == len(scored)
    assert facts["chunks"] == min(limit, len(tokens) // context)
    assert facts["perplexity"]["value"] == pytest.approx(value, rel=1e-10)
    assert facts["perplexity"]["error"] == pytest.approx(error, rel=1e-8)


@pytest.mark.parametrize(("context", "stride"), [(64, 40), (60, 60), (20, 1)])
def test_strided_perplexity_is_llamas(
    cli: Any, story: Path, rounded: gptoss.Model, context: int, stride: int
) -> None:
    text = story.read_text()[:600]
    tokens = [rounded.tokenizer.bos_id, *rounded.tokenizer.encode(text)][: context + 30 + stride]
    text = rounded.tokenizer.decode(tokens[1:])
    tokens = [rounded.tokenizer.bos_id, *rounded.tokenizer.encode(text)]
    arguments = ("-m", rounded.path, "-c", context, "--stride", stride, "--json")
    code, out, err = cli("-", *arguments, stdin=text.encode())
    assert code == 0, err
    facts = json.loads(out)
    value, error = llama_estimate(llama_strided(rounded, tokens, context, stride))
    assert facts["perplexity"]["value"] == pytest.approx(value, rel=1e-10)
    assert facts["perplexity"]["error"] == pytest.approx(error, rel=1e-8)


def test_divergence_is_llamas(
    cli: Any, story: Path, demo: gptoss.Model, rounded: gptoss.Model
) -> None:
    """--kl-divergence, without its rounding of the base's logits to 16 bits."""
    tokens = demo.tokenizer.encode(story.read_text()[:-1])
    arguments = (story, "-c", 64, "--chunks", 3, "--reference", rounded.path)
    code, out, _ = cli(*arguments, "--json")
    assert code == 0
    facts = json.loads(out)
    ours, theirs = (llama_losses(model, tokens, 64, None, 3) for model in (demo, rounded))
    rows = list(zip(ours, theirs, strict=True))
    assert facts["scored"] == len(rows)
    kl = np.array([(np.exp(base) * (base - row)).sum() for (row, _), (base, _) in rows])
    delta = np.array([math.exp(row[t]) - math.exp(base[t]) for (row, t), (base, _) in rows])
    same = np.mean([row.argmax() == base.argmax() for (row, _), (base, _) in rows])
    assert kl.mean() > 1e-4
    assert facts["kl"]["value"] == pytest.approx(kl.mean(), rel=1e-8)
    assert facts["kl"]["error"] == pytest.approx(kl.std(ddof=1) / math.sqrt(len(kl)), rel=1e-8)
    assert facts["kl_distribution"]["50%"] == pytest.approx(np.median(kl), rel=1e-8)
    assert facts["kl_distribution"]["max"] == pytest.approx(kl.max(), rel=1e-8)
    assert facts["delta"]["value"] == pytest.approx(delta.mean(), rel=1e-8)
    assert facts["rms_delta"]["value"] == pytest.approx(math.sqrt((delta**2).mean()), rel=1e-8)
    assert facts["same_top"]["value"] == pytest.approx(same)
    for name, scored in (("perplexity", ours), ("reference_perplexity", theirs)):
        assert facts[name]["value"] == pytest.approx(llama_estimate(scored)[0], rel=1e-10)

    code, out, err = cli(*arguments)
    assert code == 0
    assert err == f"{story}: {len(tokens):,} tokens, 3 chunks of 64, {len(rows)} tokens count\n"
    assert f"{kl.mean():.6f}" in out and f"{100 * same:.4f}%" in out
    titles = [line for line in out.splitlines() if not line.startswith(" ")]
    assert len(titles) == 4
    assert max(len(line.rstrip()) for line in out.splitlines()) < 80


def test_compare_reads_a_text_as_perplexity_does(
    cli: Any,
    capsys: pytest.CaptureFixture[str],
    story: Path,
    demo: gptoss.Model,
    rounded: gptoss.Model,
) -> None:
    _, out, _ = cli(story, "-c", 64, "--reference", rounded.path, "--json")
    compared = ["compare", str(rounded.path), str(demo.path), "--text", str(story), "-c", "64"]
    assert main([*compared, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["text"] == json.loads(out) and len(told["weights"]) > 100
    assert main(compared) == 0
    shown = capsys.readouterr().out
    assert "weights have equal values" in shown and "KL divergence" in shown
    assert main([*compared[:3], "--text", str(story.parent / "none")]) == 1
    assert capsys.readouterr().out == ""  # told before the weights are read


def test_plain_output_is_one_line(cli: Any, story: Path, demo: gptoss.Model) -> None:
    code, out, _ = cli(story, "-c", 100, "--chunks", 2)
    tokens = demo.tokenizer.encode(story.read_text()[:-1])
    value, error = llama_estimate(llama_losses(demo, tokens, 100, None, 2))
    assert (code, out) == (0, f"perplexity {value:.4f} ± {error:.4f}\n")


def test_ctrl_c_tells_the_perplexity_so_far(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("Once upon a time there was a small cat. " * 10000)
    command = ("-m", "gptoss", "perplexity", text, "-c", "16", "--isa", "scalar")
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert "chunks of 16" in process.stderr.readline()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert re.fullmatch(r"gptoss: stopped after \d+ chunks: perplexity [\d.]+ ± [\d.]+\n", err)


# ---- long texts ----


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 7, 64])
def test_a_file_is_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int
) -> None:
    monkeypatch.setattr(perplexity, "_PIECE_BYTES", piece_bytes)
    rng, file = random.Random(SEED), tmp_path / "text"
    for _ in range(60):
        text = "".join(rng.choices("aé漢👍\n\r ", k=rng.randrange(20)))
        file.write_bytes(text.encode())
        if text in ("", "\n"):
            with pytest.raises(gptoss.FormatError, match="the file is empty"):
                read_all(file)
            continue
        assert read_all(file) == text.removesuffix("\n")
        data = text.encode()
        cut = rng.randrange(len(data) + 1)
        for spoiled in (data[:cut] + b"\xff" + data[cut:], data[:-1] + b"\xe6\xbc"):
            file.write_bytes(spoiled)
            with pytest.raises(UnicodeDecodeError) as expected:
                spoiled.decode()
            with pytest.raises(gptoss.FormatError, match="not UTF-8") as caught:
                read_all(file)
            assert caught.value.offset == expected.value.start


def read_all(file: Path) -> str:
    with perplexity.open_text(str(file)) as pieces:
        return "".join(pieces)


@pytest.mark.parametrize("bos", [False, True])
def test_pieces_have_the_ids_of_the_text(
    demo: gptoss.Model, rounded: gptoss.Model, story: Path, bos: bool
) -> None:
    text, model = story.read_text() * 60, rounded if bos else demo
    pieces = [text[i : i + 30_000] for i in range(0, len(text), 30_000)]
    assert len(text) > 80_000  # so that some is encoded before the end
    ids, has_bos = encode_pieces(model.tokenizer, pieces, demo.tokenizer)
    whole, whole_has_bos = text_ids(model, text)
    assert ids.tolist() == whole.tolist() and (has_bos, whole_has_bos) == (bos, bos)


def test_memory_does_not_depend_on_the_text(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of a process that tokenises for two models and scores a chunk. As one text, 1.4 MB
    more take over 200 MB."""
    peaks = []
    for copies in (1, 8):
        file = tmp_path / f"text{copies}"
        file.write_text("Once upon a time, there was a small cat.\n" * 5000 * copies)
        arguments = ["perplexity", str(file), "-r", "demo", "--chunks", "1", "--threads", "1"]
        code = (
            "import resource, sys; from gptoss.cli import main; failed = main(sys.argv[1:]);"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(failed)"
        )
        subprocess.run([sys.executable, "-c", code, *arguments], check=True)
        out = capfd.readouterr().out
        assert "KL divergence" in out
        peaks.append(int(out.splitlines()[-1]))
    assert peaks[1] - peaks[0] < 25_000, f"{peaks} kB"


def test_memory_does_not_depend_on_the_scored_tokens() -> None:
    rng, count = np.random.default_rng(SEED), 2000
    ids, same = np.zeros(count, np.int32), np.ones(count, np.bool_)
    statistics, all_kl = Statistics(), []
    peaks = []
    for parts in (1, 20):
        tracemalloc.start()
        for _ in range(parts):
            ours, theirs = -rng.exponential(3, count), -rng.exponential(3, count)
            all_kl.append(np.abs(ours - theirs))
            statistics.add(Score(ids, ours, ids, ours, theirs, all_kl[-1], same))
        told = statistics.as_dict()
        peaks.append(tracemalloc.get_traced_memory()[1] - parts * count * 8)  # all_kl's
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 60_000, f"{peaks} bytes"  # 20 * 2000 tokens, kept, take 640,000
    kl = np.concatenate(all_kl)
    assert told["kl_distribution"]["50%"] == np.median(kl)
    assert told["kl_distribution"]["max"] == kl.max()


@given(st.lists(st.lists(st.floats(allow_nan=False), max_size=20), max_size=5))
def test_a_spool_is_what_was_added(parts: list[list[float]]) -> None:
    spool, added = Spool(np.float64), []
    for part in parts:
        spool.add(part)
        added += part
        assert spool.array().tolist() == added
    array = spool.array()
    del spool
    array.sort()
    assert array.tolist() == sorted(added)


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spool, limits = Spool(np.int32), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(gptoss.FileError, match=r"file in /\S+: File too large") as e:
            spool.add(np.zeros(5000, np.int32))
            spool.array()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "TMPDIR" in str(e.value) and e.value.errno == errno.EFBIG
    del spool
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(gptoss.FileError, match="none: No such file or directory; TMPDIR"):
        Spool(np.int32)


# ---- chunks ----


@given(st.integers(0, 3000), st.integers(3, 300), st.none() | st.integers(1, 300), st.data())
def test_chunks(num_tokens: int, context: int, stride: int | None, data: Any) -> None:
    stride = None if stride is None else min(stride, context)
    limit = data.draw(st.none() | st.integers(1, 50))
    needed = context if stride is None else context + stride // 2 + 1
    if num_tokens < needed:
        with pytest.raises(gptoss.ArgumentError, match=f"{num_tokens:,} tokens.*{needed:,}"):
            Chunks.cut(num_tokens, context, stride, limit)
        return
    chunks = Chunks.cut(num_tokens, context, stride, limit)
    starts = list(chunks)
    assert 1 <= len(starts) == len(chunks) <= (limit or num_tokens)
    assert starts[-1] + chunks.size <= num_tokens
    assert 1 <= chunks.first < chunks.size
    scored = [i for start in starts for i in range(start + chunks.first, start + chunks.size)]
    assert len(scored) == len(set(scored)) == chunks.num_scored
    if limit is None:
        step = context if stride is None else stride
        assert starts[-1] + step + chunks.size > num_tokens - (stride is not None)
    if stride is not None:
        assert scored == list(range(scored[0], scored[-1] + 1))


# ---- statistics ----

probabilities = st.floats(-30, -1e-6)


@given(st.lists(st.tuples(probabilities, probabilities, st.booleans()), min_size=2, max_size=60))
def test_statistics_are_those_of_llama(values: list[tuple[float, float, bool]]) -> None:
    """In one part or many; the formulas as llama-perplexity prints them."""
    ours, theirs = (np.array([value[i] for value in values]) for i in (0, 1))
    same = np.array([value[2] for value in values])
    kl, count = np.abs(ours - theirs), len(values)
    ids = np.zeros(count, np.int32)
    whole, parts = Statistics(), Statistics()
    whole.add(Score(ids, ours, ids, kl, theirs, kl, same))
    for i in range(0, count, 7):
        rows = slice(i, i + 7)
        part = (ids[rows], ours[rows], ids[rows], kl[rows], theirs[rows], kl[rows], same[rows])
        parts.add(Score(*part))

    def uncertainty(sums: float, squares: float) -> tuple[float, float]:
        mean = sums / count
        return mean, math.sqrt(max(squares / count - mean**2, 0) / (count - 1))

    nll = uncertainty(-ours.sum(), (ours**2).sum())
    base = uncertainty(-theirs.sum(), (theirs**2).sum())
    covariance = ((ours * theirs).sum() / count - nll[0] * base[0]) / (count - 1)
    ratio_error = math.sqrt(max(nll[1] ** 2 + base[1] ** 2 - 2 * covariance, 0))
    delta = np.exp(ours) - np.exp(theirs)
    for found in (whole, parts):
        assert found.num_tokens == count and found.has_reference
        close(found.perplexity, math.exp(nll[0]), math.exp(nll[0]) * nll[1])
        close(found.reference_perplexity, math.exp(base[0]), math.exp(base[0]) * base[1])
        close(found.log_ratio, nll[0] - base[0], ratio_error)
        close(found.ratio, math.exp(nll[0] - base[0]), math.exp(nll[0] - base[0]) * ratio_error)
        scale = math.exp(max(nll[0], base[0]))
        assert found.difference.value == pytest.approx(
            math.exp(nll[0]) - math.exp(base[0]), abs=1e-9 * scale
        )
        close(found.kl, *uncertainty(kl.sum(), (kl**2).sum()))
        close(found.delta, *uncertainty(delta.sum(), (delta**2).sum()))
        mean = uncertainty((delta**2).sum(), (delta**4).sum())
        if mean[0] > 1e-12:
            close(found.rms_delta, math.sqrt(mean[0]), 0.5 / math.sqrt(mean[0]) * mean[1])
        share = same.mean()
        close(found.same_top, share, math.sqrt(share * (1 - share) / (count - 1)))
        distribution = found.kl_distribution()
        assert distribution["50%"] == pytest.approx(np.median(kl))
        assert distribution["max"] == kl.max() and distribution["min"] == kl.min()
        assert list(distribution.values()) == sorted(distribution.values(), reverse=True)
        json.dumps(found.as_dict(), allow_nan=False)


def close(found: Estimate, value: float, error: float) -> None:
    assert found.value == pytest.approx(value, rel=1e-9, abs=1e-12)
    assert found.error == pytest.approx(error, rel=1e-5, abs=1e-6 * max(1.0, abs(value)))


def test_the_error_of_a_difference() -> None:
    """Of nearly equal models: what stays where the variances cancel."""
    rng = np.random.default_rng(SEED)
    ours = -rng.exponential(3, 5000)
    theirs = ours + rng.normal(0, 1e-7, 5000)
    ids, same = np.zeros(5000, np.int32), np.ones(5000, np.bool_)
    statistics = Statistics()
    statistics.add(Score(ids, ours, ids, -ours, theirs, -ours, same))
    scales = [fractions.Fraction(math.exp(-values.mean())) for values in (ours, theirs)]
    first, second = ([fractions.Fraction(v) for v in values.tolist()] for values in (ours, theirs))
    apart = [scales[0] * a - scales[1] * b for a, b in zip(first, second, strict=True)]
    mean = sum(apart) / 5000
    error = math.sqrt(sum((a - mean) ** 2 for a in apart) / 5000 / 4999)
    assert statistics.difference.error == pytest.approx(error, rel=1e-3)
    assert statistics.correlation == pytest.approx(1)


def test_what_is_infinite_is_null_in_json() -> None:
    ids = np.zeros(3, np.int32)
    ours, theirs = np.array([-1.0, -np.inf, -2.0]), np.array([-1.0, -np.inf, -1.0])
    kl, same = np.array([0.0, np.inf, 1.0]), np.array([True, False, True])
    statistics = Statistics()
    statistics.add(Score(ids, ours, ids, kl, theirs, kl, same))
    facts = json.loads(json.dumps(statistics.as_dict(), allow_nan=False))
    assert facts["perplexity"] == {"value": None, "error": None}
    assert facts["kl_distribution"]["max"] is None
    assert statistics.perplexity.value == math.inf


# ---- mistakes ----


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        (b"", (), "-: the file is empty"),
        (b"\n", (), "-: the file is empty"),
        (b"cat", (), "the text has 2 tokens, and one chunk takes 512"),
        (b"a cat " * 50, ("-c", 200), "one chunk takes 200"),
        (b"a cat " * 50, ("-c", 80, "--stride", 80), "one chunk takes 121"),
        (b"ab\xff", (), "not UTF-8 text: byte 0xff at offset 2"),
        (b"a cat " * 3000, ("-c", 4097), "longer than the 4,096 positions"),
        (b"a cat " * 3000, ("-c", 4000, "--stride", 200), "a chunk of 4,100 tokens is longer"),
    ],
)
def test_errors_are_one_line(cli: Any, text: bytes, arguments: tuple[Any, ...], words: str) -> None:
    code, out, err = cli("-", *arguments, stdin=text)
    assert (code, out) == (1, "")
    assert words in err and err.count("\n") == 1


def test_wrong_usage(cli: Any, story: Path) -> None:
    assert cli()[0] == 2
    assert cli(story, "-c", 2)[0] == 2
    code, _, err = cli(story, "-c", 64, "--stride", 65)
    assert code == 2 and "--stride 65 is more than --context 64" in err
    code, _, err = cli(story.with_name("no-such-file"))
    assert code == 1 and "no-such-file: No such file or directory" in err


def test_models_that_cannot_be_compared(
    cli: Any, story: Path, make_directory: Callable[..., Path], tmp_path: Path, demo: gptoss.Model
) -> None:
    spec = Spec(vocab_size=5000)
    code, _, err = cli(story, "-c", 64, "--reference", make_directory(spec))
    assert code == 1 and "vocabulary of 5000 tokens and the model one of 4096" in err
    code, _, err = cli(story, "-c", 64, "-m", make_directory(spec))
    assert code == 1 and "tokenizer" in err
    for file in demo.path.iterdir():
        if file.name != "tokenizer.json":
            (tmp_path / file.name).symlink_to(file)
    files = json.loads((demo.path / "tokenizer.json").read_text())
    words = files["model"]["vocab"]
    words["Ġcat"], words["Ġdog"] = words["Ġdog"], words["Ġcat"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(files))
    code, _, err = cli(story, "-c", 64, "--reference", tmp_path)
    assert code == 1 and "the vocabularies differ" in err and "from number" in err
