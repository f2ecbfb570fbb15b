"""Harmony, the message format of gpt-oss: from conversations to token ids and back to messages.

A message is

    <|start|>role<|channel|>channel to=recipient <|constrain|>type<|message|>content<|end|>

where all between role and content is optional. Rendering goes to token ids directly: only what
this module writes itself can become a special token, whatever a user types.
"""

from __future__ import annotations

import codecs
import datetime
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from gptoss.errors import ArgumentError, UnsupportedError
from gptoss.tokenizer import Tokenizer
from gptoss.tools import Tool, comment_lines

CHANNELS = ("analysis", "commentary", "final")
REASONING_EFFORTS = ("low", "medium", "high")
_ROLES = ("system", "developer", "user", "assistant", "tool")

# How a chat template spells its model's defaults: the identity is the first quoted string that
# begins with "You are", up to its closing quote or a line end; the cutoff is the first year and
# month after the words "knowledge cutoff".
_IDENTITY = re.compile(r"""(["'])(You are (?:(?!\1)[^\n\\])+)""")
_CUTOFF = re.compile(r"knowledge[ _]cutoff\W+(\d{4}-\d{2}(?:-\d{2})?)", re.IGNORECASE)


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: "system" or "developer" (instructions, both Harmony's developer message), "user",
            "assistant" or "tool".
        content: the text.
        channel: of an assistant's message, "analysis" (reasoning), "commentary" (tool calls, and
            what it tells the user before them) or "final".
        recipient: whom a tool call is for, as "functions.get_weather".
        content_type: "json" for the arguments of a call.
        name: the tool that a result comes from, or a user's name.
    """

    role: str
    content: str
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.role not in _ROLES:
            raise ArgumentError(
                f"{self.role!r} is no role of a message; roles are {', '.join(_ROLES)}"
            )
        if not isinstance(self.content, str):
            raise ArgumentError(
                f"the content of a message is a str, not a {type(self.content).__name__}"
            )
        if self.channel is not None and self.channel not in CHANNELS:
            raise ArgumentError(
                f"{self.channel!r} is no channel; channels are {', '.join(CHANNELS)}"
            )
        for value in (self.recipient, self.content_type, self.name):
            if not isinstance(value, str | None):
                raise ArgumentError(f"{value!r} cannot stand in the header of a message")

    @property
    def is_tool_call(self) -> bool:
        """Whether the assistant addresses a tool."""
        return self.role == "assistant" and self.recipient is not None


@dataclass(frozen=True)
class ResponseFormat:
    """The structure wished of the final answer. The model is asked; sampling is not constrained."""

    name: str
    schema: Mapping[str, Any]
    description: str = ""


@dataclass(frozen=True)
class Delta:
    """New text of an answer, in whole characters; recipient: the tool, where text is for one."""

    channel: str
    text: str
    recipient: str | None = None


class _Special(str):
    """A special token in a rendered conversation; ordinary text is a plain str."""


_START, _END, _MESSAGE = _Special("<|start|>"), _Special("<|end|>"), _Special("<|message|>")
_CHANNEL, _CONSTRAIN, _CALL = (
    _Special("<|channel|>"),
    _Special("<|constrain|>"),
    _Special("<|call|>"),
)


@dataclass(frozen=True)
class Harmony:
    """Renders conversations. A field that is None leaves its line of the system message out.

    Attributes:
        identity: the first line.
        knowledge_cutoff: as "2024-06".
        date: as "2025-06-28", or "today" for the day of rendering.
        reasoning: "low", "medium" or "high".
        drop_analysis: leave out earlier reasoning as the format documents it: once a turn has ended
            in a final message the model does not see its analysis again, but it does see that of a
            turn still calling tools. So analysis before the last final message goes, later stays.
    """

    identity: str | None = "You are ChatGPT, a large language model trained by OpenAI."
    knowledge_cutoff: str | None = "2024-06"
    date: str | None = "today"
    reasoning: str | None = "medium"
    drop_analysis: bool = True

    def __post_init__(self) -> None:
        if self.reasoning is not None and self.reasoning not in REASONING_EFFORTS:
            raise ArgumentError(
                f"reasoning is {self.reasoning!r}; expected {', '.join(REASONING_EFFORTS)} or None"
            )
        for name in ("identity", "knowledge_cutoff", "date"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise ArgumentError(f"{name} must be text or None, not {value!r}")

    @classmethod
    def of_template(cls, template: str | None) -> Self:
        """With the identity and knowledge cutoff that a model's own chat template spells out."""
        harmony = cls()
        if identity := _IDENTITY.search(template or ""):
            harmony = replace(harmony, identity=identity[2])
        if cutoff := _CUTOFF.search(template or ""):
            harmony = replace(harmony, knowledge_cutoff=cutoff[1])
        return harmony

    def render(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        *,
        tools: Sequence[Tool] = (),
        response_format: ResponseFormat | None = None,
        generation_prompt: bool = True,
    ) -> str:
        """The conversation as text, for the eye. Arguments as in encode."""
        return "".join(self._pieces(messages, tools, response_format, generation_prompt))

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Iterable[Message | Mapping[str, Any]],
        *,
        tools: Sequence[Tool] = (),
        response_format: ResponseFormat | None = None,
        generation_prompt: bool = True,
    ) -> list[int]:
        """The conversation as token ids.

        messages: Message objects or OpenAI-style dicts (see to_messages). generation_prompt: end in
        `<|start|>assistant`, for the model to go on.
        """
        pieces = self._pieces(messages, tools, response_format, generation_prompt)
        ids: list[int] = []
        for is_special, run in itertools.groupby(pieces, lambda piece: isinstance(piece, _Special)):
            if is_special:
                ids += [_special_id(tokenizer, piece) for piece in run]
            else:  # adjacent texts are one text to the tokenizer
                ids += tokenizer.encode("".join(run))
        return ids

    def _pieces(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        tools: Sequence[Tool],
        response_format: ResponseFormat | None,
        generation_prompt: bool,
    ) -> list[str]:
        conversation = to_messages(messages)
        num_leading = next(
            (i for i, m in enumerate(conversation) if m.role not in ("system", "developer")),
            len(conversation),
        )
        instructions = [m.content for m in conversation[:num_leading] if m.content]
        pieces: list[str] = [_START, "system", _MESSAGE, self._system_text(bool(tools)), _END]
        developer = _developer_text(instructions, tools, response_format)
        if developer:
            pieces += [_START, "developer", _MESSAGE, developer, _END]
        finals = [
            i for i, m in enumerate(conversation) if m.role == "assistant" and m.channel == "final"
        ]
        last_final = finals[-1] if finals and self.drop_analysis else -1
        for index, message in enumerate(conversation[num_leading:], num_leading):
            if message.channel != "analysis" or message.is_tool_call or index > last_final:
                pieces += _message_pieces(message)
        if generation_prompt:
            pieces += [_START, "assistant"]
        return pieces

    def _system_text(self, has_tools: bool) -> str:
        date = datetime.date.today().isoformat() if self.date == "today" else self.date
        about = [
            self.identity,
            f"Knowledge cutoff: {self.knowledge_cutoff}" if self.knowledge_cutoff else None,
            f"Current date: {date}" if date else None,
        ]
        channels = (
            f"# Valid channels: {', '.join(CHANNELS)}. Channel must be included for every message."
        )
        if has_tools:
            channels += "\nCalls to these tools must go to the commentary channel: 'functions'."
        blocks = [
            "\n".join(line for line in about if line),
            f"Reasoning: {self.reasoning}" if self.reasoning else "",
            channels,
        ]
        return "\n\n".join(block for block in blocks if block)


def _developer_text(
    instructions: Sequence[str], tools: Sequence[Tool], response_format: ResponseFormat | None
) -> str:
    blocks = ["# Instructions", *instructions] if instructions else []
    if tools:
        blocks += ["# Tools", "## functions", "namespace functions {"]
        blocks += [tool.typescript for tool in tools]
        blocks.append("} // namespace functions")
    if response_format is not None:
        schema = json.dumps(response_format.schema, ensure_ascii=False, separators=(",", ":"))
        lines = [*comment_lines(response_format.description), schema]
        blocks += ["# Response Formats", f"## {response_format.name}", "\n".join(lines)]
    return "\n\n".join(blocks)


def _message_pieces(message: Message) -> list[str]:
    if message.role in ("system", "developer"):
        return [_START, "developer", _MESSAGE, _developer_text([message.content], (), None), _END]
    author = message.role
    if message.name is not None:
        author = message.name if message.role == "tool" else f"{message.role}:{message.name}"
    pieces: list[str] = [_START, author]
    recipient = f" to={message.recipient}" if message.recipient else ""
    # A tool result names its recipient with its role; a call names it where the model does, behind
    # the channel.
    if message.channel is None or message.role == "tool":
        pieces.append(recipient)
        recipient = ""
    if message.channel is not None:
        pieces += [_CHANNEL, message.channel + recipient]
    if message.content_type == "json":
        pieces += [" ", _CONSTRAIN, "json"]
    elif message.content_type:
        pieces.append(f" {message.content_type}")
    return [*pieces, _MESSAGE, message.content, _CALL if message.is_tool_call else _END]


def _special_id(tokenizer: Tokenizer, token: str) -> int:
    try:
        return tokenizer.special_tokens[token]
    except KeyError:
        raise UnsupportedError(
            f"{tokenizer.path}: there is no {token} token, so this model does not speak Harmony",
            file=str(tokenizer.path),
        ) from None


def to_messages(messages: Iterable[Message | Mapping[str, Any]]) -> list[Message]:
    """Messages as Message objects. OpenAI-style dicts become one or more of them.

    Keys of a dict: role, content (a str, a list of {"type": "text"} parts, or for a tool result any
    JSON value), name, tool_calls, tool_call_id, and for an assistant's reasoning thinking,
    reasoning or reasoning_content. An assistant's content beside tool calls is a preamble in the
    commentary channel.
    """
    result: list[Message] = []
    names: dict[str, str] = {}  # the function behind each tool call id
    for index, item in enumerate(messages):
        if isinstance(item, Message):
            result.append(item)
            continue
        if not isinstance(item, Mapping):
            raise ArgumentError(
                f"message {index} is a {type(item).__name__}; expected a Message or a dict"
            )
        role = item.get("role")
        if role == "assistant":
            result += _assistant_messages(item, index, names)
        elif role == "tool":
            result.append(_tool_message(item, index, names, result))
        elif role in _ROLES:
            result.append(Message(role, _text(item, index), name=item.get("name")))
        else:
            raise ArgumentError(f"message {index} has role {role!r}; roles are {', '.join(_ROLES)}")
    return result


def _assistant_messages(
    item: Mapping[str, Any], index: int, names: dict[str, str]
) -> list[Message]:
    result = []
    thinking = item.get("thinking") or item.get("reasoning_content") or item.get("reasoning")
    if thinking:
        result.append(Message("assistant", thinking, channel="analysis"))
    calls = item.get("tool_calls") or ()
    if item.get("content") is not None or not (thinking or calls):
        text = _text(item, index)
        channel = item.get("channel") or ("commentary" if calls else "final")
        if text or not (thinking or calls):
            result.append(Message("assistant", text, channel=channel))
    for call in calls:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ArgumentError(
                f"message {index}: a tool call is a dict with a function's name and arguments"
            )
        if call.get("id"):
            names[call["id"]] = function["name"]
        arguments = function.get("arguments", {})
        text = (
            arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        )
        recipient = qualified(function["name"])
        result.append(
            Message(
                "assistant", text, channel="commentary", recipient=recipient, content_type="json"
            )
        )
    return result


def _tool_message(
    item: Mapping[str, Any], index: int, names: Mapping[str, str], earlier: Sequence[Message]
) -> Message:
    last_call = next((m.recipient for m in reversed(earlier) if m.is_tool_call), None)
    name = item.get("name") or names.get(item.get("tool_call_id", "")) or last_call
    if not name:
        raise ArgumentError(
            f"message {index} is a tool's result, but nothing says of which tool: give it a 'name'"
        )
    content = item.get("content")
    is_text = isinstance(content, str) or (
        isinstance(content, list)
        and all(isinstance(p, Mapping) and p.get("type") == "text" for p in content)
    )
    return tool_result(name, _text(item, index) if is_text else content)


def tool_result(name: str, output: Any) -> Message:
    """The message that hands a tool's output to the model: text as it is, anything else as JSON."""
    text = (
        output if isinstance(output, str) else json.dumps(output, ensure_ascii=False, default=str)
    )
    return Message("tool", text, channel="commentary", recipient="assistant", name=qualified(name))


def qualified(name: str) -> str:
    """A function's name with its namespace: "functions.get_weather"."""
    return name if "." in name else f"functions.{name}"


def _text(item: Mapping[str, Any], index: int) -> str:
    content = item.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(
        isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content
    ):
        return "".join(part["text"] for part in content)
    if "content" not in item:
        raise ArgumentError(
            f"message {index} has no 'content'; its keys are {', '.join(map(repr, item))}"
        )
    raise ArgumentError(
        f"message {index}: content is a str or a list of text parts, not {type(content).__name__}"
    )


# What a header may call its channel when the model slips: "finalx", "commentary?commentary?".
_CHANNEL_WORD = re.compile(f"({'|'.join(CHANNELS)})", re.IGNORECASE)
_CHANNEL_PREFIX = re.compile(
    rf"\s*(?:[^\w\s{{\[\"]*({'|'.join(CHANNELS)})[^\w\s{{\[\"]*)+", re.IGNORECASE
)
_RECIPIENT = re.compile(r"\bto=([\w.:-]*)")
_RECIPIENT_PREFIX = re.compile(r"\s*to=([\w.:-]*)")
_TOOL_ROLE = re.compile(r"\w[\w-]*(\.\w[\w-]*)+")
_TYPE_PREFIX = re.compile(r"\s*(json|code)(?=\s|[{\[\"]|$)")
_TYPE = re.compile(r"[A-Za-z][\w+./-]*")
_ROLE_PREFIX = re.compile(r"\s*(assistant|user|system|developer)(?::(\S+))?")
_NOT_TOOLS = frozenset(["", "all", *_ROLES])
_ENDINGS = frozenset(["<|end|>", "<|return|>", "<|call|>", "<|endoftext|>"])


@dataclass
class _Header:
    role: str = "assistant"
    name: str | None = None
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None
    rest: str = ""  # text of a header that was never closed: content whose <|message|> is missing


class HarmonyParser:
    """Reads what the model writes after `<|start|>assistant`, whatever it is, token by token.

    Both orders of a tool call's header are understood. Malformed output is repaired: a channel word
    that is nearly one counts as it; text whose <|message|> or whose whole header is missing is
    content; a header in the middle of a message begins the next one; other special tokens are left
    out. A message that names no channel is held back until it ends: if another message follows it
    was reasoning, else the answer.

    Attributes:
        messages: the messages finished so far. Those of an assistant always have a channel.
        tokens: every token pushed, as it was.
        truncated: whether the last message was cut off, known after flush().
    """

    def __init__(self, tokenizer: Tokenizer | None = None) -> None:
        """Without a tokenizer only push_text and push_special may be used."""
        self.messages: list[Message] = []
        self.tokens: list[int] = []
        self.truncated = False
        self._tokenizer = tokenizer
        self._special = (
            {i: text for text, i in tokenizer.special_tokens.items()}
            if tokenizer is not None
            else {}
        )
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._header: _Header | None = None  # of the message whose content is being read
        self._content: list[str] = []
        self._begin_header(started=False)

    def push(self, token: int) -> list[Delta]:
        """Takes the next token; returns the text it adds to the answer."""
        if self._tokenizer is None:
            raise ArgumentError(
                "a parser without a tokenizer reads text by push_text and push_special only"
            )
        self.tokens.append(token)
        if token in self._special:
            return self.push_special(self._special[token])
        return self.push_text(self._decoder.decode(self._tokenizer.token_bytes(token)))

    def push_text(self, text: str) -> list[Delta]:
        """Takes ordinary text; nothing in it is a special token."""
        if not text:
            return []
        if self._header is None:
            self._segments[-1] = (self._segments[-1][0], self._segments[-1][1] + text)
            return []
        self._content.append(text)
        return self._delta(self._header, text)

    def push_special(self, token: str) -> list[Delta]:
        """Takes a special token by its spelling."""
        deltas = self._end_text()
        if self._header is not None:
            if token in _ENDINGS or token in (_START, _CHANNEL):
                deltas += self._close_message(token)
                self._begin_header(started=token == _START)
                if token == _CHANNEL:
                    self._segments.append((token, ""))
        elif token == _MESSAGE:
            self._header = _read_header(self._segments, self._started, complete=True)
        elif token in (_CHANNEL, _CONSTRAIN):
            self._segments.append((token, ""))
        elif token == _START or token in _ENDINGS:
            deltas += self._close_header(token)
            self._begin_header(started=token == _START)
        return deltas

    def flush(self) -> list[Delta]:
        """Ends the output wherever it stands; returns what was held back."""
        deltas = self._end_text()
        num_messages = len(self.messages)
        deltas += self._close_message("") if self._header is not None else self._close_header("")
        self.truncated = len(self.messages) > num_messages
        self._begin_header(started=False)
        return deltas

    def _begin_header(self, *, started: bool) -> None:
        # After <|start|> a role follows; at the beginning the prompt has named the assistant.
        self._started = started
        self._segments: list[tuple[str, str]] = [("", "")]  # marker, text behind it
        self._header = None
        self._content = []

    def _end_text(self) -> list[Delta]:
        """A special token cannot continue a character: what is incomplete becomes U+FFFD."""
        tail = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return self.push_text(tail)

    @staticmethod
    def _delta(header: _Header, text: str) -> list[Delta]:
        if header.role != "assistant" or header.channel not in CHANNELS or not text:
            return []
        return [Delta(header.channel, text, header.recipient)]

    def _close_header(self, ending: str) -> list[Delta]:
        """Ends a header without <|message|>: what is no header in it was meant as content."""
        header = _read_header(self._segments, self._started, complete=False)
        words = header.rest.split()
        in_header = self._started or len(self._segments) > 1
        if not ending and in_header and len(words) < 2:
            return []  # cut off within the header
        if not words and not (header.recipient and ending == _CALL):
            return []
        self._header = header
        self._content = [header.rest.strip()]
        deltas = self._delta(header, self._content[0])
        return deltas + self._close_message(ending)

    def _close_message(self, ending: str) -> list[Delta]:
        header, text = self._header, "".join(self._content)
        assert header is not None
        deltas: list[Delta] = []
        if header.role == "assistant" and header.channel is None:
            header.channel = "analysis" if ending in (_END, _START, _CHANNEL) else "final"
            deltas = self._delta(header, text)
        self.messages.append(
            Message(
                header.role,
                text,
                header.channel,
                header.recipient,
                header.content_type,
                header.name,
            )
        )
        return deltas


def _read_header(segments: Sequence[tuple[str, str]], started: bool, *, complete: bool) -> _Header:
    """A header from its text behind each marker; complete: it was closed by <|message|>."""
    header = _Header()
    role_text = segments[0][1]
    if started or complete or len(segments) > 1:
        role_text = _read_role(header, role_text, started)
    parts = [("", role_text), *segments[1:]]
    for marker, text in parts if complete else parts[:-1]:
        _read_words(header, marker, text)
    if not complete:
        header.rest = _read_prefix(header, *parts[-1], started=started)
    if header.role == "assistant":
        if header.recipient in _NOT_TOOLS:
            header.recipient = None
        if header.recipient is not None and header.channel is None:
            header.channel = "commentary"
    return header


def _read_role(header: _Header, text: str, started: bool) -> str:
    """Takes the role off the front of a header; returns the rest."""
    match = _ROLE_PREFIX.match(text)
    if match and (started or match[1] == "assistant"):
        header.role, header.name = match[1], match[2]
        return text[match.end() :]
    words = text.split(maxsplit=1)
    if (
        started
        and words
        and (
            _TOOL_ROLE.fullmatch(words[0]) or (len(words) > 1 and _RECIPIENT_PREFIX.match(words[1]))
        )
    ):
        header.role, header.name = "tool", words[0]
        return " ".join(words[1:])
    return "" if started and len(words) == 1 else text


def _read_words(header: _Header, marker: str, text: str) -> None:
    """Reads one part of a header; what makes no sense in it is dropped."""
    recipient = _RECIPIENT.search(text)
    if recipient:
        header.recipient = recipient[1]
        text = text[: recipient.start()] + text[recipient.end() :]
    words = text.split()
    if marker == _CONSTRAIN:
        header.content_type = words[0] if words else None
        return
    if words and (match := (_CHANNEL_WORD.search if marker else _CHANNEL_WORD.fullmatch)(words[0])):
        header.channel = match[1].lower()
        del words[0]
    elif marker:
        del words[:1]
    if words and (marker or recipient) and _TYPE.fullmatch(words[-1]):
        header.content_type = words[-1]


def _read_prefix(header: _Header, marker: str, text: str, *, started: bool) -> str:
    """Takes what is header off a text whose <|message|> is missing; returns the rest."""
    if marker == _CONSTRAIN:
        word = _TYPE.match(text.lstrip())
        header.content_type = word[0] if word else None
        return text.lstrip()[word.end() if word else 0 :]
    channel = _CHANNEL_PREFIX.match(text) if marker or started else None
    if channel:
        header.channel = channel[1].lower()
        text = text[channel.end() :]
    elif marker and len(text.split()) < 2:
        return ""
    if recipient := _RECIPIENT_PREFIX.match(text):
        header.recipient = recipient[1]
        text = text[recipient.end() :]
    if (header.recipient or marker) and (kind := _TYPE_PREFIX.match(text)):
        header.content_type = kind[1]
        text = text[kind.end() :]
    return text
