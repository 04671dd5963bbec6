"""``portal-extract plan``: what an extraction would read and write, and how long fetching takes."""

from __future__ import annotations

import copy
from typing import Any

import click

from portal_extract.cli import cluster, local, params, portal
from portal_extract.cli.grouped import GroupedCommand, GroupedOption

#: options of extraction that a plan does not have
_NOT_PLANNED = {"dry_run": True, "overwrite": False, "paths": "auto", **cluster.DEFAULTS}

HELP = """What `portal-extract {name}` with the same options would do, without reading a pixel.

Prints for each tilt series and in total: particles, images, chunks and blocks, requests, bytes to fetch
against whole chunks and a full download, size of the results, memory, and the time at a bandwidth. Sizes of
chunks that are not known yet are estimated and marked with ~.
"""


def planned(command: click.Command) -> click.Command:
    """Make the planning command of an extracting command: the same options, nothing written."""
    name, extract = str(command.name), command.callback
    assert extract is not None

    def callback(**values: Any) -> Any:
        return extract(**_NOT_PLANNED, **values)

    options = [copy.copy(p) for p in command.params if p.name not in _NOT_PLANNED]
    for one in options:
        if one.name == "output_dir":
            one.required = False
    bandwidth = GroupedOption(
        ["--bandwidth"],
        type=params.ByteSize(),
        metavar="SIZE",
        group=params.RUN,
        help="Also tell the time that fetching takes at this bandwidth, bytes/s, such as 100MB.",
    )
    return GroupedCommand(name, params=[*options, bandwidth], callback=callback, help=HELP.format(name=name))


command = click.Group(
    "plan",
    commands=[planned(portal.command), planned(local.command)],
    help="Say what an extraction would fetch, write and need; read no pixel.",
)
