"""llama-bench, of llama.cpp or of ik_llama.cpp, on the tests that gptoss runs."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

from gptoss.benchmark.measure import Statistics, Test
from gptoss.errors import Error, FileError, UnsupportedError

_LAST_LINES = 5


class PeerError(Error):
    """A llama-bench failed, or printed what nobody understands."""


@dataclasses.dataclass(frozen=True)
class PeerResult:
    """Tokens a second of each repetition. command: what was run. facts: the rest of its JSON."""

    peer: str
    test: Test
    samples: tuple[float, ...]
    command: tuple[str, ...]
    facts: dict[str, Any]

    @property
    def tokens_per_second(self) -> Statistics:
        return Statistics.of(self.samples)

    def as_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "peer": self.peer,
            "test": str(self.test),
            "samples": list(self.samples),
            "tokens_per_second": dataclasses.asdict(self.tokens_per_second),
            "command": list(self.command),
            "facts": self.facts,
        }


class Peer:
    """One llama-bench.

    command: its path, and options of its own behind it, as on a command line: "llama-bench -fa 1".
    name: "llama.cpp" or "ik_llama.cpp", by the options that its --help lists.
    """

    def __init__(self, command: str) -> None:
        words = shlex.split(command) or [""]
        program = shutil.which(str(Path(words[0]).expanduser()))
        if program is None:
            raise FileError(
                f"there is no program {words[0]!r}: give the path of a llama-bench", file=words[0]
            )
        self.command = (program, *words[1:])
        usage = self._run(["--help"])
        if "--n-prompt" not in usage.stdout:
            raise PeerError(f"{program} is no llama-bench: its --help knows no --n-prompt")
        self._has_depth = "--n-depth" in usage.stdout
        self.name = "ik_llama.cpp" if "-gp <pp,tg>" in usage.stdout else "llama.cpp"

    def _run(self, arguments: list[str]) -> subprocess.CompletedProcess[str]:
        command = [self.command[0], *arguments]
        try:
            return subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise FileError(f"{command[0]}: {error.strerror}", file=command[0]) from error

    def arguments(self, test: Test, model: Path, threads: int, repetitions: int) -> list[str]:
        """The options of a run. UnsupportedError for what this llama-bench cannot time."""
        if test.sequences > 1:
            raise UnsupportedError("llama-bench decodes one sequence")
        sizes = {"-p": 0, "-n": 0}
        sizes["-p" if test.kind == "prefill" else "-n"] = test.tokens
        options = [word for name, size in sizes.items() for word in (name, str(size))]
        if test.depth and self._has_depth:
            options += ["-d", str(test.depth)]
        elif test.depth and test.kind == "decode":
            # Its tokens are generated, and timed, after a prompt.
            options = ["-p", "0", "-n", "0", "-gp", f"{test.depth},{test.tokens}"]
        elif test.depth:
            raise UnsupportedError("this llama-bench times no prompt behind others")
        common = ["-t", str(threads), "-r", str(repetitions), "-o", "json"]
        return ["-m", str(model), *options, *common, *self.command[1:]]

    def measure(self, test: Test, model: Path, *, threads: int, repetitions: int = 5) -> PeerResult:
        """Runs the test on a GGUF file.

        UnsupportedError for a test that this llama-bench does not have; PeerError, with its last
        lines, where it fails.
        """
        arguments = self.arguments(test, model, threads, repetitions)
        done = self._run(arguments)
        command = (self.command[0], *arguments)
        if done.returncode != 0:
            raise PeerError(f"{self.name} {_ending(done.returncode)}: {_last_lines(done)}")
        for entry in _entries(done, self.name):
            if _is_of(entry, test):
                samples = _samples(entry, test)
                entry.pop("samples_ns", None), entry.pop("samples_ts", None)
                return PeerResult(self.name, test, samples, command, entry)
        raise PeerError(f"{self.name} printed no result of {test}: {_last_lines(done)}")


def _ending(returncode: int) -> str:
    return f"ended by signal {-returncode}" if returncode < 0 else f"failed with {returncode}"


def _last_lines(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return " | ".join(lines[-_LAST_LINES:]) or "it printed nothing"


def _entries(done: subprocess.CompletedProcess[str], name: str) -> list[dict[str, Any]]:
    """The JSON list among what was printed; some builds print lines around it."""
    lines = done.stdout.splitlines()
    stripped = [line.strip() for line in lines]
    try:
        first, last = stripped.index("["), len(lines) - 1 - stripped[::-1].index("]")
        entries = json.loads("\n".join(lines[first : last + 1]))
    except ValueError:
        raise PeerError(f"{name} printed no JSON: {_last_lines(done)}") from None
    return [entry for entry in entries if isinstance(entry, dict)]


def _is_of(entry: dict[str, Any], test: Test) -> bool:
    """ik_llama.cpp has no n_depth; there the prompt before the generation is n_prompt."""
    prompt, generated = entry.get("n_prompt", 0), entry.get("n_gen", 0)
    if test.kind == "decode" and "n_depth" not in entry:
        return bool((prompt, generated) == (test.depth, test.tokens))
    wanted = (test.tokens, 0) if test.kind == "prefill" else (0, test.tokens)
    return bool((prompt, generated) == wanted and entry.get("n_depth", 0) == test.depth)


def _samples(entry: dict[str, Any], test: Test) -> tuple[float, ...]:
    times = entry.get("samples_ns") or ([entry["avg_ns"]] if entry.get("avg_ns") else [])
    samples = tuple(test.tokens * 1e9 / time for time in times if time > 0)
    if not samples:
        raise PeerError(f"llama-bench printed no times of {test}")
    return samples
