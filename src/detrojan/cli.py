"""The command line: the sub-commands of `commands`, and the exit status."""

from __future__ import annotations

import sys

import typer

from detrojan.commands import attack, bench, clean, demo, evaluate, listing, report, scan
from detrojan.commands.door import say
from detrojan.errors import InputError
from detrojan.help import Grouped

app = typer.Typer(
    name="detrojan",
    help="Remove backdoors from neural networks you did not train, and measure honestly what is left.",
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog=clean.EXAMPLE)(clean.clean)
app.command(epilog=attack.EXAMPLE)(attack.attack)
app.command(cls=Grouped, epilog=evaluate.EXAMPLE)(evaluate.evaluate)
app.command(epilog=scan.EXAMPLE)(scan.scan)
app.command("list", epilog=listing.EXAMPLE)(listing.list_)
app.command(epilog=demo.EXAMPLE)(demo.demo)
app.command(epilog=bench.EXAMPLE)(bench.bench)
app.command(epilog=report.EXAMPLE)(report.report)


def main() -> None:
    """Run the command line and leave with the documented exit status."""
    try:
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except KeyboardInterrupt:
        _fail(3, "interrupted; run the same command again")
    except InputError as error:
        _fail(2, str(error))
    except OSError as error:
        _fail(2, f"{error.filename or 'output'}: {error.strerror or error}")
    except Exception as error:
        message = getattr(error, "format_message", None)  # a usage error of click, whichever copy typer uses
        if message is None:
            if type(error).__name__ == "Abort":
                _fail(3, "interrupted")
            raise
        _fail(2, f"{message()} (see detrojan --help)")
    if status == 130:  # what typer makes of ctrl-C
        _fail(3, "interrupted; run the same command again")
    sys.exit(status if isinstance(status, int) else 0)


def _fail(status: int, message: str) -> None:
    say(message)
    sys.exit(status)
