"""What a user reads at the end."""

from __future__ import annotations

import json

import click

from portal_extract.cli.progress import human_bytes
from portal_extract.extraction.summary import ExtractionSummary


def show_summary(summary: ExtractionSummary, *, as_json: bool, quiet: bool) -> None:
    """Print the summary of an extraction: as JSON, as text, or not at all."""
    if as_json:
        click.echo(json.dumps(summary.to_dict(), indent=1))
    elif not quiet:
        for line in summary_lines(summary):
            click.echo(line)


def summary_lines(summary: ExtractionSummary) -> list[str]:
    """Write the summary of an extraction as text."""
    seconds = max(summary.seconds, 1e-9)
    lines = [
        f"Extracted {summary.n_extracted} of {summary.n_particles} particles ({summary.n_views} images) "
        f"in {summary.seconds:.1f} s, {summary.n_extracted / seconds:.1f} particles/s"
    ]
    for reason, count in summary.skipped.items():
        where = [f"{s}: {r[reason]}" for s, r in summary.skipped_by_series.items() if reason in r]
        more = f", and {len(where) - 4} more tilt series" if len(where) > 4 else ""
        lines.append(f"  skipped {count}: {reason} ({'; '.join(where[:4])}{more})")
    lines.append(
        f"  read {human_bytes(summary.bytes_read)} in {summary.n_requests} requests, "
        f"wrote {human_bytes(summary.bytes_written)}, peak memory {human_bytes(summary.peak_memory_bytes)}"
    )
    lines += [f"  assumed: {sentence}" for sentence in summary.assumptions.get("sentences", ())]
    lines += [
        f"  {summary.output_dir}/optimisation_set.star names everything; next, for example:",
        f"  relion_refine --o Class3D/run --ios {summary.output_dir}/optimisation_set.star ...",
    ]
    return lines
