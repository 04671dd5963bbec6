"""What the extracting commands have in common once they have a project."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any

from portal_extract.cli.closing import show_summary
from portal_extract.cli.progress import show_progress
from portal_extract.extraction.job import extract
from portal_extract.extraction.summary import ExtractionSummary
from portal_extract.model import Project
from portal_extract.options import ExtractOptions, RunOptions


def extract_and_report(
    project: Project,
    options: ExtractOptions,
    run: RunOptions,
    values: Mapping[str, Any],
    assumptions: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> ExtractionSummary | None:
    """Extract with progress and print the summary; or, with ``--dry-run``, print the plan."""
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
    with show_progress(values["quiet"] or values["as_json"]) as observer:
        summary = extract(
            project, options, values["output_dir"], run, observer, assumptions=assumptions, extra=extra
        )
    show_summary(summary, as_json=values["as_json"], quiet=values["quiet"], extra=extra)
    return summary


def settle_memory() -> None:
    """Start collecting garbage, after the imports: what they made stays for good and need not be looked at."""
    gc.freeze()
    gc.enable()
