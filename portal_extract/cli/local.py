"""``portal-extract local``: a RELION project on disk."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import click

from portal_extract.cli import cluster, params
from portal_extract.cli.grouped import GroupedCommand, option, stack_options
from portal_extract.errors import UsageError

WORK = "portal_extract.cli.work"
"""What comes after the project; loaded while the images are looked at."""
INPUT = "Input (RELION's names in brackets)"

input_options = stack_options(
    option("--particles-starfile", type=click.Path(dir_okay=False), group=INPUT, help="Particles [--p]."),
    option("--tomograms-starfile", type=click.Path(dir_okay=False), group=INPUT, help="Tomograms [--t]."),
    option("--trajectories-starfile", type=click.Path(dir_okay=False), group=INPUT, help="Particle motion [--mot]."),
    option("--optimisation-set", type=click.Path(dir_okay=False), group=INPUT, help="STAR file that names the three; those given explicitly win [--i]."),
    option("--tiltseries-relative-dir", type=click.Path(file_okay=False), group=INPUT, help="Folder that relative paths in the STAR files start from.  [default: the current folder]"),
)  # fmt: skip


@click.command("local", cls=GroupedCommand)
@input_options
@params.box_options
@params.signal_options
@params.volume_options
@params.output_options
@params.run_options
@cluster.scheduler_options
@params.store_options
@option(
    "--s3-credentials",
    is_flag=True,
    group=params.RUN,
    help="Sign requests to S3 with the credentials of the environment; without, requests are anonymous.",
)
@params.talk_options
def command(**values: Any) -> None:
    """Extract particles of a RELION project on disk.

    Reads the STAR files that RELION 5 reads, with MRC or OME-Zarr images (a column tomoTiltSeriesURI names
    the latter, also on S3), and writes what RELION's Extract job would write.
    """
    options, run = params.extract_options(values), params.running_options(values)
    if values["optimisation_set"] is None and None in (
        values["particles_starfile"],
        values["tomograms_starfile"],
    ):
        raise UsageError(
            "nothing to extract: give --particles-starfile and --tomograms-starfile, or --optimisation-set"
        )
    from portal_extract.running.schedulers import open_run_reader
    from portal_extract.sources.relion import ProjectFiles, read_project

    storage: dict[str, Any] = {"anon": not values["s3_credentials"]}
    if values["s3_endpoint_url"]:
        storage["endpoint_url"] = values["s3_endpoint_url"]
    files = ProjectFiles(
        particles=values["particles_starfile"],
        tomograms=values["tomograms_starfile"],
        trajectories=values["trajectories_starfile"],
        optimisation_set=values["optimisation_set"],
        tiltseries_relative_dir=values["tiltseries_relative_dir"],
        storage=storage,
    )
    with open_run_reader(run) as reader:
        project = read_project(files, reader=reader, meanwhile=partial(import_module, WORK))
        from portal_extract.cli.work import extract_and_report

        extract_and_report(project, options, run, values, reader=reader)
