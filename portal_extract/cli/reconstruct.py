"""``portal-extract reconstruct``: averages, straight from tilt images, of a RELION project or of the portal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from portal_extract.cli import cluster, local, params, portal
from portal_extract.cli.grouped import F, GroupedCommand, option, stack_options
from portal_extract.errors import UsageError
from portal_extract.reconstruction.options import ReconstructOptions

BOX, SYMMETRY, SIGNAL, HALVES = (
    "Maps and particles (RELION's names in brackets)",
    "Symmetry",
    "Signal",
    "Half sets and resolution",
)


def _box_size(required: bool) -> Callable[[F], F]:
    text = "Box of each particle and of the maps in binned pixels, even [--b]."
    more = "" if required else "  [default with --from-stacks: that of the stacks]"
    return option("--box-size", type=int, required=required, group=BOX, help=text + more)


map_options = stack_options(
    option("--crop-size", type=int, group=BOX, help="Size of the final maps in binned pixels, even [--crop].  [default: the box]"),
    option("--bin", "binning", type=float, default=1.0, group=BOX, help="Binning, any real number from 1 [--bin]."),
    option("--max-dose", type=float, group=BOX, help="Leave out tilt images with more accumulated dose, e/A^2.  [default: no limit]"),
    option("--visible-frames", type=click.Choice(["geometric", "stored"]), default="geometric", group=BOX, help="Tilt images that see a particle by geometry, as RELION does, or of these only those of rlnTomoVisibleFrames."),
    option("--sym", "symmetry", default="C1", group=SYMMETRY, help="Point group (C1, D7, T, O, I1 ..., also with h, v, d), or a symmetry file [--sym]."),
    option("--helical-nr-asu", type=int, default=1, group=SYMMETRY, help="Asymmetric units of a helix along z [--nr_helical_asu]."),
    option("--helical-rise", type=float, default=0.0, group=SYMMETRY, help="Rise of the helix, A [--helical_rise]."),
    option("--helical-twist", type=float, default=0.0, group=SYMMETRY, help="Twist of the helix, degrees [--helical_twist]."),
    option("--snr", type=float, default=-1.0, group=SIGNAL, help="Signal-to-noise ratio of the Wiener filter; a heuristic if not positive [--SNR]."),
    option("--ctf/--no-ctf", default=True, group=SIGNAL, help="Weight by CTF and dose, or by neither [--no_ctf]."),
    option("--whiten", is_flag=True, group=SIGNAL, help="Divide by the noise amplitude of each tilt image [--whiten]."),
    option("--circle-crop/--no-circle-crop", default=True, group=SIGNAL, help="Soft circular mask, background subtracted, on each unbinned box [--no_circle_crop]."),
    option("--taper", type=float, default=10.0, group=SIGNAL, help="Soft edge of the final maps in binned pixels [--taper]."),
    option("--cutoff-fract", type=float, default=0.01, group=SIGNAL, help="Leave out samples with a smaller dose weight [--cutoff_fract]."),
    option("--make-subsets", is_flag=True, group=HALVES, help="Draw half sets where rlnRandomSubset is absent; they are in the particles.star of the output."),
    option("--replace-subsets", is_flag=True, group=HALVES, help="With --make-subsets: also where it is there."),
    option("--seed", type=int, default=0, group=HALVES, help="Of the half sets that are drawn."),
    option("--mask", type=click.Path(dir_okay=False), group=HALVES, help="Mask for the FSC: MRC file with values from 0 to 1.  [default: a soft sphere]"),
)  # fmt: skip

output_options = stack_options(
    option("--output-dir", "-o", type=click.Path(file_okay=False), required=True, group=params.OUTPUT, help="Folder for the maps [--o]."),
    option("--paths", type=click.Choice(["auto", "absolute", "relative"]), default="auto", group=params.OUTPUT, help="How STAR files name files; auto is relative when the output lies below the current folder."),
    option("--resume/--overwrite", "resume", default=True, group=params.OUTPUT, help="Go on with an interrupted run in the folder [--only_do_unfinished], or remove its results and start anew."),
    option("--checkpoint-seconds", type=click.FloatRange(0), default=30.0, group=params.OUTPUT, help="Put the sums on disk after a tilt series if so much time has passed."),
    option("--dry-run", is_flag=True, group=params.OUTPUT, help="Say what would be done; read no pixel and write nothing."),
)  # fmt: skip

how_options = stack_options(params.run_options, cluster.scheduler_options, params.store_options)


def reconstruct_options(values: dict[str, Any]) -> ReconstructOptions:
    """Build the options of a reconstruction from parsed values; they are checked when the source is known."""
    if values["replace_subsets"] and not values["make_subsets"]:
        raise UsageError("--replace-subsets goes with --make-subsets: add it, or drop both")
    return ReconstructOptions(
        box_size=values["box_size"] or 0,
        crop_size=values["crop_size"],
        binning=values["binning"],
        symmetry=values["symmetry"],
        helical_units=values["helical_nr_asu"],
        helical_rise_angst=values["helical_rise"],
        helical_twist_deg=values["helical_twist"],
        snr=values["snr"],
        ctf=values["ctf"],
        whiten=values["whiten"],
        circle_crop=values["circle_crop"],
        taper_px=values["taper"],
        cutoff_fraction=values["cutoff_fract"],
        max_dose_e_per_a2=values["max_dose"],
        visible_frames=values["visible_frames"],
        make_subsets=values["make_subsets"],
        seed=values["seed"],
    )


@click.command("local", cls=GroupedCommand)
@local.input_options
@option(
    "--from-stacks",
    is_flag=True,
    group=local.INPUT,
    help="Take the 2D stacks of an extraction (rlnImageName) instead of tilt images.",
)
@_box_size(required=False)
@map_options
@output_options
@how_options
@option(
    "--s3-credentials",
    is_flag=True,
    group=params.RUN,
    help="Sign requests to S3 with the credentials of the environment; without, requests are anonymous.",
)
@params.talk_options
def local_command(**values: Any) -> None:
    """Average the particles of a RELION project on disk.

    Reads the STAR files that RELION 5 reads and the tilt images they name, and writes what RELION's
    Reconstruct particle job writes, with the FSC between the half maps and pictures in report/.
    """
    options = reconstruct_options(values)
    if values["optimisation_set"] is None and None in (
        values["particles_starfile"],
        values["tomograms_starfile"],
    ):
        raise UsageError(
            "nothing to average: give --particles-starfile and --tomograms-starfile, or --optimisation-set"
        )
    from_stacks = values["from_stacks"]
    if not from_stacks:
        if values["box_size"] is None:
            raise UsageError("--box-size is missing: give the box in binned pixels, or --from-stacks")
        options.check()
    elif (
        click.get_current_context().get_parameter_source("visible_frames")
        is not (click.core.ParameterSource.DEFAULT)
        and values["visible_frames"] == "geometric"
    ):
        raise UsageError("--visible-frames geometric: stacks hold the stored ones only; leave it out")
    from portal_extract.cli.reconstruct_work import reconstruct_and_report, run_of
    from portal_extract.reconstruction.stacks import no_images
    from portal_extract.running.schedulers import open_run_reader
    from portal_extract.sources.relion import ProjectFiles, read_project

    storage: dict[str, Any] = {"anon": not values["s3_credentials"]}
    if values["s3_endpoint_url"]:
        storage["endpoint_url"] = values["s3_endpoint_url"]
    files = ProjectFiles(
        particles=values["particles_starfile"],
        tomograms=values["tomograms_starfile"],
        trajectories=None if from_stacks else values["trajectories_starfile"],
        optimisation_set=values["optimisation_set"],
        tiltseries_relative_dir=values["tiltseries_relative_dir"],
        storage=storage,
    )
    with open_run_reader(run_of(values)) as reader:
        project = read_project(files, no_images if from_stacks else None, reader)
        reconstruct_and_report(project, options, values, from_stacks=from_stacks, reader=reader)


@click.command("data-portal", cls=GroupedCommand)
@portal.filter_options
@_box_size(required=True)
@map_options
@output_options
@how_options
@portal.assumption_options
@portal.connection_options
@params.talk_options
def portal_command(**values: Any) -> None:
    """Average particles of the CryoET Data Portal, streaming only the pixels that some particle needs.

    Example: portal-extract reconstruct data-portal --run-id 16463 --annotation-names ribosome
    --inexact-match --box-size 64 --bin 4 --make-subsets --output-dir average
    """
    options = reconstruct_options(values)
    options.check()
    from portal_extract.cli.reconstruct_work import reconstruct_and_report
    from portal_extract.reconstruction.parts import extraction_options

    resolution = portal.resolve(values, extraction_options(options))
    assumptions = {"sentences": list(resolution.report.assumptions), **resolution.assumptions.to_dict()}
    reconstruct_and_report(
        resolution.project, options, values, assumptions=assumptions, extra={"portal": resolution.to_dict()}
    )


command = click.Group(
    "reconstruct",
    commands=[portal_command, local_command],
    help="Average particles to half maps, straight from the tilt images: no particle is written to disk.",
)
