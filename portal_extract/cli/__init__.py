"""Command line: parse, call, report. No science, and nothing heavy is imported before it is needed."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from portal_extract._version import __version__
from portal_extract.cli.signals import AGAIN, Ended, end_on_signals, exit_code
from portal_extract.errors import PortalExtractError

EXIT_REFUSED = 2

# name: (module, one line of help); modules are imported when their command is called
COMMANDS = {
    "data-portal": ("portal", "Extract particles of the CryoET Data Portal, streaming only what is needed."),
    "local": ("local", "Extract particles of a RELION project on disk."),
    "reconstruct": ("reconstruct", "Average particles to half maps, straight from the tilt images."),
    "resolve": ("resolve", "Write the STAR files of a portal selection, without pixels."),
    "plan": ("plan", "Say what an extraction would fetch, write and need; read no pixel."),
    "options": ("options_table", "Show where each option of RELION's extraction is."),
    "demo": ("demo", "Simulate a small data set, serve it as a portal, and extract from it."),
}


class LazyGroup(click.Group):
    """A group that imports the module of a command when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands, in order of importance."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"portal_extract.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Ended from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="portal-extract")
def cli() -> None:
    """RELION-ready particles and averages, streamed from the CryoET Data Portal.

    Name a run and a protein; what RELION's Extract job would have written after a download of everything
    appears in the output folder, and only the pixels that some particle needs are fetched.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    The exit code is 0 when all is done, 2 after an error that is told in one sentence, 3 when something failed
    and was skipped as asked, and 130 or 143 after Control-C or SIGTERM.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    # the imports of a command make many objects that live as long as the process; collecting them takes longer
    # than importing them
    gc.disable()
    # and at the end all objects go with the process: to look for garbage among them takes longer than its end
    atexit.register(gc.freeze)
    # the program has its own threads; those of linear algebra libraries would only get in their way
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    try:
        with end_on_signals():
            status = cli.main(args=list(arguments), prog_name="portal-extract", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except PortalExtractError as error:
        if "--debug" in arguments:
            raise
        _end(arguments, "error", str(error), EXIT_REFUSED)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(EXIT_REFUSED)
    except click.UsageError as error:
        _end(arguments, "error", _usage(error), EXIT_REFUSED)
    except click.ClickException as error:
        _end(arguments, "error", error.format_message(), EXIT_REFUSED)
    except (Ended, click.Abort) as error:
        _end(arguments, "interrupted", f"interrupted; {AGAIN}", exit_code(error))
    finally:
        gc.enable()


def _end(arguments: Sequence[str], event: str, message: str, code: int) -> NoReturn:
    if "--json-progress" in arguments:
        from portal_extract.cli.progress_json import write_line

        write_line(sys.stderr, event, {"message": message, "exit_code": code})
    else:
        click.echo(f"portal-extract: {message}", err=True)
    sys.exit(code)


def _usage(error: click.UsageError) -> str:
    """Make one sentence of what is wrong with the arguments, and where help is."""
    message = error.format_message().rstrip(".")
    command = error.ctx.command_path if error.ctx is not None else "portal-extract"
    return f"{message[:1].lower()}{message[1:]}; see {command} --help"
