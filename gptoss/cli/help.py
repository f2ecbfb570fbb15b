"""Help as calm text: usage, what the verb does, its options by subject, examples."""

from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from gptoss.cli import console

_MAX_WIDTH = 100


def _option_names(param: Any) -> str:
    """'-m, --model PATH', with room for the short name where there is none."""
    short = [name for name in param.opts if not name.startswith("--")]
    long = [name for name in (*param.opts, *param.secondary_opts) if name.startswith("--")]
    names = "".join(f"{name}, " for name in short) or "    "
    metavar = "" if param.is_flag else f" {param.metavar or param.name.upper()}"
    return names + " / ".join(long) + metavar


def _sections(command: Any, context: Any) -> dict[str, list[tuple[str, str]]]:
    """Title -> (names, help) of arguments, verbs and options, in the order they are shown."""
    sections: dict[str, list[tuple[str, str]]] = {}
    if isinstance(command, TyperGroup):
        sections["Verbs"] = [
            (name, (command.commands[name].help or "").partition("\n")[0])
            for name in command.list_commands(context)
        ]
    for param in command.get_params(context):
        if param.param_type_name == "argument":
            rows = sections.setdefault("Arguments", [])
            rows.append((param.metavar, param.help))
        else:
            title = getattr(param, "rich_help_panel", None) or "Options"
            rows = sections.setdefault(title, [])
            rows.append((_option_names(param), param.help))
    return sections


def _print(out: Console, command: Any, context: Any) -> None:
    out.print(Text.assemble(("Usage: ", "dim"), " ".join(command.get_usage(context).split()[1:])))
    out.print(f"\n{command.help}")
    sections = _sections(command, context)
    width = max(len(names) for rows in sections.values() for names, _ in rows)
    for title, rows in sections.items():
        out.print(Text(f"\n{title}", "bold"))
        grid = Table.grid(padding=(0, 3, 0, 0))
        grid.add_column(width=width, no_wrap=True, style="cyan")
        grid.add_column()
        for row in rows:
            grid.add_row(*row)
        out.print(Padding(grid, (0, 0, 0, 2)))
    if command.epilog:
        out.print(Text("\nExamples", "bold"))
        for line in command.epilog.splitlines():
            out.print(f"  {line}", soft_wrap=True)


class _Help:
    """Replaces the help of Typer's commands."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        out = console.console()
        out.width = min(out.width, _MAX_WIDTH)
        with out.capture() as captured:
            _print(out, self, ctx)
        formatter.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


class Command(_Help, TyperCommand):
    """A verb."""


class Group(_Help, TyperGroup):
    """The program: its verbs."""
