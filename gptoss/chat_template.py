"""Chat templates: the Jinja programs that write the conversations of models but for gpt-oss."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gptoss.errors import ArgumentError, FormatError, UnsupportedError
from gptoss.harmony import Delta, Message
from gptoss.tokenizer import StreamDecoder, Tokenizer

# Special tokens spelled out by a user travel through the template as noncharacters around a number,
# so that they can be told from those that the template writes.
_QUOTED = re.compile("\ufdd0(\\d+)\ufdd1")


class ChatTemplate:
    """A tokenizer's chat template, run in a sandbox with what such templates expect of Hugging Face
    transformers.

    Raises UnsupportedError if Jinja2 is not installed or the tokenizer has no template, FormatError
    if it has a malformed one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        try:
            import jinja2
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError:
            raise UnsupportedError(
                "this model's conversations are written by a Jinja template, which needs Jinja2: "
                "pip install 'gptoss-engine[chat]'"
            ) from None
        if tokenizer.chat_template is None:
            raise UnsupportedError(
                f"{tokenizer.path.parent}: there is no chat template (chat_template.jinja, or "
                "chat_template in tokenizer_config.json), so this model cannot chat; "
                "gptoss.Generator.generate continues any text",
                file=str(tokenizer.path.parent),
            )
        self._tokenizer = tokenizer
        self._specials = list(tokenizer.special_tokens)
        self._error: type[Exception] = jinja2.TemplateError
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda pattern: datetime.datetime.now().strftime(
            pattern
        )
        try:
            self._template = environment.from_string(tokenizer.chat_template)
        except jinja2.TemplateError as error:
            raise self._malformed(error) from error

    def render(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """The text of OpenAI-style messages, ending where the assistant's answer begins.

        variables: more names for the template, such as tools; None leaves a name undefined.
        """
        tokens = {
            f"{name}_token": self._tokenizer.token_bytes(token).decode()
            for name in ("bos", "eos", "pad")
            if (token := getattr(self._tokenizer, f"{name}_id")) is not None
        }
        given = {key: value for key, value in variables.items() if value is not None}
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=True, **tokens, **given
            )
        except self._error as error:
            raise self._malformed(error) from error

    def encode(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> list[int]:
        """Token ids of `render`; special tokens that messages spell out are ordinary text."""
        text = self.render([self._quote(message) for message in messages], **variables)
        ids: list[int] = []
        for part in self._tokenizer.split_special(text):
            if part in self._tokenizer.special_tokens:
                ids.append(self._tokenizer.special_tokens[part])
            else:
                ids += self._tokenizer.encode(_QUOTED.sub(self._unquoted, part))
        return ids

    def _quote(self, value: Any) -> Any:
        if isinstance(value, str):
            parts = self._tokenizer.split_special(value)
            return "".join(
                f"\ufdd0{self._specials.index(p)}\ufdd1" if p in self._specials else p
                for p in parts
            )
        if isinstance(value, Mapping):
            return {key: self._quote(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._quote(item) for item in value]
        return value

    def _unquoted(self, match: re.Match[str]) -> str:
        index = int(match[1])
        return self._specials[index] if index < len(self._specials) else match[0]

    def _malformed(self, error: Exception) -> FormatError:
        line = getattr(error, "lineno", None)
        where = f" at line {line}" if line else ""
        return FormatError(
            f"{self._tokenizer.path.parent}: the chat template failed{where}: {error}",
            file=str(self._tokenizer.path.parent),
        )


def _to_json(value: Any, indent: int | None = None) -> str:
    """tojson without Jinja's HTML escapes: prompts are no web pages."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> None:
    raise ArgumentError(f"the model's chat template refuses this conversation: {message}")


class TextParser:
    """Reads plain answers as HarmonyParser reads Harmony: all is final, special tokens left out."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.messages: list[Message] = []
        self.tokens: list[int] = []
        self.truncated = False
        self._decoder = StreamDecoder(tokenizer, skip_special=True)
        self._text: list[str] = []

    def push(self, token: int) -> list[Delta]:
        """Takes the next token; returns the text it completes."""
        self.tokens.append(token)
        return self._take(self._decoder.push(token)[0])

    def flush(self) -> list[Delta]:
        """Ends the answer; returns what was held back."""
        deltas = self._take(self._decoder.flush())
        self.messages.append(Message("assistant", "".join(self._text), channel="final"))
        self._text.clear()
        return deltas

    def _take(self, text: str) -> list[Delta]:
        if not text:
            return []
        self._text.append(text)
        return [Delta("final", text)]
