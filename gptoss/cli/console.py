"""What reaches the terminal: consoles, streamed text, progress bars, error lines, number formats.

Only a terminal gets control codes; NO_COLOR and TERM=dumb take all styling away.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

from rich import progress as bars
from rich.console import Console
from rich.table import Table
from rich.text import Text

import gptoss

# What models write and files name may hold any character, but must not steer a terminal. Control
# characters become their visible pictures (U+2400..), C1 controls the replacement character.
_VISIBLE_CONTROLS = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
_VISIBLE_CONTROLS |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)

# Tables in a pipe are for programs: one row, one line.
_PIPE_WIDTH = 1000


class _Console(Console):
    """Leaves it to the program what a reader's going away means."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console(*, stderr: bool = False) -> Console:
    """A rich console on today's standard output or standard error."""
    stream = sys.stderr if stderr else sys.stdout
    return _Console(
        stderr=stderr,
        highlight=False,
        markup=False,
        emoji=False,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        width=None if stream.isatty() else _PIPE_WIDTH,
    )


def visible(text: str) -> str:
    """The text with control characters made visible, but for tabs and line ends."""
    return text.translate(_VISIBLE_CONTROLS)


def error(message: str) -> None:
    """Prints `message` as one red line on standard error."""
    line = visible(f"gptoss: {' '.join(message.split())}")
    console(stderr=True).print(Text(line, "red"), soft_wrap=True)


def sentence(failure: Exception) -> str:
    """The one line that tells a user what went wrong."""
    if isinstance(failure, gptoss.Error):
        return str(failure)
    if isinstance(failure, UnicodeDecodeError):
        byte = failure.object[failure.start]
        return f"the input is not UTF-8 text: byte 0x{byte:02x} at offset {failure.start}"
    if isinstance(failure, OSError) and failure.strerror:
        return f"{failure.filename}: {failure.strerror}" if failure.filename else failure.strerror
    return f"{type(failure).__name__}: {failure} (unexpected; --traceback shows where)"


def note(message: str) -> None:
    """Prints a dimmed line on standard error: facts beside the output proper."""
    console(stderr=True).print(Text(message, "dim"), soft_wrap=True)


def table(*headers: str, right: tuple[int, ...] = ()) -> Table:
    """A table without lines; the columns numbered in `right` are right-aligned."""
    result = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for index, header in enumerate(headers):
        justify: Literal["left", "right"] = "right" if index in right else "left"
        result.add_column(header, justify=justify, no_wrap=index + 1 < len(headers))
    return result


class TextStream:
    """Standard output for text that comes piece by piece, each piece shown at once."""

    def __init__(self) -> None:
        self._console = console()
        self._file = sys.stdout
        self.is_terminal = self._file.isatty()
        self.is_styled = self._console.color_system is not None
        self._at_line_start = True

    def write(self, text: str, style: str = "") -> None:
        if not text:
            return
        if self.is_terminal:
            text = visible(text)
        if style and self.is_styled:
            self._console.print(Text(text, style), end="", soft_wrap=True)
        else:
            self._file.write(text)
        self._file.flush()
        self._at_line_start = text.endswith("\n")

    def end_line(self) -> None:
        """Ends the line unless it is ended already."""
        if not self._at_line_start:
            self.write("\n")


class Advance(Protocol):
    """Tells a progress bar how far the work is, and what to call it from now on."""

    def __call__(self, done: int, total: int, description: str | None = None) -> None: ...


@contextmanager
def progress_bar(
    description: str, unit: str = "tokens", delay: float = 1.0, refresh: float = 10.0
) -> Iterator[Advance]:
    """A callback that draws a bar on standard error once `delay` seconds went by.

    It is drawn `refresh` times a second. The bar goes away when the block ends. Where control codes
    are unwelcome nothing is drawn.
    """
    target = console(stderr=True)
    if unit == "bytes":
        amount: bars.ProgressColumn = bars.DownloadColumn(binary_units=True)
    else:
        amount = bars.TextColumn(f"{{task.completed:,.0f}} of {{task.total:,.0f}} {unit}")
    bar = bars.Progress(
        bars.TextColumn("{task.description}", style="dim"),
        bars.BarColumn(complete_style="cyan", finished_style="cyan"),
        amount,
        bars.TimeRemainingColumn(),
        console=target,
        transient=True,
        refresh_per_second=refresh,
    )
    task = bar.add_task(description, total=None)
    start = time.monotonic()

    def advance(done: int, total: int, description: str | None = None) -> None:
        if target.color_system is None:
            return
        if not bar.live.is_started and time.monotonic() - start >= delay:
            bar.start()
        bar.update(task, completed=done, total=total, description=description)

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()


def format_bytes(count: int) -> str:
    """1234567 -> '1.18 MiB'."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1000 or unit == "TiB":
            break
    return f"{value:.2f} {unit}" if value < 100 else f"{value:.0f} {unit}"


def format_count(count: int) -> str:
    """13175136 -> '13.2 M'."""
    for limit, suffix in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= limit:
            return f"{count / limit:.1f} {suffix}"
    return str(count)


def format_speculation(stats: gptoss.SpeculationStats | None) -> str:
    """What became of guessed tokens, or an empty string if none were to be guessed."""
    if stats is None:
        return ""
    rate = f" {stats.acceptance_rate:.0%} right," if stats.drafted else ""
    return f"guessed {stats.drafted:,},{rate} {stats.tokens_per_pass:.2f} tokens a pass"


def format_rate(count: int, seconds: float) -> str:
    """Tokens per second, or an empty string where there is nothing to divide."""
    return f"{count / seconds:.1f} tok/s" if count and seconds > 0 else ""
