"""``portal-extract resolve``: the STAR files of a portal selection, without pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from portal_extract.cli import params, portal
from portal_extract.cli.grouped import GroupedCommand, option


@click.command("resolve", cls=GroupedCommand)
@portal.filter_options
@option(
    "--output-dir",
    "-o",
    type=click.Path(file_okay=False),
    group=params.OUTPUT,
    help="Folder for the STAR files.  [default: only show what is found]",
)
@option(
    "--paths",
    type=click.Choice(["auto", "absolute", "relative"]),
    default="auto",
    group=params.OUTPUT,
    help="How STAR files name files.",
)
@option("--overwrite", is_flag=True, group=params.OUTPUT, help="Replace STAR files that are there.")
@params.store_options
@portal.assumption_options
@portal.connection_options
@params.talk_options
def command(**values: Any) -> None:
    """Find particles on the portal and write their STAR files, reading no pixel.

    ``portal-extract local`` on these files extracts the same particles, byte for byte.
    """
    resolution = portal.resolve(values, None)
    if values["as_json"]:
        click.echo(json.dumps(resolution.to_dict(), indent=1))
    if values["output_dir"] is None:
        return
    from portal_extract.errors import OutputError
    from portal_extract.relion_io.paths import output_prefix
    from portal_extract.relion_io.project_star import OPTIMISATION_SET_FILE, write_project_tables

    out = Path(values["output_dir"])
    target = out / OPTIMISATION_SET_FILE
    if target.exists() and not values["overwrite"]:
        raise OutputError(f"{target} exists; choose another --output-dir or use --overwrite")
    write_project_tables(out, resolution.project.tables, output_prefix(out, values["paths"]))
    if not values["quiet"] and not values["as_json"]:
        click.echo(f"Wrote {target}; next:")
        click.echo(f"  portal-extract local --optimisation-set {target} --box-size ... --output-dir ...")
