"""`gptoss generate`: a prompt goes in, its continuation comes out as it is made."""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

import gptoss
from gptoss.chat_template import TextParser
from gptoss.cli import console, options
from gptoss.cli.answer import AnswerPrinter
from gptoss.harmony import HarmonyParser, Message
from gptoss.tokenizer import Tokenizer

EXAMPLES = (
    'gptoss generate "Once upon a time"',
    'gptoss generate --chat "What is 17 + 25?" --temperature 0',
    "gptoss generate --file prompt.txt --max-tokens 500 --seed 7",
    'echo "Once upon a time" | gptoss generate --json --logprobs 3',
)

_DEFAULT_TOKENS = 256


@dataclasses.dataclass
class Summary:
    """What `--json` prints last and `--stats` in one line. Times in seconds."""

    prompt_tokens: int
    seed: int | None
    text: str = ""
    generated_tokens: int = 0
    finish_reason: str | None = None
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    speculation: gptoss.SpeculationStats | None = None

    def line(self) -> str:
        parts = [
            f"prompt {self.prompt_tokens:,} tokens "
            f"{console.format_rate(self.prompt_tokens, self.prefill_seconds)}",
            f"generated {self.generated_tokens:,} tokens "
            f"{console.format_rate(self.generated_tokens, self.decode_seconds)}",
            console.format_speculation(self.speculation),
            f"{self.finish_reason}",
            f"seed {self.seed}",
        ]
        return " · ".join(part.strip() for part in parts if part)


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt from the argument, the file or standard input, whichever is given.

    Of a file or a pipe one final newline is dropped: editors and echo add it.
    """
    if prompt is not None and file is not None:
        raise typer.BadParameter("give PROMPT or --file, not both")
    if prompt is not None and prompt != "-":
        text = prompt
    elif file is not None:
        text = file.read_bytes().decode("utf-8").removesuffix("\n")
    elif prompt == "-" or not sys.stdin.isatty():
        text = sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    else:
        raise typer.BadParameter("give a PROMPT, --file, or a text on standard input")
    if not text:
        raise typer.BadParameter("the prompt is empty")
    return text


class Writer(Protocol):
    """Where the tokens go."""

    def token(self, output: gptoss.Output) -> None: ...
    def end(self, summary: Summary) -> None: ...


class TextWriter:
    """The text and nothing else; on a terminal the prompt leads it, dimmed."""

    def __init__(self, prompt: str) -> None:
        self._stream = console.TextStream()
        if self._stream.is_terminal:
            self._stream.write(prompt, "dim")

    def token(self, output: gptoss.Output) -> None:
        self._stream.write(output.text)

    def end(self, summary: Summary) -> None:
        self._stream.end_line()


class AnswerWriter:
    """The answer, on a terminal behind its reasoning."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._parser = answer_parser(tokenizer)
        self._printer = AnswerPrinter()

    def token(self, output: gptoss.Output) -> None:
        for delta in self._parser.push(output.token):
            self._printer.delta(delta)

    def end(self, summary: Summary) -> None:
        for delta in self._parser.flush():
            self._printer.delta(delta)
        cut_off = summary.finish_reason == "length"
        self._printer.end(f"cut off after {summary.generated_tokens} tokens" if cut_off else "")


class LogprobWriter:
    """One line a token: its log-probability, its text, the likeliest alternatives."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._stream = console.TextStream()
        self._tokenizer = tokenizer

    def token(self, output: gptoss.Output) -> None:
        others = [f"{top.logprob:.3f} {top.text!r}" for top in output.top_logprobs]
        self._stream.write(f"{output.logprob:8.3f}  {self._shown(output.token):<16}")
        self._stream.write("".join(f"  {other:<20}" for other in others).rstrip(), "dim")
        self._stream.write("\n")

    def _shown(self, token: int) -> str:
        return repr(self._tokenizer.token_bytes(token).decode("utf-8", "replace"))

    def end(self, summary: Summary) -> None:
        self._stream.end_line()


class JsonWriter:
    """One object a token as it comes, then the summary, for an answer with its parts."""

    def __init__(self, tokenizer: Tokenizer, chat: bool, **facts: Any) -> None:
        self._tokenizer = tokenizer
        self._parser = answer_parser(tokenizer) if chat else None
        self._facts = facts

    def token(self, output: gptoss.Output) -> None:
        if self._parser is not None:
            self._parser.push(output.token)
        self._print(
            type="token",
            token=output.token,
            text=output.text,
            bytes=list(output.bytes),
            logprob=output.logprob,
            top_logprobs=[top._asdict() for top in output.top_logprobs],
            finish_reason=output.finish_reason,
        )

    def end(self, summary: Summary) -> None:
        if self._parser is not None:
            self._parser.flush()
            self._facts["messages"] = [
                {"channel": message.channel, "content": message.content}
                for message in self._parser.messages
            ]
        self._print(type="summary", **dataclasses.asdict(summary), **self._facts)

    @staticmethod
    def _print(**values: Any) -> None:
        print(json.dumps(values, ensure_ascii=False), flush=True)


def answer_parser(tokenizer: Tokenizer) -> HarmonyParser | TextParser:
    return HarmonyParser(tokenizer) if tokenizer.is_harmony else TextParser(tokenizer)


def make_writer(
    model: gptoss.Model,
    tokenizer: Tokenizer,
    text: str,
    chat: bool,
    logprobs: int | None,
    as_json: bool,
) -> Writer:
    if as_json:
        return JsonWriter(tokenizer, chat, model=str(model.path), isa=model.isa)
    if logprobs is not None:
        return LogprobWriter(tokenizer)
    return AnswerWriter(tokenizer) if chat else TextWriter(text)


def require_tokenizer(model: gptoss.Model) -> Tokenizer:
    if model.tokenizer is None:
        raise gptoss.UnsupportedError(f"{model._lacks_tokenizer}, so no text either")
    return model.tokenizer


def begin(
    model: gptoss.Model, text: str, chat: bool, special: bool, **how: Any
) -> tuple[gptoss.Generator, list[int]]:
    """An empty Generator, and the token ids of the text or of a conversation that it begins."""
    if chat:
        talk = gptoss.Chat(model, **how)
        talk.messages.append(Message("user", text))
        return talk.generator, talk.prompt_ids()
    generator = gptoss.Generator(model, **how)
    tokenizer = require_tokenizer(model)
    ids, opening = tokenizer.encode(text, allow_special=special), tokenizer.opening_ids
    return generator, ids if ids[: len(opening)] == opening else [*opening, *ids]


def token_limit(max_tokens: int | None, chat: bool, room: int) -> int:
    """How many tokens to make. What --max-tokens asks for is never cut down in silence."""
    if max_tokens:
        return max_tokens
    is_open = max_tokens == 0 or chat
    return max(1, room if is_open else min(room, _DEFAULT_TOKENS))


def continue_text(
    generator: gptoss.Generator, tokens: list[int], writer: Writer, summary: Summary, **how: Any
) -> None:
    """Feeds `tokens`, hands each generated token to the writer and counts it in the summary."""
    start = time.perf_counter()
    try:
        with console.progress_bar("reading the prompt") as progress:
            generator.prefill(tokens, progress=progress)
        summary.prefill_seconds = time.perf_counter() - start
        start = time.perf_counter()
        for output in generator.generate(None, **how):
            writer.token(output)
            summary.text += output.text
            summary.generated_tokens += 1
            summary.finish_reason = output.finish_reason
    except KeyboardInterrupt:
        summary.finish_reason = "interrupted"
        raise
    except gptoss.Error:
        summary.finish_reason = "error"
        raise
    finally:
        if summary.prefill_seconds:
            summary.decode_seconds = time.perf_counter() - start
        summary.speculation = generator.speculation
        writer.end(summary)


Prompt = Annotated[
    str | None,
    typer.Argument(metavar="PROMPT", help="The text to go on from; - or nothing: standard input."),
]
File = Annotated[
    Path | None, typer.Option("--file", "-f", metavar="FILE", help="Read the prompt from FILE.")
]
AsChat = Annotated[
    bool,
    typer.Option("--chat/--raw", help="Answer the prompt as a message, or continue its text."),
]
Special = Annotated[
    bool, typer.Option("--special", help="Read <|...|> in the prompt as special tokens.")
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-tokens",
        "-n",
        min=0,
        metavar="N",
        help=f"Stop after N tokens; 0: when the context is full; default: {_DEFAULT_TOKENS}, "
        "or 0 with --chat.",
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="Stop before TEXT; may be given several times."),
]
Logprobs = Annotated[
    int | None,
    typer.Option(min=0, metavar="K", help="Show log-probabilities and the K likeliest tokens."),
]


def run(
    prompt: Prompt = None,
    model: options.Model = "demo",
    file: File = None,
    chat: AsChat = False,
    special: Special = False,
    max_tokens: MaxTokens = None,
    stop: Stop = None,
    logprobs: Logprobs = None,
    as_json: options.Json = False,
    stats: options.Stats = False,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    frequency_penalty: options.FrequencyPenalty = None,
    presence_penalty: options.PresencePenalty = None,
    seed: options.Seed = None,
    device: options.Device = "cpu",
    gpu_memory: options.GpuMemory = None,
    threads: options.Threads = None,
    isa: options.Isa = None,
    precision: options.Precision = None,
    adapter: options.Adapters = None,
    kv: options.KvDtype = "f16",
    context: options.Context = None,
    speculate: options.Speculate = False,
) -> None:
    """Continue a text, or answer one message with --chat, printing as it is made."""
    if chat and special:
        raise typer.BadParameter("--special is for a plain prompt; a message of --chat is text")
    text = read_prompt(prompt, file)
    adapters = options.adapters(adapter)
    engine = {"device": device, "gpu_memory": gpu_memory, "threads": threads, "isa": isa}
    with options.open_model(model, adapters=adapters, precision=precision, **engine) as handle:
        sampling = options.sampling(
            handle,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            seed=seed,
        ).with_seed()
        tokenizer = require_tokenizer(handle)
        writer = make_writer(handle, tokenizer, text, chat, logprobs, as_json)
        cache = {"max_context": context or handle.config.max_positions, "kv_dtype": kv}
        generator, tokens = begin(handle, text, chat, special, speculate=speculate, **cache)
        summary = Summary(len(tokens), sampling.seed)
        how = {"sampling": sampling, "stop": stop or (), "top_logprobs": logprobs or 0}
        limit = token_limit(max_tokens, chat, generator.max_context - len(tokens))
        with generator:
            continue_text(generator, tokens, writer, summary, max_tokens=limit, **how)
        if stats:
            console.note(summary.line())
