"""The Typer application: the verbs, their common options, and what becomes of errors."""

import functools
import inspect
import sys
import traceback as tracebacks
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import ModuleType
from typing import Annotated, Any

import typer

import gptoss
from gptoss.cli import (
    bench,
    chat,
    compare,
    console,
    convert,
    doctor,
    generate,
    perplexity,
    quantize,
)
from gptoss.cli import inspect as inspect_verb
from gptoss.cli.help import Command, Group

# In the order of `gptoss --help`. A verb is a module with `run`, whose docstring is the help and
# whose parameters are the options, and EXAMPLES, command lines.
VERBS: dict[str, ModuleType] = {
    "generate": generate,
    "chat": chat,
    "bench": bench,
    "perplexity": perplexity,
    "inspect": inspect_verb,
    "convert": convert,
    "quantize": quantize,
    "compare": compare,
    "doctor": doctor,
}

EXAMPLES = (
    'gptoss generate "Once upon a time"',
    "gptoss chat",
    "gptoss generate --help",
)

EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 1, 2, 130, 141

# Typer gives wrong usage no public name in all its versions; this one's base is it.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

Traceback = Annotated[
    bool,
    typer.Option("--traceback", help="Show the whole Python traceback of an error."),
]


def _reported(function: Callable[..., None]) -> Callable[..., None]:
    """Adds --traceback to a verb and turns its exceptions into a line and an exit code."""

    @functools.wraps(function)
    def run(*, traceback: bool = False, **options: Any) -> None:
        try:
            function(**options)
            sys.stdout.flush()
        except (typer.Exit, UsageError):
            raise
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            # What is left in the buffer has no reader; closing drops it without a second error.
            with suppress(BrokenPipeError):
                sys.stdout.close()
            raise typer.Exit(EXIT_BROKEN_PIPE) from None
        except Exception as error:
            if traceback:
                tracebacks.print_exc()
            else:
                console.error(console.sentence(error))
            raise typer.Exit(EXIT_ERROR) from None

    signature = inspect.signature(function)
    option = inspect.Parameter(
        "traceback", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Traceback
    )
    options = [*signature.parameters.values(), option]
    run.__signature__ = signature.replace(parameters=options)  # type: ignore[attr-defined]
    run.__annotations__ = {**function.__annotations__, "traceback": Traceback}
    return run


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gptoss {gptoss.__version__}")
        raise typer.Exit()


def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Run the gpt-oss models, every tensor in reach. Without --model, the small demo model."""
    del version
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _make_app() -> typer.Typer:
    names = {"help_option_names": ["--help", "-h"]}
    app = typer.Typer(
        cls=Group,
        subcommand_metavar="VERB [ARGS]...",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings=names,
    )
    app.callback(invoke_without_command=True, epilog="\n".join(EXAMPLES))(_root)
    for name, module in VERBS.items():
        make = app.command(name, cls=Command, epilog="\n".join(module.EXAMPLES))
        make(_reported(module.run))
    return app


app = _make_app()


def _usage_sentence(error: Any) -> str:
    """Typer's message as one sentence that ends in what to do."""
    option = getattr(error, "option_name", None)
    possible = getattr(error, "possibilities", None)
    if option and possible:
        return f"no such option {option}; did you mean {' or '.join(sorted(possible))}?"
    message: str = error.format_message().removeprefix("Invalid value: ").rstrip(".")
    message, _, suggestion = (message[:1].lower() + message[1:]).partition(". Did you mean ")
    if suggestion:
        return f"{message}; did you mean {suggestion.partition('?')[0]}?"
    context = getattr(error, "ctx", None)
    return f"{message} (see {context.command_path} --help)" if context else message


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    console.note(f"gptoss: {message}")


def run(argv: Sequence[str]) -> int:
    """Runs one command line and returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            code = app(args=list(argv), prog_name="gptoss", standalone_mode=False)
        except UsageError as error:
            console.error(_usage_sentence(error))
            return EXIT_USAGE
        except OSError as error:  # of --help and --version; verbs report their own
            console.error(console.sentence(error))
            return EXIT_ERROR
        except typer.Abort:
            return EXIT_INTERRUPTED
    return code if isinstance(code, int) else 0
