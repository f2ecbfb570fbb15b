"""`gptoss generate`, `inspect`, `doctor`, and what the command line does with mistakes."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import gguf_models
import numpy as np
import pytest
from models import Spec

import gptoss
from gptoss.cli import console, doctor, main
from gptoss.cli import inspect as inspect_verb

STORY = ["generate", "Once upon a time", "--temperature", "0", "--max-tokens"]


@pytest.fixture
def cli(capsys, monkeypatch):
    """cli(*arguments, stdin=bytes) -> (exit code, standard output, standard error)."""

    def run(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def start(*arguments, **options):
    """The command in a process of its own."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-m", "gptoss", *arguments]
    return subprocess.Popen(command, **(pipes | options))


# ---- the program ----


def test_no_verb_shows_help(cli):
    code, out, err = cli()
    assert code == 0
    assert out.startswith("Usage: gptoss")
    for verb in ("generate", "chat", "bench", "perplexity", "inspect", "doctor"):
        assert f"\n  {verb} " in out
    assert err == ""


def test_version(cli):
    assert cli("--version") == (0, f"gptoss {gptoss.__version__}\n", "")


@pytest.mark.parametrize("verb", ["generate", "chat", "bench", "perplexity", "inspect", "doctor"])
def test_help_has_an_example(cli, verb):
    code, out, _ = cli(verb, "--help")
    assert code == 0
    examples = out.partition("\nExamples\n")[2]
    assert f"gptoss {verb}" in examples
    assert "--traceback" in out
    assert max(map(len, out.splitlines())) <= 100


def test_missing_packages_are_named():
    program = (
        "import sys; sys.modules['typer'] = None; from gptoss.cli import main; sys.exit(main([]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "pip install 'gptoss-engine[cli]'" in done.stderr


# ---- mistakes ----


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["genrate"], "did you mean 'generate'?"),
        (["generate", "x", "--temprature", "1"], "did you mean --temperature?"),
        (["generate", "x", "--threads", "0"], "--threads"),
        (["generate", "x", "--kv", "f8"], "--kv"),
        (["generate", "x", "y"], "unexpected"),
        (["generate", "x", "--file", "y"], "not both"),
        (["generate", ""], "the prompt is empty"),
        (["generate", "x", "--chat", "--special"], "--special"),
        (["chat", "--reasoning", "hgih"], "--reasoning"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(cli, arguments, words):
    code, out, err = cli(*arguments)
    assert code == 2
    assert out == ""
    assert words in err
    assert err.startswith("gptoss: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "x", "--model", "no/such/model"], "no/such/model"),
        (["generate", "--file", "no-such-file"], "no-such-file: No such file or directory"),
        (["generate", "x", "--isa", "avx9"], "avx9"),
        (["generate", "x", "--repetition-penalty", "0"], "repetition_penalty"),
        (["inspect", "no/such/model"], "no/such/model"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(cli, arguments, words):
    code, out, err = cli(*arguments)
    assert code == 1
    assert out == ""
    assert words in err
    assert err.startswith("gptoss: ")
    assert err.count("\n") == 1


def test_traceback_shows_the_whole(cli):
    code, _, err = cli("generate", "x", "--model", "no/such/model", "--traceback")
    assert code == 1
    assert err.startswith("Traceback (most recent call last):")
    assert "gptoss.errors.FileError" in err


def test_prompt_that_is_not_utf8(cli):
    code, _, err = cli("generate", stdin=b"abc\xff")
    assert code == 1
    assert err == "gptoss: the input is not UTF-8 text: byte 0xff at offset 3\n"


def test_full_context_keeps_the_text_and_gives_both_counts(cli):
    code, out, err = cli(*STORY, 20, "--context", 10)
    assert code == 1
    assert out.strip()
    assert "10" in err
    assert err.startswith("gptoss: ")


# ---- generate ----


def test_generate_is_what_the_api_generates(cli):
    with gptoss.Model("demo") as model:
        generator = gptoss.Generator(model)
        greedy = gptoss.Sampling(temperature=0)
        outputs = list(generator.generate("Once upon a time", max_tokens=20, sampling=greedy))
    code, out, err = cli(*STORY, 20)
    assert code == 0
    assert out == "".join(output.text for output in outputs) + "\n"
    assert err == ""


def test_prompt_by_argument_file_and_pipe(cli, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("Once upon a time\n")
    options = ["--temperature", "0", "--max-tokens", "5"]
    texts = {
        cli(*STORY, 5)[1],
        cli("generate", "--file", file, *options)[1],
        cli("generate", *options, stdin=b"Once upon a time\n")[1],
        cli("generate", "-", *options, stdin=b"Once upon a time")[1],
    }
    assert len(texts) == 1


def test_same_seed_same_text(cli):
    options = ["generate", "Once upon a time", "--max-tokens", "40", "--temperature", "1.5"]
    first = cli(*options, "--seed", "7")
    assert first == cli(*options, "--seed", "7")
    assert first[1] != cli(*options, "--seed", "8")[1]


def test_the_seed_of_stats_gives_the_text_again(cli):
    options = ["generate", "Once upon a time", "--max-tokens", "20", "--temperature", "1.5"]
    _, text, stats = cli(*options, "--stats")
    assert "tok/s" in stats
    seed = stats.split()[-1]
    assert cli(*options, "--seed", seed)[1] == text


def test_speculation_changes_the_time_alone(cli):
    repeated = ["generate", "one two three four one two three four one", "--max-tokens", "40"]
    for sampling in (["--temperature", "0"], ["--seed", "3"]):
        plain = cli(*repeated, *sampling)
        code, text, stats = cli(*repeated, *sampling, "--speculate", "--stats")
        assert (code, text) == plain[:2]
        assert re.search(r"guessed \d+,.* [\d.]+ tokens a pass", stats)
    _, out, _ = cli(*repeated, "--temperature", "0", "--speculate", "--json")
    facts = json.loads(out.splitlines()[-1])["speculation"]
    assert facts["tokens"] == 39 == facts["passes"] + facts["accepted"] and facts["accepted"] > 0
    _, out, _ = cli(*repeated, "--json")
    assert json.loads(out.splitlines()[-1])["speculation"] is None


def test_stop_never_leaks(cli):
    _, full, _ = cli(*STORY, 40)
    stop = full.strip().split(" ")[5]
    code, out, _ = cli(*STORY, 40, "--stop", stop)
    assert code == 0
    assert out.removesuffix("\n") == full[: full.index(stop)]


def test_json_is_one_object_a_token_and_a_summary(cli):
    code, out, err = cli(*STORY, 12, "--json", "--logprobs", "3", "--seed", "5")
    *tokens, summary = map(json.loads, out.splitlines())
    assert (code, err) == (0, "")
    assert [token["type"] for token in tokens] == ["token"] * 12
    assert summary["type"] == "summary"
    assert summary["text"] == "".join(token["text"] for token in tokens)
    assert (summary["generated_tokens"], summary["seed"]) == (12, 5)
    assert summary["finish_reason"] == tokens[-1]["finish_reason"] == "length"
    text = b"".join(bytes(token["bytes"]) for token in tokens)
    assert text.decode() == summary["text"]
    for token in tokens:
        best, *others = token["top_logprobs"]
        assert best["token"] == token["token"]
        assert best["logprob"] == pytest.approx(token["logprob"])
        assert len(others) == 2


def test_logprobs_are_one_line_a_token(cli):
    _, out, _ = cli(*STORY, 6, "--logprobs", "2")
    lines = out.splitlines()
    assert len(lines) == 6
    assert all(float(line.split()[0]) <= 0 for line in lines)


def test_generate_chat_prints_the_answer_alone(cli):
    code, out, err = cli("generate", "--chat", "What is 17 + 25?", "--temperature", "0")
    assert (code, out, err) == (0, "17 + 25 = 42.\n", "")


def test_generate_chat_json_has_the_messages(cli):
    _, out, _ = cli("generate", "--chat", "What is 17 + 25?", "--temperature", "0", "--json")
    summary = json.loads(out.splitlines()[-1])
    assert summary["messages"][-1] == {"channel": "final", "content": "17 + 25 = 42."}
    assert summary["finish_reason"] == "stop"


def test_special_tokens_only_when_asked(cli):
    def count(*options):
        _, out, _ = cli("generate", "<|start|>user", "--max-tokens", "1", "--json", *options)
        return json.loads(out.splitlines()[-1])["prompt_tokens"]

    assert count("--special") == 2
    assert count() > 2


@pytest.mark.parametrize("options", [["--threads", "1"], ["--isa", "scalar"], ["--kv", "f32"]])
def test_engine_options_are_taken(cli, options):
    code, out, _ = cli(*STORY, 5, *options)
    assert code == 0
    assert out.strip()


def test_broken_pipe_is_silent():
    process = start("generate", "Once upon a time", "--max-tokens", "0", "--seed", "1")
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


def test_ascii_output_does_not_fail():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    process = start("inspect", env=environment)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert out.isascii()


# ---- inspect ----


def test_inspect_shows_sizes_and_memory(cli):
    code, out, _ = cli("inspect", "--context", "1000")
    assert code == 0
    assert "\x1b" not in out
    assert "13.2 M parameters" in out
    assert "4 of the 8 experts" in out
    assert "memory at 1,000 positions" in out
    assert "model.layers.N.self_attn.sinks" in out


def test_inspect_tensors_lists_each(cli):
    with gptoss.Model("demo") as model:
        names = set(model.tensors)
        _, out, _ = cli("inspect", "--tensors")
    assert names <= {line.split()[0] for line in out.splitlines() if line}


def test_inspect_json_agrees_with_the_file(cli):
    code, out, _ = cli("inspect", "--json", "--context", "1000")
    facts = json.loads(out)
    assert code == 0
    assert facts["parameters"] == 13_175_136
    assert facts["config"]["num_experts"] == 8
    data = Path(facts["tensors"][0]["file"])
    ends = [tensor["offset"] + tensor["bytes"] for tensor in facts["tensors"]]
    assert max(ends) == data.stat().st_size
    memory = facts["memory"]
    assert memory["weights_bytes"] == sum(tensor["bytes"] for tensor in facts["tensors"])
    # Four full layers of 1000 rows, four sliding ones of 128 + 512; 2 heads of 64, keys and values.
    assert memory["kv_f16_bytes"] == 4 * (1000 + 640) * 2 * 64 * 2 * 2
    assert memory["kv_f32_bytes"] == 2 * memory["kv_f16_bytes"]


def test_inspect_check_passes_on_the_demo_model(cli):
    code, out, _ = cli("inspect", "--check")
    assert code == 0
    assert "all are finite" in out


def test_inspect_check_finds_a_bad_scale(cli, tmp_path):
    for file in gptoss.Model("demo").path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with gptoss.Model(tmp_path) as model:
        info = model.tensor_info("model.layers.3.mlp.experts.down_proj_scales")
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.seek(info.file_offset + 5)
        file.write(b"\xff")
    code, _, err = cli("inspect", tmp_path, "--check")
    assert code == 1
    assert "model.layers.3.mlp.experts.down_proj_scales" in err


def test_inspect_of_a_gguf_file(cli, tmp_path):
    path = gguf_models.write_model(tmp_path / "m.gguf", Spec(), np.random.default_rng(0), "q8_0")
    code, out, _ = cli("inspect", path, "--json")
    facts = json.loads(out)
    by_name = {tensor["name"]: tensor for tensor in facts["tensors"]}
    assert code == 0
    embedding = by_name["token_embd.weight"]
    assert (embedding["dtype"], embedding["shape"]) == ("Q8_0", [97, 64])
    assert by_name["blk.1.ffn_up_exps.weight"]["dtype"] == "MXFP4"
    assert by_name["blk.1.attn_norm.weight"]["dtype"] == "float32"
    # gate, up and down: 4 experts of 64 x 64 each, and their biases.
    assert facts["categories"]["experts"]["parameters"] == 2 * 4 * 3 * (64 * 64 + 64)
    assert facts["experts"]["bytes_each"] == 3 * (64 * 64 // 32 * 17 + 64 * 4)
    assert "other" not in facts["categories"]
    code, out, _ = cli("inspect", path, "--check")
    assert code == 0 and "blk.N.ffn_gate_exps.weight" in out and "all are finite" in out
    code, _, err = cli("generate", "text", "--model", path)
    assert code == 1 and "tokenizer.json" in err and "GGUF" in err


def test_parts_of_all_layouts():
    for name, part in {
        "model.layers.3.mlp.router.weight": "router",
        "block.3.mlp.gate.weight": "router",
        "blk.3.ffn_gate_inp.weight": "router",
        "blk.3.ffn_gate_exps.weight": "experts",
        "blk.3.ffn_down_exps.bias": "experts",
        "blk.3.attn_q.weight": "attention",
        "blk.3.attn_output.bias": "attention",
        "blk.3.attn_sinks.weight": "attention",
        "blk.3.attn_norm.weight": "norms",
        "blk.3.post_attention_norm.weight": "norms",
        "output_norm.weight": "norms",
        "token_embd.weight": "embedding",
        "output.weight": "unembedding",
        "model.layers.3.mlp.experts.gate_up_proj_blocks": "experts",
        "block.3.mlp.mlp1_weight.blocks": "experts",
        "model.layers.3.self_attn.sinks": "attention",
        "block.3.attn.sinks": "attention",
        "block.3.attn.norm.scale": "norms",
        "model.layers.3.input_layernorm.weight": "norms",
        "model.norm.weight": "norms",
        "model.embed_tokens.weight": "embedding",
        "embedding.weight": "embedding",
        "lm_head.weight": "unembedding",
        "unembedding.weight": "unembedding",
        "something": "other",
    }.items():
        assert inspect_verb.category_of(name) == part


# ---- doctor ----


def test_doctor_passes_here(cli):
    code, out, err = cli("doctor")
    assert (code, err) == (0, "")
    assert "FAILED" not in out
    assert doctor.ANSWER in out


def test_doctor_json(cli):
    code, out, _ = cli("doctor", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["passed"] is True
    assert report["isa"] in [isa["name"] for isa in report["isas"] if isa["available"]]
    assert {kernel["isa"] for kernel in report["kernels"]} <= {
        isa["name"] for isa in [*report["isas"], *report["bf16_isas"]]
    }
    assert all(result["mismatches"] == 0 for result in report["self_test"]["results"])


def test_doctor_fails_on_wrong_bits(cli, monkeypatch):
    wrong = [{"operation": "linear", "cases": 10, "mismatches": 1}]
    monkeypatch.setattr(doctor, "self_test", lambda isa, seed: wrong)
    code, out, _ = cli("doctor")
    assert code == 1
    assert "FAILED" in out
    assert "linear" in out


# ---- numbers ----


def test_formats():
    assert console.format_bytes(1000) == "1000 B"
    assert console.format_bytes(12_506_056) == "11.93 MiB"
    assert console.format_bytes(13_761_264_768) == "12.82 GiB"
    assert console.format_count(13_175_136) == "13.2 M"
    assert console.format_rate(10, 0.0) == ""
