"""`gptoss chat`: piped conversations, /commands, and a person at a terminal."""

import io
import json
import os
import pty
import re
import select
import signal
import sys
import time

import pytest

import gptoss
from gptoss.cli import chat_commands, main
from gptoss.cli.chat_input import read_message

QUESTION, ANSWER = "What is 17 + 25?", "17 + 25 = 42."
STORY = "Tell me a story about a fox and a lantern."


@pytest.fixture
def chat(capsys, monkeypatch):
    """chat(*lines, options) -> (exit code, standard output, standard error) of a piped chat."""

    def run(*lines, options=("--temperature", "0")):
        text = "".join(f"{line}\n" for line in lines).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text), encoding="utf-8"))
        code = main(["chat", *options])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


class Terminal:
    """The command at the other end of a pseudo-terminal."""

    def __init__(self, *arguments, **environment):
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            os.environ.update({"TERM": "xterm-256color", "COLUMNS": "80"} | environment)
            os.execv(sys.executable, [sys.executable, "-m", "gptoss", *arguments])
        self.seen = ""

    def type(self, text):
        os.write(self.file, text.encode())

    def wait_for(self, pattern, timeout=60.0):
        """Everything up to the end of what matches, which is then taken as read."""
        deadline = time.monotonic() + timeout
        while not (match := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self.file], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"no {pattern!r} in {self.seen!r}"
            self.seen += self._read()
        text, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return text

    def _read(self):
        try:
            data = os.read(self.file, 65536)
        except OSError:
            data = b""
        assert data, f"the program ended after {self.seen!r}"
        return data.decode()

    def finish(self, timeout=60.0):
        """What is left of the output, and the exit code."""
        deadline = time.monotonic() + timeout
        while True:
            ready, _, _ = select.select([self.file], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"still running after {self.seen!r}"
            try:
                data = os.read(self.file, 65536)
            except OSError:
                break
            if not data:
                break
            self.seen += data.decode()
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return self.seen, os.waitstatus_to_exitcode(status)

    def close(self):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.file)


@pytest.fixture
def terminal():
    opened = []

    def start(*arguments, **environment):
        opened.append(Terminal(*arguments, **environment))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


# ---- piped ----


def test_speculation_changes_the_time_alone(chat):
    plain = chat(QUESTION, QUESTION)
    options = ("--temperature", "0", "--speculate", "--stats")
    code, out, notes = chat(QUESTION, QUESTION, options=options)
    assert (code, out) == plain[:2] and ANSWER in out
    assert notes.count("tokens a pass") == 2


def test_piped_questions_give_just_the_answers(chat):
    code, out, err = chat(QUESTION, "", "What is 3 + 4?")
    assert (code, err) == (0, "")
    assert out == f"{ANSWER}\n3 + 4 = 7.\n"


def test_reasoning_is_shown_when_asked(chat):
    _, out, _ = chat(QUESTION, options=["--temperature", "0", "--show-reasoning"])
    assert out.startswith("[analysis] ")
    assert out.endswith(f"\n\n{ANSWER}\n")


def test_answer_that_is_cut_off_says_so(chat):
    code, _, err = chat(STORY, options=["--max-tokens", "8"])
    assert code == 0
    assert "cut off after 8 tokens" in err


def test_full_context_is_an_error(chat):
    code, _, err = chat(QUESTION, options=["--context", "16"])
    assert code == 1
    assert "16" in err
    assert err.count("\n") == 1


def test_same_seed_same_answers(chat):
    options = ["--temperature", "1.5", "--seed", "3"]
    assert chat(STORY, options=options) == chat(STORY, options=options)


# ---- commands ----


def test_unknown_command_is_refused(chat):
    code, _, err = chat("/resett")
    assert code == 1
    assert err == "gptoss: no such command: /resett (did you mean '/reset'?)\n"


@pytest.mark.parametrize("line", ["/reasoning hgih", "/temperature warm", "/seed x", "/save"])
def test_wrong_use_names_the_right_one(chat, line):
    code, _, err = chat(line)
    assert code == 1
    assert f"usage: {line.split()[0]}" in err


def test_a_path_is_no_command():
    assert chat_commands.is_command("/seed 7")
    assert chat_commands.is_command("/")
    assert not chat_commands.is_command("/usr/bin is a folder")


def test_help_lists_every_command(chat):
    code, out, _ = chat("/help")
    assert code == 0
    for name in chat_commands.COMMANDS:
        assert f"/{name} " in out


def test_save_and_load(chat, tmp_path):
    file = tmp_path / "talk.json"
    assert chat(QUESTION, f"/save {file}")[0] == 0
    saved = json.loads(file.read_text())
    assert saved["messages"][0] == {"role": "user", "content": QUESTION}
    assert saved["messages"][-1]["content"] == ANSWER
    assert [entry.name for entry in tmp_path.iterdir()] == ["talk.json"]
    again = tmp_path / "again.json"
    assert chat("/system Be brief.", f"/load {file}", f"/save {again}")[0] == 0
    assert json.loads(again.read_text()) == saved


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"gptoss_chat": 2}', "\x00"])
def test_load_refuses_other_files(chat, tmp_path, content):
    file = tmp_path / "other.json"
    file.write_text(content)
    code, _, err = chat(f"/load {file}")
    assert code == 1
    assert "not a conversation saved by /save" in err


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "talk.json"
    file.write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        chat_commands.write_atomically(file, "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["talk.json"]
    assert file.read_text() == "old"


def test_undo_reset_and_settings(chat, tmp_path):
    file = tmp_path / "talk.json"

    def saved(*lines):
        code, _, err = chat(*lines, f"/save {file}")
        assert code == 0, err
        return json.loads(file.read_text())

    assert saved(QUESTION, "What is 3 + 4?", "/undo")["messages"][-1]["content"] == ANSWER
    assert saved(QUESTION, "/reset")["messages"] == []
    settings = saved("/reasoning low", "/system Be brief.", "/temperature 0.5", "/seed 9")
    assert (settings["reasoning"], settings["system"]) == ("low", "Be brief.")
    assert saved("/system Be brief.", "/system")["system"] is None


def test_undo_asks_again_alike(chat):
    _, out, _ = chat(QUESTION, "/undo", QUESTION)
    assert out == f"{ANSWER}\n{ANSWER}\n"


def test_nothing_to_undo(chat):
    assert chat("/undo")[2] == "gptoss: there is nothing to undo\n"


def test_tokens_counts_the_context(chat):
    _, out, _ = chat("/tokens", QUESTION, "/tokens")
    first, _, second = out.splitlines()
    assert first == "0 of 4,096 positions used (0.0%)"
    assert 0 < int(second.split()[0]) < 200


def test_quit_leaves(chat):
    assert chat("/quit", QUESTION)[:2] == (0, "")


# ---- messages of several lines ----


@pytest.mark.parametrize(
    ("lines", "messages"),
    [
        (["one", "two"], ["one", "two"]),
        (["one\\", "two", "three"], ["one\ntwo", "three"]),
        (["one\\", "two\\", "three"], ["one\ntwo\nthree"]),
        (["one\\"], ["one"]),
        (['"""', "one", "", "two", '"""', "three"], ["one\n\ntwo", "three"]),
        (['"""one', 'two"""', "three"], ["one\ntwo", "three"]),
        (['"""one"""', "two"], ["one", "two"]),
        (['"""', "one"], ["one"]),
    ],
)
def test_messages(lines, messages):
    rest = iter(lines)

    def read_line(prompt):
        try:
            return next(rest)
        except StopIteration:
            raise EOFError from None

    read = []
    with pytest.raises(EOFError):
        while True:
            read.append(read_message(read_line))
    assert read == messages


# ---- a person at a terminal ----


def test_conversation_at_a_terminal(terminal):
    chat = terminal("chat", "--temperature", "0")
    greeting = chat.wait_for("> ")
    assert gptoss.__version__ in greeting
    assert "/help" in greeting
    chat.type(f"{QUESTION}\r")
    answer = chat.wait_for(re.escape(ANSWER))
    assert "\x1b[2m" in answer  # reasoning is dimmed
    chat.wait_for("> ")
    chat.type("\x04")
    _, code = chat.finish()
    assert code == 0


def test_interrupt_stops_the_answer_and_not_the_program(terminal):
    chat = terminal("chat", "--temperature", "0", "--isa", "scalar", "--threads", "1")
    chat.wait_for("> ")
    chat.type(STORY + "\r")
    chat.wait_for(r"\x1b\[2m\w")
    chat.type("\x03")
    chat.wait_for(r"\[stopped\]")
    chat.wait_for("> ")
    chat.type(f"{QUESTION}\r")
    chat.wait_for(re.escape(ANSWER))
    chat.type("/quit\r")
    _, code = chat.finish()
    assert code == 0


def test_interrupt_at_the_prompt_drops_the_line(terminal):
    chat = terminal("chat", "--temperature", "0")
    chat.wait_for("> ")
    chat.type("half a lin")
    chat.wait_for("half a lin")
    time.sleep(0.3)  # CPython notices a signal at the prompt only while it waits for a key
    chat.type("\x03")
    chat.wait_for("Ctrl-D or /quit leaves")
    chat.wait_for("> ")
    chat.type(f"{QUESTION}\r")
    chat.wait_for(re.escape(ANSWER))


def test_interrupt_ends_generate(terminal):
    generate = terminal("generate", "Once upon a time", "--max-tokens", "0", "--isa", "scalar")
    generate.wait_for(r"time[^\r]*\w")
    generate.type("\x03")
    _, code = generate.finish()
    assert code == 130


def test_control_characters_do_not_reach_the_terminal(terminal):
    generate = terminal("generate", "a\x1b[5m\x9b6nb", "--max-tokens", "1")
    text, _ = generate.finish()
    assert "a\u241b[5m\ufffd6nb" in text


def test_no_color_means_no_control_codes(terminal):
    generate = terminal("generate", "Once upon a time", "--max-tokens", "10", NO_COLOR="1")
    text, code = generate.finish()
    assert code == 0
    assert text.startswith("Once upon a time")
    assert "\x1b" not in text
