"""The command line: `m3dist COMMAND`. Each command is one module of m3dist/cli, loaded when called.

Exit codes: 0 done, 1 workers failed, 2 bad input (one clear error, no traceback), 130 interrupted (resumable).
"""

from __future__ import annotations

import importlib
import sys

import click

COMMANDS = {  # name: the module in m3dist.cli whose `command` it is
    "prepare": "prepare",
    "train": "train",
    "evaluate": "evaluate",
    "recommend": "recommend",
    "reproduce": "reproduce",
    "submit": "submit",
    "jobs": "jobs",
    "doctor": "doctor",
    "tune": "tune",
    "init": "init",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return importlib.import_module(f"m3dist.cli.{COMMANDS[name]}").command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="m3dist")
def cli() -> None:
    """Train M3-InvRL for multimedia recommendation."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; ValueErrors are the user's and end with exit code 2, without a traceback."""
    try:
        code = cli.main(arguments, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.exceptions.Abort):
        click.echo("interrupted; the same command goes on from here", err=True)
        code = 130
    except ValueError as error:
        click.echo(f"error: {error}", err=True)
        code = 2
    except Exception as error:
        if type(error).__name__ != "RunFailed":  # by name: reading its module costs a second that --help should not
            raise
        click.echo(f"error: {error}", err=True)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)
