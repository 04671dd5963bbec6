"""What ``--dry-run`` and ``portal-extract plan`` print."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from portal_extract.cli.closing import fitted, skipped_lines
from portal_extract.cli.progress import human_bytes, human_seconds, show_progress
from portal_extract.extraction.forecast import Forecast, SeriesForecast, forecast

if TYPE_CHECKING:
    from portal_extract.model import Project
    from portal_extract.options import ExtractOptions, RunOptions
    from portal_extract.planning.estimate import ReadPlan


def show_dry_run(
    project: Project,
    options: ExtractOptions,
    run: RunOptions,
    *,
    as_json: bool,
    quiet: bool = False,
    output_dir: str | None = None,
    bandwidth: int | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Print what an extraction would do; only metadata is read, nothing is written.

    Parameters
    ----------
    project, options, run
        As for the extraction.
    as_json, quiet
        Print JSON; print no progress and no table.
    output_dir
        Where the results would go, if that is known.
    bandwidth
        Bytes per second, for the time that fetching takes.
    extra
        What else is to be in the JSON.

    Raises
    ------
    PortalExtractError
        As the extraction would, before it reads a pixel.
    """
    with show_progress(quiet or as_json) as observer:
        found = forecast(project, options, run, output_dir or ".", observer)
    if as_json:
        content = {"dry_run": True, "output_dir": output_dir, **found.to_dict(bandwidth), **(extra or {})}
        click.echo(json.dumps(content, indent=1))
    elif not quiet:
        for line in forecast_table(found, bandwidth):
            click.echo(line)
        click.echo()
        for line in forecast_lines(found, run, output_dir, bandwidth):
            click.echo(fitted(line))


_HEADINGS = (
    "Particles", "Images", "Chunks", "Blocks", "Requests", "Fetch", "Whole chunks", "Download", "Output", "Memory"
)  # fmt: skip
_WIDTH = 100


def forecast_table(found: Forecast, bandwidth: int | None = None) -> list[str]:
    """Tabulate the tilt series and the total; names have lines of their own where they make it too wide."""
    headings = _HEADINGS if bandwidth is None else (*_HEADINGS, "Time")
    rows: list[tuple[str, Sequence[str]]] = [
        (one.survey.name, _cells(one, bandwidth)) for one in found.series
    ]
    rows.append((f"Total: {len(found.series)} tilt series", _cells(found, bandwidth)))
    widths = [max(map(len, column)) for column in zip(headings, *(cells for _, cells in rows), strict=True)]
    longest = max(len(name) for name, _ in rows)
    in_line = longest + sum(widths) + 2 * len(widths) <= _WIDTH

    def lines(name: str, cells: Sequence[str]) -> list[str]:
        numbers = "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        if in_line:
            return [f"{name:{longest}}  {numbers}"]
        return [name, f"  {numbers}"] if name else [f"  {numbers}"]

    return [line for name, cells in [("", headings), *rows] for line in lines(name, cells)]


def _cells(one: SeriesForecast | Forecast, bandwidth: int | None) -> list[str]:
    reading = one.reading
    cost, took = ["-"] * 6, "-"
    if reading is not None:
        sizes = (reading.fetched_bytes, reading.chunk_bytes, reading.total_bytes)
        cost = [str(reading.chunks), str(reading.blocks), _about(reading, str(reading.requests))]
        cost += [_about(reading, human_bytes(n_bytes)) for n_bytes in sizes]
        took = "" if bandwidth is None else _about(reading, human_seconds(reading.seconds(bandwidth)))
    return [
        f"{one.n_extracted} of {one.n_particles}",
        str(one.n_views),
        *cost,
        human_bytes(one.bytes_written),
        human_bytes(one.memory_bytes),
        *([] if bandwidth is None else [took]),
    ]


def _about(reading: ReadPlan, text: str) -> str:
    return f"~{text}" if reading.is_estimate else text


def forecast_lines(
    found: Forecast, run: RunOptions, output_dir: str | None, bandwidth: int | None
) -> list[str]:
    """Write a forecast as text, without the table."""
    reading = found.reading
    sizes = (reading.fetched_bytes, reading.chunk_bytes, reading.total_bytes)
    fetched, chunks, everything = (_about(reading, human_bytes(n_bytes)) for n_bytes in sizes)
    requests = _about(reading, str(reading.requests))
    lines = [f"Would extract {found.n_extracted} of {found.n_particles} particles ({found.n_views} images)"]
    by_series = {one.name: {k: len(v) for k, v in one.skipped.items()} for one in found.surveys}
    lines += skipped_lines(found.skipped, by_series)
    lines += [
        f"  fetch {fetched} in {requests} requests, where whole chunks are {chunks} and a full download is "
        f"{everything}",
        f"  write {human_bytes(found.bytes_written)}" + ("" if output_dir is None else f" to {output_dir}"),
        f"  hold {human_bytes(found.memory_bytes)} in memory of the {human_bytes(run.memory_bytes)} of --memory, and "
        "the program itself",
    ]
    if bandwidth is not None:
        took = _about(reading, human_seconds(reading.seconds(bandwidth)))
        lines.append(f"  fetching takes {took} at {human_bytes(bandwidth)}/s")
    if run.cache_dir is not None:
        lines.append(f"  what {run.cache_dir} holds already is not counted")
    if reading.is_estimate:
        lines.append("  ~ is estimated from the table of one chunk of each array")
    if output_dir is not None and (Path(output_dir) / "particles.star").exists() and not run.overwrite:
        lines.append(
            f"  {output_dir} holds results: the same run is completed, another one needs --overwrite"
        )
    lines.append("Nothing was written.")
    return lines
