"""`gptoss chat`: a conversation, typed or piped in."""

import dataclasses
import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from typing import Annotated, Literal

import typer

import gptoss
from gptoss.cli import chat_commands, console, options
from gptoss.cli.answer import AnswerPrinter
from gptoss.cli.chat_input import enable_line_editing, line_reader, read_message
from gptoss.harmony import Delta

EXAMPLES = (
    "gptoss chat",
    "gptoss chat --model openai/gpt-oss-20b --reasoning low",
    "echo 'What is 17 + 25?' | gptoss chat --temperature 0",
)


@dataclasses.dataclass
class Session:
    """A conversation and the settings that /commands change."""

    model: gptoss.Model
    chat: gptoss.Chat
    sampling: gptoss.Sampling
    max_tokens: int | None = None
    show_reasoning: bool | None = None
    show_stats: bool = False
    interactive: bool = dataclasses.field(default_factory=lambda: sys.stdin.isatty())

    def say(self, text: str) -> None:
        """Prints what a command was asked for."""
        print(text, flush=True)

    def note(self, text: str) -> None:
        """Confirms a command, to a person only."""
        if self.interactive:
            console.note(text)

    def take(self, text: str) -> None:
        """Does what a line asks for: a command, or an answer."""
        if chat_commands.is_command(text):
            chat_commands.execute(self, text)
        else:
            self.answer(text)

    def answer(self, text: str) -> None:
        """Streams the answer to a message. Ctrl-C ends the answer, and a piped conversation."""
        printer = AnswerPrinter(self.show_reasoning)
        remark = ""
        start = time.perf_counter()
        guessed = self.chat.generator.speculation
        try:
            # Closing keeps what there is of an answer that was stopped while it was printed.
            with closing(self._deltas(text)) as deltas:
                for delta in deltas:
                    printer.delta(delta)
            remark = self._remark()
        except KeyboardInterrupt:
            remark = "stopped"
            if not self.interactive:
                raise
        finally:
            printer.end(remark)
        if self.show_stats and (reply := self.chat.last_reply):
            seconds = time.perf_counter() - start
            parts = [f"{len(reply.tokens)} tokens in {seconds:.1f} s", f"seed {reply.seed}"]
            if guessed and (now := self.chat.generator.speculation):
                parts.insert(1, console.format_speculation(now.since(guessed)))
            console.note(" · ".join(parts))

    def _deltas(self, text: str) -> Generator[Delta, None, None]:
        with ExitStack() as bar:
            progress = bar.enter_context(console.progress_bar("reading"))
            stream = self.chat.stream(
                text, sampling=self.sampling, max_tokens=self.max_tokens, progress=progress
            )
            with closing(stream):
                for delta in stream:
                    bar.close()
                    yield delta

    def _remark(self) -> str:
        reply = self.chat.last_reply
        if reply is None:
            return "no answer"
        if reply.finish_reason == "length":
            return f"cut off after {len(reply.tokens)} tokens"
        return "" if reply.final else "no answer"


def converse(session: Session, read_line: Callable[[str], str]) -> None:
    """Reads messages and commands until the input ends."""
    while True:
        try:
            text = read_message(read_line).strip()
        except EOFError:
            if session.interactive:
                print()
            return
        except KeyboardInterrupt:
            if not session.interactive:
                raise
            print()
            console.note("Ctrl-D or /quit leaves")
            continue
        if not text:
            continue
        try:
            session.take(text)
        except chat_commands.Quit:
            return
        except (gptoss.Error, OSError, KeyboardInterrupt) as error:
            if not session.interactive or isinstance(error, BrokenPipeError):
                raise
            if not isinstance(error, KeyboardInterrupt):
                console.error(console.sentence(error))
        if session.interactive:
            print()


def _greeting(model: gptoss.Model) -> str:
    how = f"{model.isa}, {model.threads} thread{'s' if model.threads > 1 else ''}"
    if model.device != "cpu":
        shares = model.placement
        where = " + ".join(map(str, shares)) if len(shares) > 1 else model.device
        how = f"{where}, {model.precision}"
    return (
        f"gptoss {gptoss.__version__} · {model.path.name} · {how}\n"
        "/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.\n"
    )


Reasoning = Annotated[
    Literal["low", "medium", "high"],
    typer.Option(metavar="low|medium|high", help="How much the model thinks before it answers."),
]
System = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Instructions for the whole conversation.")
]
ShowReasoning = Annotated[
    bool | None,
    typer.Option(
        "--show-reasoning/--hide-reasoning",
        help="Show what the model thinks; default: on a terminal.",
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-tokens",
        "-n",
        min=1,
        metavar="N",
        help="Cut an answer off after N tokens; default: when the context is full.",
    ),
]


def run(
    model: options.Model = "demo",
    reasoning: Reasoning = "medium",
    system: System = None,
    show_reasoning: ShowReasoning = None,
    max_tokens: MaxTokens = None,
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
    """Talk with a model. Lines piped in are messages too; then only the answers are printed."""
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
        )
        chat = gptoss.Chat(
            handle,
            reasoning=reasoning,
            system=system,
            max_context=context or handle.config.max_positions,
            kv_dtype=kv,
            speculate=speculate,
        )
        session = Session(handle, chat, sampling, max_tokens, show_reasoning, stats)
        if session.interactive:
            enable_line_editing(f"/{name}" for name in chat_commands.COMMANDS)
            console.note(_greeting(handle))
        converse(session, line_reader(console.console().color_system is not None))
