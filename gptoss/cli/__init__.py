"""The `gptoss` command. A verb is one module of this package and one entry in `app.VERBS`."""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: the process's own) and returns its exit code.

    0 done, 1 an error (one line on standard error), 2 wrong usage, 130 stopped by Ctrl-C, 141 the
    reader of standard output has gone.
    """
    try:
        import rich
        import typer
    except ImportError:
        print(
            "gptoss: the command line needs typer and rich: pip install 'gptoss-engine[cli]'",
            file=sys.stderr,
        )
        return 1
    del rich, typer
    from gptoss.cli.app import run

    return run(sys.argv[1:] if argv is None else argv)
