"""Conversations with a model: questions and tool results in; reasoning, answers, calls out."""

from __future__ import annotations

import collections.abc
import datetime
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from gptoss.chat_template import ChatTemplate, TextParser
from gptoss.errors import (
    ArgumentError,
    ContextError,
    StateError,
    UnsupportedError,
    refuse_unknown_options,
    require_integer,
)
from gptoss.generator import Generator
from gptoss.harmony import Delta, Harmony, HarmonyParser, Message, to_messages, tool_result
from gptoss.model import Model, Progress
from gptoss.sampling import Sampling
from gptoss.speculation import Speculation
from gptoss.tokenizer import Tokenizer
from gptoss.tools import Tool

Deltas = collections.abc.Generator[Delta, None, None]
ToolLike = Tool | Mapping[str, Any] | Callable[..., Any]


@dataclass(frozen=True)
class ToolCall:
    """A call the model asks for. arguments: a dict, or the text itself if it is no JSON object."""

    name: str
    arguments: dict[str, Any] | str
    id: str


@dataclass(frozen=True)
class Reply:
    """What the model wrote in one go.

    Attributes:
        analysis: its reasoning, not meant for users.
        final: the answer.
        commentary: what it tells the user before it calls tools.
        tool_calls: the calls it waits for.
        messages: all of that as messages, in order.
        tokens: the token ids as sampled.
        finish_reason: "stop", "tool_calls", "length" (max_tokens), "interrupted" (Ctrl-C, or a
            stream that was closed); in Chat.last_reply also "context" and "error", which raised.
        seed: gives the same reply again.
    """

    analysis: str
    final: str
    commentary: str
    tool_calls: tuple[ToolCall, ...]
    messages: tuple[Message, ...] = field(repr=False)
    tokens: tuple[int, ...] = field(repr=False)
    finish_reason: str
    seed: int | None

    def __str__(self) -> str:
        return self.final


class ReplyStream(Iterator[Delta]):
    """The pieces of an answer as they come; `reply` is the whole, once they have ended."""

    def __init__(self, answer: Callable[[ReplyStream], Deltas]) -> None:
        self._reply: Reply | None = None
        self._deltas = answer(self)

    def __next__(self) -> Delta:
        return next(self._deltas)

    def close(self) -> None:
        """Stops the answer where it stands; what there is of it stays in the conversation."""
        self._deltas.close()

    @property
    def reply(self) -> Reply:
        if self._reply is None:
            raise StateError(
                "there is no answer yet: the stream was not read to its end, or failed before"
            )
        return self._reply


class Chat:
    """A conversation with a model. Not for use by several threads at once.

    gpt-oss models speak Harmony; others are prompted by the Jinja template that comes with them.

    Args:
        model: the model.
        reasoning: "low", "medium" or "high"; None for no such line.
        system: instructions; what is elsewhere called the system prompt.
        tools: functions the model may call, as Python functions (signature and docstring say what
            they take) or OpenAI-style dicts. Calls come back in Reply.tool_calls; nothing is run.
        identity, knowledge_cutoff: lines of Harmony's system message, by default those of the
            model's own chat template.
        date: the current date for the model, "today", or None for no such line.
        sampling: by default what the model's generation_config.json suggests.
        max_tokens: of one reply; None for as many as fit the context.
        max_context, kv_dtype, speculate: as in Generator.

    Attributes, which may be changed between questions:
        messages: the history, a list of Message objects or OpenAI-style dicts.
        reasoning, system, tools, sampling, max_tokens: as above.
        last_reply: the latest Reply, also of an answer that was interrupted; None before the first.

    Raises ArgumentError for bad options, UnsupportedError if the model has no tokenizer or no chat
    format.
    """

    @refuse_unknown_options
    def __init__(
        self,
        model: Model,
        *,
        reasoning: str | None = "medium",
        system: str | None = None,
        tools: Sequence[ToolLike] | None = None,
        identity: str | None = None,
        knowledge_cutoff: str | None = None,
        date: str | None = "today",
        max_context: int | None = None,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        kv_dtype: str = "f16",
        speculate: Speculation | bool | None = None,
    ) -> None:
        if not isinstance(model, Model):
            raise ArgumentError(f"a Chat needs a gptoss.Model, not {model!r}")
        tokenizer = model.tokenizer
        if tokenizer is None:
            raise UnsupportedError(f"{model._lacks_tokenizer}, so this model cannot chat")
        self._tokenizer: Tokenizer = tokenizer
        self._prompt: _Prompt
        if model.config.architecture == "gpt_oss" and tokenizer.is_harmony:
            self._prompt = _HarmonyPrompt(tokenizer, identity, knowledge_cutoff, date)
        else:
            self._prompt = _TemplatePrompt(tokenizer)
        self.reasoning = reasoning
        self.system = system
        self.tools = tools or ()
        self.sampling = sampling if sampling is not None else model.default_sampling
        self.max_tokens = max_tokens
        self.messages: list[Message | Mapping[str, Any]] = []
        self.last_reply: Reply | None = None
        self.prompt_ids()  # so that bad options are refused now
        self._generator = Generator(
            model, max_context=max_context, kv_dtype=kv_dtype, speculate=speculate
        )
        self._stream: ReplyStream | None = None
        self._num_calls = 0

    def __repr__(self) -> str:
        return f"<gptoss.Chat of {len(self.messages)} messages, {self._generator!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end_stream()
        self._generator.__exit__(kind, error, trace)

    def close(self) -> None:
        """Gives the context's memory back, as Generator.close does."""
        self._end_stream()
        self._generator.close()

    @property
    def tools(self) -> tuple[Tool, ...]:
        return self._tools

    @tools.setter
    def tools(self, tools: Sequence[ToolLike]) -> None:
        self._tools = tuple(Tool.of(tool) for tool in tools)

    @property
    def generator(self) -> Generator:
        """The sequence behind the conversation: its logits, cache rows and taps."""
        return self._generator

    def prompt_ids(self) -> list[int]:
        """The token ids that the next answer would continue."""
        messages = to_messages(self.messages)
        if self.system:
            messages.insert(0, Message("developer", self.system))
        return self._prompt.ids(messages, self._tools, self.reasoning)

    def ask(
        self,
        text: str,
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        on_delta: Callable[[Delta], None] | None = None,
        progress: Progress | None = None,
    ) -> Reply:
        """Asks, and returns the whole answer.

        max_tokens, sampling: for this answer only. on_delta: called with each piece as it comes.
        progress: called with tokens read and tokens to read while the prompt is read.

        Raises ContextError, with both counts, if conversation or answer do not fit the context:
        nothing is ever cut off the conversation in silence. Ctrl-C raises KeyboardInterrupt and
        keeps what there was of the answer, in the conversation and in last_reply. A question that
        fails before its answer has begun is withdrawn.
        """
        if not isinstance(text, str):
            raise ArgumentError(
                f"a question must be text, not {text!r}; resume() goes on without one"
            )
        return _drain(
            self.stream(text, max_tokens=max_tokens, sampling=sampling, progress=progress), on_delta
        )

    def resume(
        self,
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        on_delta: Callable[[Delta], None] | None = None,
        progress: Progress | None = None,
    ) -> Reply:
        """Lets the model go on without a new question, as after tool results. Options as in ask."""
        return _drain(
            self.stream(None, max_tokens=max_tokens, sampling=sampling, progress=progress), on_delta
        )

    def stream(
        self,
        text: str | None,
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        progress: Progress | None = None,
    ) -> ReplyStream:
        """Asks, and returns the answer piece by piece; with None for the text, resumes. Options as
        in ask.

        The work happens while the stream is read. A stream that is left unfinished ends with the
        next question.
        """
        self._end_stream()
        sampling = sampling if sampling is not None else self.sampling
        max_tokens = max_tokens if max_tokens is not None else self.max_tokens
        if max_tokens is not None:
            max_tokens = require_integer("max_tokens", max_tokens, 1)
        self._stream = ReplyStream(
            lambda stream: self._answer(stream, text, max_tokens, sampling, progress)
        )
        return self._stream

    def tool_result(self, call: ToolCall | str, output: Any) -> None:
        """Adds the output of a call (or of a tool, by name): text as it is, the rest as JSON."""
        self.messages.append(tool_result(call if isinstance(call, str) else call.name, output))

    def reset(self) -> None:
        """Forgets the conversation; the settings stay."""
        self._end_stream()
        self.messages.clear()
        self.last_reply = None
        self._generator.reset()

    def _end_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _answer(
        self,
        stream: ReplyStream,
        text: str | None,
        max_tokens: int | None,
        sampling: Sampling,
        progress: Progress | None,
    ) -> Deltas:
        history = list(self.messages)
        if text is not None:
            self.messages.append(Message("user", text))
        parser = self._prompt.parser()
        sampling = sampling.with_seed()
        finish, ended = "error", False
        try:
            feed(self._generator, self.prompt_ids(), progress)
            for out in self._generator.generate(
                None,
                max_tokens=max_tokens,
                sampling=sampling,
                stop_tokens=self._tokenizer.stop_token_ids,
            ):
                finish = out.finish_reason or finish
                yield from parser.push(out.token)
            ended = True
            yield from parser.flush()
            if finish == "length" and max_tokens is None:
                raise self._context_is_full()
        except (KeyboardInterrupt, GeneratorExit):
            finish = "interrupted" if finish == "error" else finish
            raise
        except ContextError:
            finish = "context"
            raise
        finally:
            if not ended:
                parser.flush()
            if parser.tokens:
                stream._reply = self.last_reply = self._record(parser, finish, sampling.seed)
            else:
                self.messages[:] = history

    def _context_is_full(self) -> ContextError:
        limit = self._generator.max_context
        return ContextError(
            f"the context of {limit} positions is full before the answer has ended: ask for a "
            "larger max_context, or take messages out of the conversation",
            max_context=limit,
            requested=limit + 1,
        )

    def _record(self, parser: _Parser, finish: str, seed: int | None) -> Reply:
        """Adds what was said to the history, and sums it up."""
        said = [message for message in parser.messages if message.role == "assistant"]
        cut = parser.messages[-1] if parser.truncated else None
        # Half a thought or half a call is of no use to the model; half an answer is.
        whole = [m for m in said if m is not cut or (m.channel == "final" and m.content.strip())]
        self.messages += whole
        calls = tuple(self._tool_call(message) for message in whole if message.is_tool_call)

        def text(channel: str) -> str:
            return "\n\n".join(
                m.content for m in said if m.channel == channel and not m.is_tool_call
            )

        return Reply(
            analysis=text("analysis"),
            final=text("final"),
            commentary=text("commentary"),
            tool_calls=calls,
            messages=tuple(said),
            tokens=tuple(parser.tokens),
            finish_reason="tool_calls" if finish == "stop" and calls else finish,
            seed=seed,
        )

    def _tool_call(self, message: Message) -> ToolCall:
        self._num_calls += 1
        arguments: dict[str, Any] | str = message.content
        try:
            parsed = json.loads(message.content or "{}")
        except (ValueError, RecursionError):
            parsed = None
        if isinstance(parsed, dict):
            arguments = parsed
        name = (message.recipient or "").removeprefix("functions.")
        return ToolCall(name, arguments, f"call_{self._num_calls}")


def _drain(stream: ReplyStream, on_delta: Callable[[Delta], None] | None) -> Reply:
    try:
        for delta in stream:
            if on_delta is not None:
                on_delta(delta)
    finally:
        stream.close()
    return stream.reply


def feed(generator: Generator, ids: Sequence[int], progress: Progress | None = None) -> None:
    """Brings a generator to the end of ids, and their logits, keeping what it holds of them."""
    held = generator.tokens[: generator.position]
    wanted = np.asarray(ids[: len(held)])
    differing = np.flatnonzero(held[: len(wanted)] != wanted)
    num_common = int(differing[0]) if len(differing) else len(wanted)
    num_common = min(num_common, len(ids) - 1)  # the last one is fed for its logits
    generator.rewind(num_common, progress=progress)
    generator.prefill(ids[num_common:], progress=progress)


class _Parser(Protocol):
    messages: list[Message]
    tokens: list[int]
    truncated: bool

    def push(self, token: int) -> list[Delta]: ...
    def flush(self) -> list[Delta]: ...


class _Prompt(Protocol):
    """How a model's conversations are written and read."""

    def ids(
        self, messages: Sequence[Message], tools: Sequence[Tool], reasoning: str | None
    ) -> list[int]: ...
    def parser(self) -> _Parser: ...


class _HarmonyPrompt:
    def __init__(
        self,
        tokenizer: Tokenizer,
        identity: str | None,
        knowledge_cutoff: str | None,
        date: str | None,
    ) -> None:
        # A conversation keeps the date on which it began, and with it what is in the context.
        today = datetime.date.today().isoformat()
        lines: dict[str, Any] = {"identity": identity, "knowledge_cutoff": knowledge_cutoff}
        self._tokenizer = tokenizer
        self._harmony = replace(
            Harmony.of_template(tokenizer.chat_template),
            date=today if date == "today" else date,
            **{name: line for name, line in lines.items() if line is not None},
        )

    def ids(
        self, messages: Sequence[Message], tools: Sequence[Tool], reasoning: str | None
    ) -> list[int]:
        return replace(self._harmony, reasoning=reasoning).encode(
            self._tokenizer, messages, tools=tools
        )

    def parser(self) -> _Parser:
        return HarmonyParser(self._tokenizer)


class _TemplatePrompt:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer)

    def ids(
        self, messages: Sequence[Message], tools: Sequence[Tool], reasoning: str | None
    ) -> list[int]:
        functions = [
            {
                "name": tool.name,
                "description": tool.description,
                "parameters": dict(tool.parameters),
            }
            for tool in tools
        ]
        return self._template.encode(
            [
                {"role": "system" if m.role == "developer" else m.role, "content": m.content}
                | ({"name": m.name.removeprefix("functions.")} if m.name else {})
                for m in messages
            ],
            tools=[{"type": "function", "function": function} for function in functions] or None,
            reasoning_effort=reasoning,
        )

    def parser(self) -> _Parser:
        return TextParser(self._tokenizer)
