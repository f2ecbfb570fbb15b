"""Printing a model's answer as it streams: reasoning dimmed, the answer plain."""

from gptoss.cli import console
from gptoss.harmony import Delta


class AnswerPrinter:
    """Prints the deltas of one answer.

    show_reasoning: None shows it on a terminal and leaves it out of files and pipes, so that
    these receive the answer alone.
    """

    def __init__(self, show_reasoning: bool | None = None) -> None:
        self._stream = console.TextStream()
        self._show_reasoning = (
            self._stream.is_terminal if show_reasoning is None else show_reasoning
        )
        self._part: str | None = None

    def delta(self, delta: Delta) -> None:
        # Arguments of a tool call are no answer either.
        is_aside = delta.channel == "analysis" or delta.recipient is not None
        if is_aside and not self._show_reasoning:
            return
        part = delta.recipient or delta.channel
        if part != self._part:
            if self._part is not None:
                self._stream.end_line()
                self._stream.write("\n")
            if is_aside and not self._stream.is_styled:
                self._stream.write(f"[{part}] ")
            self._part = part
        self._stream.write(delta.text, "dim" if is_aside else "")

    def end(self, remark: str = "") -> None:
        """Ends the line. A remark follows in brackets, on standard error if the answer is piped."""
        if remark and self._stream.is_terminal:
            self._stream.write(f"{' ' if self._part else ''}[{remark}]", "dim")
        self._stream.end_line()
        if remark and not self._stream.is_terminal:
            console.note(f"gptoss: {remark}")
