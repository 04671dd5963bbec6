"""``portal-extract data-portal``: particles of the CryoET Data Portal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from portal_extract.cli import cluster, params
from portal_extract.cli.grouped import GroupedCommand, option, stack_options
from portal_extract.options import ExtractOptions

if TYPE_CHECKING:
    from portal_extract.sources.portal.build import PortalResolution

SELECT, CHOOSE, ASSUME, CONNECT = (
    "What (values separated by commas, or options repeated)",
    "Which picks count",
    "What the portal does not say",
    "Connection",
)


def _many(*names: str, help: str) -> Any:
    return option(*names, type=params.Listed(), multiple=True, group=SELECT, help=help, default=())


filter_options = stack_options(
    _many("--run-ids", "--run-id", help="Runs."),
    _many("--run-names", "--run-name", help="Runs by their authors' names."),
    _many("--annotation-names", "--annotation-name", help="Names of objects, such as 'cytosolic ribosome'."),
    _many("--annotation-ids", "--annotation-id", help="Annotations."),
    _many("--object-ids", "--object-id", help="Objects by GO or UniProtKB id."),
    _many("--dataset-ids", "--dataset-id", help="Data sets."),
    _many("--dataset-names", "--dataset-name", help="Data sets by title."),
    _many("--deposition-ids", "--deposition-id", help="Depositions of the annotations."),
    _many("--deposition-names", "--deposition-name", help="Depositions by title."),
    _many("--organism-names", "--organism-name", help="Organisms of the data sets."),
    _many("--tilt-series-ids", "--tilt-series-id", help="Tilt series."),
    _many("--alignment-ids", "--alignment-id", help="Alignments; settles which one where several are possible."),
    _many("--tomogram-ids", "--tomogram-id", help="Tomograms; settles which one where several are possible."),
    _many("--tomogram-names", "--tomogram-name", help="Tomograms by name."),
    option("--inexact-match", is_flag=True, group=CHOOSE, help="Names match as a part, upper or lower case."),
    option("--ground-truth", is_flag=True, group=CHOOSE, help="Only annotations that their authors endorse as ground truth."),
    option("--automated-only", is_flag=True, group=CHOOSE, help="Only annotations made by an automated method."),
    option("--no-orientations", is_flag=True, group=CHOOSE, help="Leave orientations out: all angles are 0."),
)  # fmt: skip

assumption_options = stack_options(
    option("--handedness", type=float, default=-1.0, group=ASSUME, help="Sign of the depth in the defocus, -1 or 1."),
    option("--amplitude-contrast", type=float, default=0.07, group=ASSUME, help="Amplitude contrast of all tilt series, from 0 to 1."),
    option("--pixel-size", type=float, group=ASSUME, help="Pixel size of the tilt images in A.  [default: the portal's]"),
    option("--on-missing-ctf", type=click.Choice(["error", "skip", "no-ctf"]), default="error", group=ASSUME, help="error: leave the tilt series out; skip: leave out its tilt images without CTF; no-ctf: keep them, for --no-ctf."),
    option("--allow-aligned", is_flag=True, group=ASSUME, help="Take tilt series that are stored already aligned."),
)  # fmt: skip

connection_options = stack_options(
    option("--portal-url", envvar="CRYOET_PORTAL_URL", group=CONNECT, help="GraphQL API; also environment CRYOET_PORTAL_URL.  [default: the real portal]"),
)  # fmt: skip


@click.command("data-portal", cls=GroupedCommand)
@filter_options
@params.box_options
@params.signal_options
@params.volume_options
@params.output_options
@params.run_options
@cluster.scheduler_options
@params.store_options
@assumption_options
@connection_options
@params.talk_options
def command(**values: Any) -> None:
    """Extract particles of the CryoET Data Portal.

    Asks the portal for runs, tilt series, alignments, CTF and picks, shows what will be extracted and what not
    and why, and streams only the pixels that some particle needs.

    Example: portal-extract data-portal --run-id 16463 --annotation-names ribosome --inexact-match
    --box-size 64 --output-dir ribosomes
    """
    options, run = params.extract_options(values), params.running_options(values)
    resolution = resolve(values, options)
    from portal_extract.cli.work import extract_and_report

    assumptions = {
        "sentences": list(resolution.report.assumptions),
        **resolution.assumptions.to_dict(),
    }
    extract_and_report(
        resolution.project, options, run, values, assumptions, extra={"portal": resolution.to_dict()}
    )


def resolve(values: dict[str, Any], options: ExtractOptions | None) -> PortalResolution:
    """Resolve the filters of a command and print the table of what was found.

    Raises
    ------
    PortalExtractError
        Nothing can be extracted; the table is printed all the same.
    """
    from portal_extract.cli.eligible import show_report
    from portal_extract.cli.progress_json import show_progress_as
    from portal_extract.errors import IneligibleError
    from portal_extract.sources.portal.build import resolve_portal
    from portal_extract.sources.portal.settings import PortalAssumptions, PortalConnection

    assumptions = PortalAssumptions(
        handedness=values["handedness"],
        amplitude_contrast=values["amplitude_contrast"],
        pixel_size_angst=values["pixel_size"],
        on_missing_ctf=values["on_missing_ctf"],
        allow_aligned=values["allow_aligned"],
    )
    if options is not None:
        assumptions.check_ctf(options.ctf)
    connection = PortalConnection.from_environment(
        portal_url=values["portal_url"],
        s3_endpoint_url=values["s3_endpoint_url"],
        requests_in_flight=values.get("requests", 32),
    )
    quiet = values["quiet"] or values["as_json"] or values.get("json_progress", False)
    try:
        with show_progress_as(values) as observer:
            resolution = resolve_portal(filters_from(values), assumptions, connection, observer)
    except IneligibleError as error:
        if error.report is not None:
            show_report(error.report, as_json=values["as_json"], quiet=quiet)
        raise
    if not quiet:
        show_report(resolution.report, as_json=False, quiet=False)
    return resolution


def filters_from(values: dict[str, Any]) -> Any:
    """Build the filters of the portal from parsed values."""
    from portal_extract.sources.portal.filters import OPTIONS, PortalFilters

    numbers = {name for name in OPTIONS if name.endswith("_ids") and name != "object_ids"}
    selected = {
        name: params.listed(values[name], int if name in numbers else str, option)
        for name, option in OPTIONS.items()
    }
    switches = {
        name: values[name] for name in ("inexact_match", "ground_truth", "automated_only", "no_orientations")
    }
    chosen: dict[str, Any] = {**selected, **switches}
    return PortalFilters(**chosen)
