"""The command line `r2d`: it parses and dispatches only; every command calls the library.

Heavy imports happen inside the commands, so that `r2d --help` answers at once and without torch.
"""

from __future__ import annotations

import io
import logging
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from reason2decide.cli import evidence, judge, llm, models, predict, serve
from reason2decide.cli.data import data_app
from reason2decide.cli.feedback import feedback_app
from reason2decide.console import set_quiet, stderr, visible
from reason2decide.errors import Interrupted, Reason2DecideError, UserError
from reason2decide.files import means_full_disk
from reason2decide.model.threads import let_threads_sleep
from reason2decide.parallel import use_cores
from reason2decide.version import __version__

SHOWN = 200  # ours: characters of a name that cannot be used
INTERRUPTED = 130  # 128 + SIGINT: the exit code that typer gives Ctrl-C

app = typer.Typer(
    name="r2d",
    help="Train, measure and use small models that decide and write the reason for their decision.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")
app.add_typer(feedback_app, name="feedback")
models.register(app)
predict.register(app)
evidence.register(app)
llm.register(app)
judge.register(app)
serve.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"r2d {__version__}")
        raise typer.Exit


@app.callback()
def common(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results, warnings and errors only.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    set_quiet(quiet)


def main() -> None:
    """Run `r2d`; a user's mistake ends with one clear line and exit code 2, partly failed work with 1.

    Ctrl-C ends with 130, SIGTERM with 143.
    """
    let_threads_sleep()
    use_cores()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # at every import it advises another package
    if isinstance(sys.stdout, io.TextIOWrapper):  # of another encoding than UTF-8, which cannot write every label
        sys.stdout.reconfigure(errors="backslashreplace")
    # The default action would end the process without removing what is half written.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        app(_quiet_first(sys.argv[1:]), standalone_mode=True)
    except UserError as error:
        _fail(str(error))
    except Interrupted as error:
        stderr.print(str(error), markup=False)
        sys.exit(error.exit_code)
    except Reason2DecideError as error:
        _fail(str(error), code=1)
    except PermissionError as error:
        _fail(f"no permission for {error.filename}; choose another path or change its permissions")
    except Exception as error:
        if means_full_disk(error):
            _fail(f"the disk is full ({error}); free some space and run the command again")
        if isinstance(error, OSError) and isinstance(error.filename, str | bytes | Path):
            _fail(f"{error.strerror}: {str(error.filename)[:SHOWN]}")
        raise
    except SystemExit as end:
        if end.code == INTERRUPTED:
            stderr.print("interrupted", markup=False)
        raise
    finally:
        # Nothing is half written any more, and an exit while Python shuts down would only print a traceback.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _quiet_first(arguments: list[str]) -> list[str]:
    """The arguments with `--quiet`, which holds for every command, before the command."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    rest = [word for word in arguments[:end] if word not in ("--quiet", "-q")]
    return ["--quiet"] * (len(rest) < end) + rest + arguments[end:]


def _fail(message: str, code: int = 2) -> None:
    stderr.print(f"error: {visible(message)}", markup=False, soft_wrap=True, style="bold red")
    sys.exit(code)
