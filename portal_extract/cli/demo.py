"""``portal-extract demo``: everything in one go, without a network."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from portal_extract.cli import params
from portal_extract.cli.grouped import GroupedCommand, option

_OUT = "What to make"


@click.command("demo", cls=GroupedCommand)
@option(
    "--output-dir",
    "-o",
    type=click.Path(file_okay=False),
    default="demo-output",
    group=_OUT,
    help="Folder for data set, results and picture.",
)
@option(
    "--serve",
    is_flag=True,
    group=_OUT,
    help="Stay up afterwards and tell how to point any client at the portal.",
)
@params.talk_options
def command(**values: Any) -> None:
    """Simulate a small data set, serve it as a portal, and extract from it as a user would.

    The data set is a few tilt series of simulated particles, in the layout of the CryoET Data Portal: OME-Zarr
    and MRC images, alignments, CTF, picks. Its API and object store are served on this machine alone.
    """
    from portal_extract.cli.progress import human_bytes, show_progress
    from portal_extract.demo.run import demo_portal, demo_preview, serve_until_stopped

    folder, quiet = Path(values["output_dir"]), values["quiet"] or values["as_json"]

    def say(text: str) -> None:
        if not quiet:
            click.echo(text)

    say("1. Simulating a data set (a few seconds; kept for the next time)")
    with (
        show_progress(quiet) as observer,
        demo_portal(folder / "portal", None, observer) as (dataset, portal),
    ):
        say(f"   it is served at {portal.portal_url} (API) and {portal.s3_endpoint_url} (S3)")
        arguments = _arguments(portal.portal_url, portal.s3_endpoint_url, folder / "extracted")
        say(f"\n2. portal-extract {shlex.join(arguments)}")
        portal.clear()
        _run(arguments, values)
        counts = portal.counts()
        say(
            f"   the portal saw {counts['api_requests']} API requests and {counts['object_requests']} of objects, "
            f"{human_bytes(counts['object_bytes'])}"
        )
        say("\n3. Averaging the particles and drawing a picture")
        picture = folder / "preview.png"
        demo_preview(dataset, folder / "extracted", picture)
        say(f"   {picture}: a tilt image with boxes, some particles, their average beside the truth")
        if values["serve"]:
            serve_until_stopped(portal, click.echo)


def _arguments(portal_url: str, s3_endpoint_url: str, output_dir: Path) -> list[str]:
    return [
        *("data-portal", "--dataset-ids", "10731", "--annotation-names", "ribosome", "--inexact-match"),
        *("--ground-truth", "--box-size", "48", "--bin", "2", "--output-dir", str(output_dir), "--overwrite"),
        *("--portal-url", portal_url, "--s3-endpoint-url", s3_endpoint_url),
    ]


def _run(arguments: list[str], values: dict[str, Any]) -> None:
    """Run a command as a user would, with the demo's own ways of talking."""
    from portal_extract.cli import cli

    talk = [flag for flag, name in (("--quiet", "quiet"), ("--json", "as_json")) if values[name]]
    cli.main(args=[*arguments, *talk], prog_name="portal-extract", standalone_mode=False)
