"""The /commands of `gptoss chat`."""

import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gptoss
from gptoss.cli import console
from gptoss.errors import did_you_mean
from gptoss.harmony import REASONING_EFFORTS, Message, to_messages

if TYPE_CHECKING:
    from gptoss.cli.chat import Session

# Of the files that /save writes.
_FILE_FORMAT = 1


class Quit(Exception):
    """The person wants to leave."""


@dataclasses.dataclass(frozen=True)
class Command:
    """What follows the name, what the command does, and the function that does it."""

    argument: str
    help: str
    run: Callable[["Session", str], None]


def is_command(text: str) -> bool:
    """'/seed 7' is one; '/usr/bin is a folder' is a message."""
    return re.fullmatch(r"/[a-z]*", text.split(maxsplit=1)[0]) is not None


def execute(session: "Session", text: str) -> None:
    """Runs a line that is_command() took for one. Raises Quit, and gptoss.Error for wrong use."""
    name, _, argument = text[1:].partition(" ")
    if name not in COMMANDS:
        command = f"/{name}"
        hint = did_you_mean(command, [f"/{known}" for known in COMMANDS])
        hint = hint or "; /help lists the commands"
        raise gptoss.ArgumentError(f"no such command: {command}{hint}")
    COMMANDS[name].run(session, argument.strip())


def _number(argument: str, kind: type[int] | type[float], usage: str) -> Any:
    try:
        return kind(argument)
    except ValueError:
        raise gptoss.ArgumentError(f"usage: {usage}") from None


def _help(session: "Session", argument: str) -> None:
    rows = console.table("command", "")
    for name, command in COMMANDS.items():
        rows.add_row(f"/{name} {command.argument}", command.help)
    rows.add_row('"""', "begins and ends a message of several lines")
    rows.add_row("\\", "at the end of a line: the message goes on in the next one")
    rows.add_row("Ctrl-C", "stops the answer")
    console.console().print(rows)


def _reset(session: "Session", argument: str) -> None:
    session.chat.reset()
    session.note("a new conversation")


def _reasoning(session: "Session", argument: str) -> None:
    if argument not in REASONING_EFFORTS:
        raise gptoss.ArgumentError(f"usage: /reasoning {'|'.join(REASONING_EFFORTS)}")
    session.chat.reasoning = argument
    session.note(f"reasoning is {argument} from now on")


def _system(session: "Session", argument: str) -> None:
    session.chat.system = argument or None
    session.note("instructions are set" if argument else "instructions are removed")


def _temperature(session: "Session", argument: str) -> None:
    value = _number(argument, float, "/temperature X")
    session.sampling = dataclasses.replace(session.sampling, temperature=value)
    session.note(f"temperature is {value:g} from now on")


def _seed(session: "Session", argument: str) -> None:
    value = _number(argument, int, "/seed N")
    session.sampling = dataclasses.replace(session.sampling, seed=value)
    session.note(f"seed is {value} from now on")


def _tokens(session: "Session", argument: str) -> None:
    used, size = session.chat.generator.position, session.chat.generator.max_context
    session.say(f"{used:,} of {size:,} positions used ({used / size:.1%})")


def _undo(session: "Session", argument: str) -> None:
    messages = to_messages(session.chat.messages)
    users = [index for index, message in enumerate(messages) if message.role == "user"]
    if not users:
        raise gptoss.StateError("there is nothing to undo")
    session.chat.messages[:] = messages[: users[-1]]
    session.note("the last message and its answer are forgotten")


def _path(argument: str, usage: str) -> Path:
    if not argument:
        raise gptoss.ArgumentError(f"usage: {usage}")
    return Path(argument).expanduser()


def _save(session: "Session", argument: str) -> None:
    path = _path(argument, "/save FILE")
    document = {
        "gptoss_chat": _FILE_FORMAT,
        "model": str(session.model.path),
        "reasoning": session.chat.reasoning,
        "system": session.chat.system,
        "messages": [
            {key: value for key, value in dataclasses.asdict(message).items() if value is not None}
            for message in to_messages(session.chat.messages)
        ],
    }
    write_atomically(path, json.dumps(document, ensure_ascii=False, indent=2) + "\n")
    session.note(f"saved to {path}")


def write_atomically(path: Path, text: str) -> None:
    """Writes a file that is there whole or not at all; an earlier one stays until then."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _load(session: "Session", argument: str) -> None:
    path = _path(argument, "/load FILE")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["gptoss_chat"] != _FILE_FORMAT:
            raise ValueError(f"format {document['gptoss_chat']!r}")
        messages = [Message(**message) for message in document["messages"]]
        reasoning, system = document["reasoning"], document["system"]
    except (KeyError, TypeError, ValueError) as error:
        raise gptoss.FormatError(
            f"{path}: not a conversation saved by /save ({error})", file=str(path)
        ) from error
    session.chat.reset()
    session.chat.reasoning, session.chat.system = reasoning, system
    session.chat.messages[:] = messages
    session.note(f"{len(messages)} messages from {path}")


def _quit(session: "Session", argument: str) -> None:
    raise Quit


COMMANDS = {
    "help": Command("", "this list", _help),
    "reset": Command("", "begin a new conversation", _reset),
    "undo": Command("", "forget the last message and its answer", _undo),
    "reasoning": Command("low|medium|high", "how much the model thinks first", _reasoning),
    "system": Command("TEXT", "instructions for the model; without TEXT: none", _system),
    "temperature": Command("X", "0 is greedy", _temperature),
    "seed": Command("N", "same seed, same answers", _seed),
    "tokens": Command("", "how full the context is", _tokens),
    "save": Command("FILE", "write the conversation as JSON", _save),
    "load": Command("FILE", "go on from a saved conversation", _load),
    "quit": Command("", "leave, as Ctrl-D does", _quit),
}
