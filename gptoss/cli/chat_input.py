"""Reading what a person types into `gptoss chat`: line editing, and messages of several lines."""

import sys
from collections.abc import Callable, Iterable

PROMPT, CONTINUATION = "> ", "... "
_QUOTES = '"""'


def enable_line_editing(completions: Iterable[str]) -> None:
    """Gives input() history and editing, and Tab on the first word, where readline exists."""
    try:
        import readline
    except ImportError:
        return
    words = sorted(completions)

    def complete(text: str, state: int) -> str | None:
        matches = [word + " " for word in words if word.startswith(text) and text]
        return matches[state] if state < len(matches) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" \t\n")
    readline.parse_and_bind("tab: complete")
    # Pasted lines stay one message; CPython switches this off.
    readline.parse_and_bind("set enable-bracketed-paste on")


def line_reader(styled: bool) -> Callable[[str], str]:
    """A function that asks for one line; EOFError at the end of the input.

    Without a terminal on both sides nothing is asked: lines are only read.
    """
    if not sys.stdin.isatty():
        return _read_silently
    if not sys.stdout.isatty():
        return _read_beside
    if not styled:
        return input

    def read(prompt: str) -> str:
        # \001 and \002 tell readline which bytes take no room on the screen.
        return input(f"\001\033[36m\002{prompt}\001\033[0m\002")

    return read


def _read_silently(prompt: str) -> str:
    del prompt
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n")


def _read_beside(prompt: str) -> str:
    """Asks on standard error, as standard output goes to a file or a pipe."""
    print(prompt, end="", file=sys.stderr, flush=True)
    return _read_silently(prompt)


def read_message(read_line: Callable[[str], str]) -> str:
    '''One message: a line, lines joined by a final backslash, or all lines between """ marks.

    Raises EOFError at the end of the input, unless a message has begun; then it ends there.
    '''
    line = read_line(PROMPT)
    if line.lstrip().startswith(_QUOTES):
        return _read_quoted(line.lstrip().removeprefix(_QUOTES), read_line)
    lines = []
    try:
        while line.endswith("\\"):
            lines.append(line[:-1])
            line = read_line(CONTINUATION)
    except EOFError:
        return "\n".join(lines)
    return "\n".join([*lines, line])


def _read_quoted(line: str, read_line: Callable[[str], str]) -> str:
    lines = []
    try:
        while not line.rstrip().endswith(_QUOTES):
            lines.append(line)
            line = read_line(CONTINUATION)
    except EOFError:
        return "\n".join(lines).strip("\n")
    lines.append(line.rstrip().removesuffix(_QUOTES))
    return "\n".join(lines).strip("\n")
