"""Options from a TOML file: what ``--config`` does."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from portal_extract.errors import UnsupportedError, UsageError

#: options that make no sense in a file
_COMMAND_LINE_ONLY = {"config", "debug", "help"}
CLUSTER_TABLE = "portal_extract.cluster"
"""Where the context keeps the table ``[cluster]``: settings of a batch system, of no command."""


def read_config(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Take the defaults of a command from a TOML file (callback of ``--config``).

    Keys are the long option names without dashes in front; those at the top of the file are for every
    command that knows them, those in a table named like the command are for this one. The command line
    wins over the environment, the environment over the file, and a table over the top.

    Raises
    ------
    UsageError
        The file cannot be read, or names options that do not exist or values that they do not take; all of
        them in one message.
    """
    if value is None:
        return None
    path = Path(value)
    content = _read(path)
    if isinstance(content.get("cluster"), dict):
        ctx.meta[CLUSTER_TABLE] = content.pop("cluster")
    known = {name: p for p in ctx.command.params for name in _long_names(p)}
    tables = _tables(ctx)
    problems = list(_unknown(content, tables, known))
    chosen: dict[str, Any] = {}
    for scope in _scopes(content, tables):
        keys: dict[str, str] = {}
        for key, given in scope.items():
            if key not in known:
                continue
            name = str(known[key].name)
            if name in keys:
                problems.append(f"{keys[name]!r} and {key!r} are the same option: keep one of them")
            keys[name] = key
            try:
                chosen[name] = _checked(ctx, known[key], key, given)
            except click.BadParameter as error:
                problems.append(f"{key} = {_shown(given)}: {error.message.rstrip('.')}")
    if problems:
        raise UnsupportedError([f"--config {path}: {problem}" for problem in problems])
    ctx.default_map = {**(ctx.default_map or {}), **chosen}
    return value


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}; check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: not a TOML file: {error}") from error


def _tables(ctx: click.Context) -> list[str]:
    """Tables that count for a command, the last one most: ``plan`` and ``local`` for ``plan local``."""
    names: list[str] = []
    here: click.Context | None = ctx
    while here is not None and here.parent is not None:
        names.insert(0, here.info_name or "")
        here = here.parent
    return names


def _scopes(content: Mapping[str, Any], tables: list[str]) -> Iterator[dict[str, Any]]:
    """Keys and values that count for a command: the top of the file, then tables, the last one most."""
    yield {key: value for key, value in content.items() if not isinstance(value, dict)}
    for name in tables:
        table = content.get(name)
        if isinstance(table, dict):
            yield table


def _unknown(
    content: Mapping[str, Any], tables: list[str], known: Mapping[str, click.Parameter]
) -> Iterator[str]:
    """Say which keys and tables of a file mean nothing."""
    everywhere: dict[str, set[str]] | None = None
    for key, value in content.items():
        if key in known and not isinstance(value, dict):
            continue
        everywhere = everywhere or options_of_all_commands()
        if isinstance(value, dict):
            if key not in everywhere:
                yield f"no command is named {key!r}{_meant(key, everywhere)}"
                continue
            mine = everywhere[key] | set(known) if key in tables else everywhere[key]
            yield from (f"[{key}] has no option {_no_option(k, mine)}" for k in value if k not in mine)
        elif not any(key in options for options in everywhere.values()):
            yield f"there is no option {_no_option(key, set().union(*everywhere.values()))}"


def _no_option(key: str, options: set[str]) -> str:
    if key in _COMMAND_LINE_ONLY:
        return f"{key!r} in a file: give it on the command line"
    return f"{key!r}{_meant(key, options)}"


def _meant(key: str, options: Any) -> str:
    close = difflib.get_close_matches(key.replace("_", "-"), options, n=1)
    return f"; did you mean {close[0]!r}?" if close else "; see --help"


def _checked(ctx: click.Context, param: click.Parameter, key: str, value: Any) -> Any:
    """Turn a value of the file into one that click takes as a default.

    Raises
    ------
    click.BadParameter
        The option does not take such a value.
    """
    is_flag = isinstance(param, click.Option) and param.is_flag
    if is_flag != isinstance(value, bool):
        raise click.BadParameter("this option is true or false" if is_flag else "this option takes a value")
    if is_flag:
        # "no-x = true" is the flag x, negated
        return not value if f"--{key}" in param.secondary_opts else value
    if param.multiple:
        value = value if isinstance(value, list) else [value]
    elif isinstance(value, list):
        raise click.BadParameter("this option takes one value")
    if any(isinstance(one, (dict, list, bool)) for one in (value if isinstance(value, list) else ())):
        raise click.BadParameter("write a list of plain values")
    param.type_cast_value(ctx, value)
    return value


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _long_names(param: click.Parameter) -> list[str]:
    names = [name for name in [*param.opts, *param.secondary_opts] if name.startswith("--")]
    return [name[2:] for name in names if name[2:] not in _COMMAND_LINE_ONLY]


def options_of_all_commands() -> dict[str, set[str]]:
    """Long names of the options of every command; a group has those of its commands."""
    from portal_extract.cli import cli

    context = click.Context(cli)
    return {name: _options_of(cli.get_command(context, name)) for name in cli.list_commands(context)}


def _options_of(command: click.Command | None) -> set[str]:
    if command is None:
        return set()
    names = {name for param in command.params for name in _long_names(param)}
    if isinstance(command, click.Group):
        names = names.union(*(_options_of(one) for one in command.commands.values()))
    return names
