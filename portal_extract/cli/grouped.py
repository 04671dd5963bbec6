"""Commands whose options are shown in groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

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
