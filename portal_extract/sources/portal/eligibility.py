"""What of a request will be extracted, what is ambiguous, and what cannot be extracted and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Group

Status = Literal["extract", "ambiguous", "ineligible"]

_STYLES: dict[Status, str] = {"extract": "green", "ambiguous": "yellow", "ineligible": "red"}
_WORDS: dict[Status, str] = {
    "extract": "will be extracted",
    "ambiguous": "ambiguous",
    "ineligible": "ineligible",
}


@dataclass(frozen=True, slots=True)
class EligibilityRow:
    """One file of picks, or one annotation that has none that can be used.

    Attributes
    ----------
    status
        What becomes of it.
    run_id, run_name
        Its run.
    annotation_id, object_name, deposition_id
        Its annotation.
    file_id, shape_type
        The file; None if the annotation has no points.
    tilt_series_id, alignment_id, voxel_spacing_id
        What the picks belong to; None where it is open.
    tomogram_name
        ``rlnTomoName`` of its particles, once it is known.
    n_picks
        Particles; None where the file was not read.
    n_tilts
        Tilt images with alignment, dose and CTF.
    pixel_size_angst, voxel_spacing_angst
        Of the tilt images and of the picks' coordinates.
    reason
        Why it is ambiguous or ineligible, in one sentence.
    candidates
        What may be chosen.
    option
        The command-line option that chooses.
    warnings
        What should be known of a file that is extracted.
    """

    status: Status
    run_id: int
    run_name: str
    annotation_id: int
    object_name: str
    deposition_id: int | None = None
    file_id: int | None = None
    shape_type: str | None = None
    tilt_series_id: int | None = None
    alignment_id: int | None = None
    voxel_spacing_id: int | None = None
    tomogram_name: str | None = None
    n_picks: int | None = None
    n_tilts: int | None = None
    pixel_size_angst: float | None = None
    voxel_spacing_angst: float | None = None
    reason: str = ""
    candidates: tuple[str, ...] = ()
    option: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Run and annotation, for messages."""
        return f"run {self.run_id} ({self.run_name}), annotation {self.annotation_id} {self.object_name!r}"

    def sentence(self) -> str:
        """Say why it is not extracted, and what chooses."""
        choice = ""
        if self.candidates:
            choice = "; choose by " + (self.option or "") + " among " + "; ".join(self.candidates)
        return f"{self.label}: {self.reason}{choice}"


@dataclass(frozen=True, slots=True)
class UnmatchedRun:
    """A run without an annotation that meets the request."""

    run_id: int
    run_name: str
    reason: str

    def sentence(self) -> str:
        """Say it."""
        return f"run {self.run_id} ({self.run_name}): {self.reason}"


@dataclass(frozen=True, slots=True)
class EligibilityReport:
    """What becomes of a request, before a pixel is read.

    Attributes
    ----------
    rows
        Every annotation found, by run and annotation.
    unmatched_runs
        Runs of the request without a matching annotation.
    assumptions
        What the portal does not say.
    warnings
        What concerns the request as a whole.
    """

    rows: tuple[EligibilityRow, ...]
    unmatched_runs: tuple[UnmatchedRun, ...] = ()
    assumptions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def of_status(self, status: Status) -> tuple[EligibilityRow, ...]:
        """Rows of a status."""
        return tuple(row for row in self.rows if row.status == status)

    @property
    def file_ids(self) -> tuple[int, ...]:
        """Files of picks that the request finds, whatever their status."""
        return tuple(sorted({row.file_id for row in self.rows if row.file_id is not None}))

    @property
    def ineligible_run_ids(self) -> tuple[int, ...]:
        """Runs with a matching annotation of which nothing is extracted."""
        good = {row.run_id for row in self.of_status("extract")}
        return tuple(sorted({row.run_id for row in self.rows} - good))

    @property
    def n_picks(self) -> int:
        """Particles that will be extracted, before visibility is looked at."""
        return sum(row.n_picks or 0 for row in self.of_status("extract"))

    def summary(self) -> str:
        """Count in one line."""
        counts = Counter(row.status for row in self.rows)
        runs = len({row.run_id for row in self.of_status("extract")})
        parts = [f"{self.n_picks} particles of {runs} {'run' if runs == 1 else 'runs'} will be extracted"]
        parts += [f"{counts[s]} {_WORDS[s]}" for s in ("ambiguous", "ineligible") if counts[s]]
        if self.unmatched_runs:
            parts.append(f"{len(self.unmatched_runs)} runs without a matching annotation")
        return ", ".join(parts)

    def sentences(self) -> tuple[str, ...]:
        """Say why things are not extracted, one sentence each."""
        said = [row.sentence() for row in self.rows if row.status != "extract"]
        return tuple(said + [run.sentence() for run in self.unmatched_runs])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "summary": self.summary(),
            "n_picks": self.n_picks,
            "rows": [_plain(asdict(row)) for row in self.rows],
            "unmatched_runs": [asdict(run) for run in self.unmatched_runs],
            "ineligible_run_ids": list(self.ineligible_run_ids),
            "assumptions": list(self.assumptions),
            "warnings": list(self.warnings),
        }


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in row.items()}


def _lines(parts: Iterable[str]) -> str:
    return "\n".join(part for part in parts if part)


def report_table(report: EligibilityReport) -> Group:
    """Table of a report, to be printed by rich, 100 columns wide or more.

    Parameters
    ----------
    report
        The report; what there is to say of its rows, its assumptions and the runs without match stand below
        the table.
    """
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table(title=report.summary(), title_justify="left", title_style="bold")
    for heading in ("Run", "Annotation", "File"):
        table.add_column(heading, overflow="fold")
    for heading in ("Picks", "Tilts", "Pixel (A)"):
        table.add_column(heading, justify="right")
    table.add_column("Status", no_wrap=True)
    below: list[tuple[str, str]] = []
    for row in report.rows:
        style = _STYLES[row.status]
        table.add_row(
            Text(f"{row.run_id}\n{row.run_name}"),
            Text(f"{row.annotation_id}\n{row.object_name}"),
            "-" if row.file_id is None else f"{row.file_id}\n{row.shape_type}",
            "-" if row.n_picks is None else str(row.n_picks),
            "-" if row.n_tilts is None else str(row.n_tilts),
            "-" if row.pixel_size_angst is None else f"{row.pixel_size_angst:g}",
            Text(_WORDS[row.status], style=style),
        )
        if row.status != "extract":
            choice = [f"  choose by {row.option} among", *(f"  - {one}" for one in row.candidates)]
            said = [f"{row.label}: {row.reason}", *(choice if row.candidates else ())]
            below.append((_lines(said), style))
        below += [(f"{row.label}: {warning}", "yellow") for warning in row.warnings]
    below += [(f"Without match: {run.sentence()}", "yellow") for run in report.unmatched_runs]
    below += [(f"Warning: {warning}", "yellow") for warning in report.warnings]
    below += [(f"Assumed: {sentence}", "") for sentence in report.assumptions]
    return Group(table, *(Padding(Text(text, style=style), (0, 0, 0, 1)) for text, style in below))


__all__ = ["EligibilityReport", "EligibilityRow", "Status", "UnmatchedRun", "report_table"]
