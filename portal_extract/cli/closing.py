"""What a user reads at the end."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Mapping
from typing import Any

import click

from portal_extract.cli.progress import human_bytes
from portal_extract.extraction.summary import ExtractionSummary
from portal_extract.relion_io.project_star import OPTIMISATION_SET_FILE


def show_summary(
    summary: ExtractionSummary, *, as_json: bool, quiet: bool, extra: Mapping[str, Any] | None = None
) -> None:
    """Print the summary of an extraction: as JSON (with what else is to be in it), as text, or not at all."""
    if as_json:
        click.echo(json.dumps({**summary.to_dict(), **(extra or {})}, indent=1))
    elif not quiet:
        for line in summary_lines(summary):
            click.echo(fitted(line))


def summary_lines(summary: ExtractionSummary) -> list[str]:
    """Write the summary of an extraction as text."""
    seconds = max(summary.seconds, 1e-9)
    lines = [
        f"Extracted {summary.n_extracted} of {summary.n_particles} particles ({summary.n_views} images) "
        f"in {summary.seconds:.1f} s, {summary.n_extracted / seconds:.1f} particles/s"
    ]
    lines += skipped_lines(summary.skipped, summary.skipped_by_series)
    lines += [f"  failed: {f.name}, {f.n_particles} particles: {f.cause}" for f in summary.failures]
    lines.append(
        f"  read {human_bytes(summary.bytes_read)} in {summary.n_requests} requests, "
        f"wrote {human_bytes(summary.bytes_written)}, peak memory {human_bytes(summary.peak_memory_bytes)}"
    )
    lines += [f"  assumed: {sentence}" for sentence in summary.assumptions.get("sentences", ())]
    lines.append(f"  {summary.output_dir}/{summary.table} names everything; next, for example:")
    option = "--ios" if summary.table == OPTIMISATION_SET_FILE else "--i"
    job = "Class3D" if summary.table == OPTIMISATION_SET_FILE else "Class2D"
    lines.append(f"  relion_refine --o {job}/run {option} {summary.output_dir}/{summary.table} ...")
    return lines


def skipped_lines(
    skipped: Mapping[str, int], by_series: Mapping[str, Mapping[str, int]], limit: int = 4
) -> list[str]:
    """Say how many particles are left out, why, and of which tilt series: those that lose most first."""
    lines = []
    for reason, count in skipped.items():
        where = sorted(((r[reason], name) for name, r in by_series.items() if reason in r), reverse=True)
        more = f"; and {len(where) - limit} more tilt series" if len(where) > limit else ""
        told = "; ".join(f"{name}: {n}" for n, name in where[:limit])
        lines.append(f"  skipped {count}: {reason} ({told}{more})")
    return lines


def fitted(line: str) -> str:
    """Break a line at blanks where it is wider than the terminal; the rest is indented."""
    if not sys.stdout.isatty():
        return line
    indent = len(line) - len(line.lstrip()) + 2
    return textwrap.fill(
        line,
        shutil.get_terminal_size().columns,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
