"""What the averaging commands have in common once they have a project."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from portal_extract.cli.closing import fitted
from portal_extract.cli.cluster import chosen_scheduler
from portal_extract.cli.params import running_options
from portal_extract.cli.progress import human_bytes
from portal_extract.cli.progress_json import show_progress_as, write_line
from portal_extract.cli.work import EXIT_SKIPPED, settle_memory
from portal_extract.model import Project
from portal_extract.options import RunOptions
from portal_extract.reconstruction.forecast import ReconstructForecast, forecast_reconstruction
from portal_extract.reconstruction.job import reconstruct
from portal_extract.reconstruction.options import ReconstructOptions
from portal_extract.reconstruction.summary import ReconstructSummary
from portal_extract.running.clients import open_client
from portal_extract.running.memory import keep_freed_memory

if TYPE_CHECKING:
    from portal_extract.images.reader import Reader
    from portal_extract.planning.estimate import ReadPlan


def run_of(values: Mapping[str, Any]) -> RunOptions:
    """Build the options of the run; sums of an earlier one are used unless that is not wanted."""
    return running_options({**values, "overwrite": not values["resume"]})


def reconstruct_and_report(
    project: Project,
    options: ReconstructOptions,
    values: Mapping[str, Any],
    *,
    from_stacks: bool = False,
    assumptions: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    reader: Reader | None = None,
) -> ReconstructSummary | None:
    """Average with progress and print the summary; or, with ``--dry-run``, print the plan.

    Raises
    ------
    click.exceptions.Exit
        With code 3, after the summary, where something failed and was skipped.
    """
    settle_memory()
    keep_freed_memory()
    run = run_of(values)
    source: dict[str, Any] = {"from_stacks": from_stacks, "replace_subsets": values["replace_subsets"]}
    if values["dry_run"]:
        with show_progress_as(values) as observer:
            found = forecast_reconstruction(project, options, run, observer, **source)
        if values["as_json"]:
            click.echo(json.dumps({"dry_run": True, **found.to_dict(), **(extra or {})}, indent=1))
        elif not values["quiet"]:
            _echo(forecast_lines(found))
        return None
    scheduler = chosen_scheduler(values)
    with show_progress_as(values) as observer, open_client(scheduler, observer) as client:
        summary = reconstruct(
            project,
            options,
            values["output_dir"],
            run,
            observer,
            **source,
            mask=values["mask"],
            client=client,
            reader=reader,
            checkpoint_seconds=values["checkpoint_seconds"],
            assumptions=assumptions,
            extra=extra,
        )
    if values["json_progress"]:
        write_line(sys.stderr, "finished", {"summary": summary.to_dict()})
    if values["as_json"]:
        click.echo(json.dumps({**summary.to_dict(), **(extra or {})}, indent=1))
    elif not values["quiet"]:
        _echo(summary_lines(summary))
    if summary.failures:
        raise click.exceptions.Exit(EXIT_SKIPPED)
    return summary


def _echo(lines: list[str]) -> None:
    for line in lines:
        click.echo(fitted(line))


def summary_lines(summary: ReconstructSummary) -> list[str]:
    """Write the summary of a reconstruction as text."""
    seconds = max(summary.seconds, 1e-9)
    halves = " and ".join(str(half.n_particles) for half in summary.half_sets)
    divided = f" in half sets of {halves}" if len(summary.half_sets) > 1 else ", not divided into half sets"
    lines = [
        f"Averaged {summary.n_averaged} of {summary.n_particles} particles ({summary.n_views} images)"
        f"{divided}, in {summary.seconds:.1f} s, {summary.n_averaged / seconds:.1f} particles/s"
    ]
    lines += [f"  left out {count}: {reason}" for reason, count in summary.skipped.items()]
    lines += [f"  failed: {f.name}, {f.n_particles} particles: {f.cause}" for f in summary.failures]
    if summary.left_out:
        lines.append(
            f"  images with values that are not finite left out of {len(summary.left_out)} particles"
        )
    lines.append(f"  tilt images that count: {_frames(summary.visible_frames)}")
    if summary.resolution is not None:
        found = summary.resolution
        lines.append(
            f"  resolution {_angstrom(found.at_0143)} (FSC 0.143), {_angstrom(found.at_05)} (FSC 0.5) with "
            f"{found.mask} as mask, {_angstrom(found.unmasked_at_0143)} (FSC 0.143) without; "
            f"pixel size {summary.pixel_size_angst:g} A"
        )
    lines += [
        f"  read {human_bytes(summary.bytes_read)} in {summary.n_requests} requests, "
        f"wrote {human_bytes(summary.bytes_written)}, peak memory {human_bytes(summary.peak_memory_bytes)}",
        *(f"  assumed: {sentence}" for sentence in summary.assumptions.get("sentences", ())),
        f"  {summary.output_dir}/merged.mrc is the map, {summary.output_dir}/report/ has pictures"
        + (" and the FSC" if summary.resolution is not None else ""),
    ]
    if len(summary.half_sets) > 1:
        lines += [
            f"  {summary.output_dir}/optimisation_set.star names everything; next, for example:",
            f"  relion_postprocess --i {summary.output_dir}/half1.mrc --mask ... --o PostProcess/run",
        ]
    return lines


def _frames(visible_frames: str) -> str:
    if visible_frames == "stored":
        return "those that rlnTomoVisibleFrames names and that see the particle"
    return "all that see the particle, whatever rlnTomoVisibleFrames says (as RELION does)"


def _angstrom(value: float) -> str:
    return f"{value:.1f} A" if math.isfinite(value) else "not reached"


def forecast_lines(found: ReconstructForecast) -> list[str]:
    """Write a forecast as text."""
    halves = " and ".join(str(half.n_particles) for half in found.half_sets)
    divided = f"half sets of {halves}" if len(found.half_sets) > 1 else "no half sets"
    n_averaged = sum(half.n_particles for half in found.half_sets)
    lines = [
        f"Would average {n_averaged} of {found.n_particles} particles ({found.n_views} images): {divided}",
        *(f"  left out {count}: {reason}" for reason, count in found.skipped.items()),
    ]
    if found.reading is not None:
        lines.append(f"  read {_reading(found.reading)}")
    lines += [
        f"  write {human_bytes(found.bytes_written)}: {', '.join(found.maps)}",
        f"  {human_bytes(found.memory_bytes)} of working memory, {found.batch_views} images at a time",
        "Nothing was written.",
    ]
    return lines


def _reading(plan: ReadPlan) -> str:
    return str(plan)
