"""What the extracting commands have in common once they have a project."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from portal_extract.cli.closing import show_summary
from portal_extract.cli.cluster import chosen_scheduler
from portal_extract.cli.progress_json import show_progress_as, write_line
from portal_extract.extraction.job import extract
from portal_extract.extraction.summary import ExtractionSummary
from portal_extract.model import Project
from portal_extract.options import ExtractOptions, RunOptions
from portal_extract.running.clients import open_client

if TYPE_CHECKING:
    from portal_extract.images.reader import Reader

EXIT_SKIPPED = 3


def extract_and_report(
    project: Project,
    options: ExtractOptions,
    run: RunOptions,
    values: Mapping[str, Any],
    assumptions: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    reader: Reader | None = None,
) -> ExtractionSummary | None:
    """Extract with progress and print the summary; or, with ``--dry-run``, print the plan.

    Raises
    ------
    click.exceptions.Exit
        With code 3, after the summary, where something failed and was skipped.
    """
    settle_memory()
    if values["dry_run"]:
        from portal_extract.cli.dry_run import show_dry_run

        show_dry_run(
            project,
            options,
            run,
            as_json=values["as_json"],
            quiet=values["quiet"],
            output_dir=values["output_dir"],
            bandwidth=values.get("bandwidth"),
            extra=extra,
        )
        return None
    scheduler, out = chosen_scheduler(values), values["output_dir"]
    with show_progress_as(values) as observer, open_client(scheduler, observer) as client:
        if client is not None and scheduler.dashboard and (values["quiet"] or values["as_json"]):
            click.echo(f"dask dashboard: {client.dashboard_link}", err=True)
        summary = extract(
            project,
            options,
            out,
            run,
            observer,
            client=client,
            reader=reader,
            assumptions=assumptions,
            extra=extra,
        )
    if values["json_progress"]:
        write_line(sys.stderr, "finished", {"summary": summary.to_dict()})
    show_summary(summary, as_json=values["as_json"], quiet=values["quiet"], extra=extra)
    if summary.failures:
        raise click.exceptions.Exit(EXIT_SKIPPED)
    return summary


def settle_memory() -> None:
    """Start collecting garbage, after the imports: what they made stays for good and need not be looked at."""
    gc.freeze()
    gc.enable()
