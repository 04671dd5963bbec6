"""Commands whose options are shown in groups, and can be read from a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from portal_extract.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])


class GroupedOption(click.Option):
    """An option that belongs to a group of the help page."""

    def __init__(self, *args: Any, group: str = "Other options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class GroupedCommand(click.Command):
    """A command that shows its options in their groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section for each group."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(param, "group", "Other options"), []).append(record)
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records)


def option(*names: str, group: str, **kwargs: Any) -> Callable[[F], F]:
    """Declare an option of a group; defaults are shown."""
    kwargs.setdefault("show_default", kwargs.get("default") is not None)
    decorate: Callable[[F], F] = click.option(*names, cls=GroupedOption, group=group, **kwargs)
    return decorate


def stack_options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Combine option decorators, the first one shown first."""

    def apply(function: F) -> F:
        for decorate in reversed(decorators):
            function = decorate(function)
        return function

    return apply


def read_config(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Take the defaults of a command from a TOML file (callback of ``--config``).

    Keys are the long option names without dashes in front; those at the top of the file are for every
    command that knows them, those in a table named like the command are for this one.
    """
    if value is None:
        return None
    path = Path(value)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"--config {path}: not a TOML file: {error}") from error
    general = {k: v for k, v in content.items() if not isinstance(v, dict)}
    own = content.get(ctx.info_name or "", {})
    known = {name.lstrip("-"): p.name for p in ctx.command.params for name in [*p.opts, *p.secondary_opts]}
    unknown = [key for key in own if key not in known]
    everywhere = _options_of_all_commands(ctx)
    unknown += [key for key in general if key not in known and key not in everywhere]
    if unknown:
        raise UsageError(
            f"--config {path}: unknown option {', '.join(unknown)}; see portal-extract {ctx.info_name} --help"
        )
    merged = {**{k: v for k, v in general.items() if k in known}, **own}
    ctx.default_map = {
        **(ctx.default_map or {}),
        **{str(known[k]): _negate(ctx.command, k, v) for k, v in merged.items()},
    }
    return value


def _negate(command: click.Command, key: str, value: Any) -> Any:
    """Turn ``no-x = true`` into the value of the flag x."""
    for param in command.params:
        if f"--{key}" in param.secondary_opts:
            return not value
    return value


def _options_of_all_commands(ctx: click.Context) -> set[str]:
    from portal_extract.cli import COMMANDS, cli

    names: set[str] = set()
    for name in COMMANDS:
        command = cli.get_command(ctx, name)
        for param in command.params if command else ():
            names |= {opt.lstrip("-") for opt in [*param.opts, *param.secondary_opts]}
    return names
