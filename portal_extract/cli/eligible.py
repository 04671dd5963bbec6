"""The table of what a request to the portal found."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from portal_extract.cli.progress import error_console

if TYPE_CHECKING:
    from portal_extract.sources.portal.eligibility import EligibilityReport


def show_report(report: EligibilityReport, *, as_json: bool, quiet: bool) -> None:
    """Print a report: JSON on standard output, or a table on standard error."""
    from portal_extract.sources.portal.eligibility import report_table

    if as_json:
        click.echo(json.dumps({"eligibility": report.to_dict()}, indent=1))
    elif not quiet:
        error_console().print(report_table(report))
