"""What an extraction did, or would do: numbers for the terminal, for report.json and for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from portal_extract.model import Ints
from portal_extract.running.units import UnitFailure


@dataclass(frozen=True)
class SeriesSurvey:
    """What geometry alone says of one tilt series.

    Attributes
    ----------
    name
        Of the tilt series.
    n_particles
        Particles in it.
    n_kept, n_views
        Particles that pass the rules of visibility, and their images.
    skipped
        Indices of the others, by reason.
    diagnosis
        Where the particles project to, if all of them miss the images; else None.
    """

    name: str
    n_particles: int
    n_kept: int
    n_views: int
    skipped: Mapping[str, Ints]
    diagnosis: str | None = None


@dataclass(frozen=True)
class SeriesFailure:
    """What failed of one tilt series, and why.

    Attributes
    ----------
    name
        Of the tilt series.
    n_particles
        Particles that are missing because of it.
    cause
        A sentence, or two where parts of the tilt series failed in different ways.
    """

    name: str
    n_particles: int
    cause: str

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {"tilt_series": self.name, "particles": self.n_particles, "cause": self.cause}


def series_failures(failures: Sequence[UnitFailure]) -> tuple[SeriesFailure, ...]:
    """Sum up the units that failed, by tilt series."""
    found: dict[str, list[UnitFailure]] = {}
    for failure in failures:
        found.setdefault(failure.label, []).append(failure)
    return tuple(
        SeriesFailure(name, sum(len(f.particles) for f in units), _causes([f.cause for f in units]))
        for name, units in found.items()
    )


def _causes(causes: Sequence[str], limit: int = 2) -> str:
    different = list(dict.fromkeys(causes))
    more = f"; and {len(different) - limit} more" if len(different) > limit else ""
    return "; ".join(different[:limit]) + more


@dataclass(frozen=True)
class ExtractionSummary:
    """What an extraction did.

    Attributes
    ----------
    output_dir
        Where the results are.
    n_particles, n_extracted, n_views
        Particles in the project, particles extracted, images written.
    skipped
        Number of particles left out, by reason.
    skipped_by_series
        The same for each tilt series that lost any.
    bytes_read, n_requests, bytes_written
        Of images.
    seconds, peak_memory_bytes
        Of this process.
    assumptions
        Values that the source does not have and the user may want to change.
    failures
        Tilt series of which something failed and was skipped.
    table
        Name of the file, below ``output_dir``, that leads to everything else.
    """

    output_dir: Path
    n_particles: int
    n_extracted: int
    n_views: int
    skipped: Mapping[str, int]
    skipped_by_series: Mapping[str, Mapping[str, int]]
    bytes_read: int
    n_requests: int
    bytes_written: int
    seconds: float
    peak_memory_bytes: int
    assumptions: Mapping[str, Any] = field(default_factory=dict)
    failures: tuple[SeriesFailure, ...] = ()
    table: str = "optimisation_set.star"

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {
            "output_dir": str(self.output_dir),
            "table": self.table,
            "complete": not self.failures,
            "particles": self.n_particles,
            "extracted": self.n_extracted,
            "views": self.n_views,
            "skipped": dict(self.skipped),
            "skipped_by_tilt_series": {k: dict(v) for k, v in self.skipped_by_series.items()},
            "bytes_read": self.bytes_read,
            "requests": self.n_requests,
            "bytes_written": self.bytes_written,
            "seconds": round(self.seconds, 3),
            "peak_memory_bytes": self.peak_memory_bytes,
            "assumptions": dict(self.assumptions),
            "failures": [failure.to_dict() for failure in self.failures],
        }


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far."""
    import resource
    import sys

    try:
        # what getrusage tells is inherited from the process that started this one
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
