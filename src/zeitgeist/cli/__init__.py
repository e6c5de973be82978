"""The command line: one module per verb; each parses, calls a door and prints."""

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

import zeitgeist
from zeitgeist.cli import (
    continual,
    drop,
    inspect,
    limits,
    linearize,
    merge,
    models,
    norms,
    report,
    reproduce,
    selfgen,
    systems,
)
from zeitgeist.errors import ZeitgeistError

app = App(
    name="zeitgeist",
    help="The month's machine-learning research, running on your models and your data.",
    help_epilogue="Any verb takes --debug, which shows the traceback of an error.",
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,
    version=zeitgeist.__version__,
)
app.command(systems.list_systems, name="list")
app.command(systems.show)
app.command(models.app)
app.command(merge.app)
app.command(drop.app)
app.command(linearize.app)
app.command(limits.app)
app.command(continual.app)
app.command(inspect.app)
app.command(norms.norms)
app.command(selfgen.app)
app.command(reproduce.reproduce)
app.command(report.report)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; a person's mistake is one message on stderr and exit code 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        app(
            [argument for argument in given if argument != "--debug"],
            exit_on_error=False,
            print_error=False,
        )
    except (CycloptsError, ZeitgeistError) as error:
        if debug:
            raise
        print(f"zeitgeist: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if debug:
            raise
        print("zeitgeist: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of a pipe left (`zeitgeist list | head -1`): nobody is there to tell.
        sys.stderr.close()
        sys.exit(141)
    except Exception as error:
        # A file system, a library or a metric of the user's that failed, or a bug of ours.
        if debug:
            raise
        told = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"zeitgeist: {told}; run it with --debug to see where", file=sys.stderr)
        sys.exit(2)
