"""The command line: `m3dist COMMAND`. Each command is one module of m3dist/cli, loaded when called.

Exit codes: 0 done, 1 doctor found a fault, 2 bad input (one clear error, no traceback), 3 the cluster or a worker
failed, 4 the training diverged, 130 interrupted; after 3 and 130 the same command goes on where it was.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import io
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from m3dist import credentials
from m3dist.cli.pages import page
from m3dist.terminal import printable

COMMANDS = {  # name: the module in m3dist.cli whose `command` it is
    "prepare": "prepare",
    "features": "features",
    "train": "train",
    "evaluate": "evaluate",
    "recommend": "recommend",
    "export": "export",
    "report": "report",
    "reproduce": "reproduce",
    "submit": "submit",
    "jobs": "jobs",
    "doctor": "doctor",
    "tune": "tune",
    "init": "init",
    "docs": "docs",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return importlib.import_module(f"m3dist.cli.{COMMANDS[name]}").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            raise click.UsageError(error.message + (f" Did you mean {near[0]}?" if near else ""), ctx) from None


@click.group(
    cls=_Lazy,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.version_option(package_name="m3dist")
@click.pass_context
def cli(context: click.Context) -> None:
    """Train M3-InvRL for multimedia recommendation. Without a command: what to do next."""
    if context.invoked_subcommand is None:
        from m3dist.cli import next_steps

        click.echo(next_steps.shown(Path.cwd()))


_CODES = {"RunFailed": 3, "ClusterFailed": 3}  # by name: reading their modules costs a second that --help should not


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""

    def work() -> Any:
        credentials.refuse_words(sys.argv[1:] if arguments is None else arguments)  # before anything repeats them
        return cli.main(arguments, standalone_mode=False)

    sys.exit(ended(work))


def ended(work: Callable[[], Any]) -> int:
    """The exit code of `work`: what it returns, where that is a number, or that of an error, which is told.

    ValueErrors are the user's, and OSErrors the machine's: one line without a traceback, which ends with the page that
    helps. Errors that are not known here are programming errors and keep their traceback.
    """
    try:
        code = work()
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        click.echo(f"{printable(shown.getvalue().rstrip())} (help: {page(error)})", err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.exceptions.Abort):
        click.echo("interrupted; the same command goes on from here", err=True)
        return 130
    except BrokenPipeError:  # whoever read the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except FloatingPointError as error:
        return _told(error, 4)
    except MemoryError as error:
        return _told(error, 2)
    except (ValueError, OSError) as error:
        return _told(error, 2)
    except Exception as error:
        if type(error).__name__ not in _CODES:
            raise
        return _told(error, _CODES[type(error).__name__])
    return code if isinstance(code, int) else 0


def _told(error: Exception, code: int) -> int:
    click.echo(f"error: {printable(one_line(error))} (help: {page(error)})", err=True)
    return code


def one_line(error: Exception) -> str:
    """What went wrong and what helps, in one line, for the errors that a machine causes."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError):
        what = " ".join(str(error).split()) or "no more could be had"
        return f"more memory is needed than there is ({what}); ask for less, or use more memory"
    if not isinstance(error, OSError):
        return str(error)
    if "AF_UNIX path" in text:
        return (
            f"Ray's sockets need a shorter path than those in {tempfile.gettempdir()}; set TMPDIR=/tmp, or RAY_TMPDIR"
        )
    if "AWS Error" in text or "curlCode" in text:
        return f"the store cannot be reached or refuses: {text}; check the URI, its endpoint and the credentials"
    what = f"{error.filename}: {error.strerror}" if error.filename is not None and error.strerror else text
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what += "; free some space, or choose a folder on another disk"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        what += "; choose a folder that you may write to"
    return what
