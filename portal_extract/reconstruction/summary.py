"""What a reconstruction did: numbers for the terminal, for report.json and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from portal_extract.extraction.summary import SeriesFailure


@dataclass(frozen=True)
class HalfSet:
    """What went into a half set.

    Attributes
    ----------
    n_particles
        Particles with at least one image.
    n_views
        Images.
    """

    n_particles: int
    n_views: int


@dataclass(frozen=True)
class Resolution:
    """Resolution in Angstrom by the FSC between the half maps; infinite where it is never reached.

    Attributes
    ----------
    at_0143, at_05
        Of the corrected curve.
    unmasked_at_0143
        Of the maps without a mask.
    mask
        What the maps were multiplied by.
    """

    at_0143: float
    at_05: float
    unmasked_at_0143: float
    mask: str


@dataclass(frozen=True)
class ReconstructSummary:
    """What a reconstruction did.

    Attributes
    ----------
    output_dir
        Where the results are.
    n_particles
        Particles in the project.
    half_sets
        What went into each half set; one if there are none.
    maps
        Names of the maps that were written.
    pixel_size_angst
        Of the maps.
    visible_frames
        Which tilt images counted: ``geometric`` or ``stored``.
    skipped
        Number of particles left out, by reason.
    failures
        Tilt series that could not be read, if the run was to skip them.
    left_out
        Particles of which images were left out, by name, with the reason.
    resolution
        None without half sets.
    bytes_read, n_requests, bytes_written
        Of images and maps.
    predicted_memory_bytes, peak_memory_bytes
        Working memory as planned, and all of the memory of this process.
    seconds
        Of this process.
    assumptions
        Values that the source does not have and the user may want to change.
    """

    output_dir: Path
    n_particles: int
    half_sets: tuple[HalfSet, ...]
    maps: tuple[str, ...]
    pixel_size_angst: float
    visible_frames: str
    skipped: Mapping[str, int]
    resolution: Resolution | None
    bytes_read: int
    n_requests: int
    bytes_written: int
    predicted_memory_bytes: int
    peak_memory_bytes: int
    seconds: float = 0.0
    failures: tuple[SeriesFailure, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    assumptions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_averaged(self) -> int:
        """Particles in the maps."""
        return sum(half.n_particles for half in self.half_sets)

    @property
    def n_views(self) -> int:
        """Images in the maps."""
        return sum(half.n_views for half in self.half_sets)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        resolution = None
        if self.resolution is not None:
            resolution = {
                "fsc_0.143_angst": finite(self.resolution.at_0143),
                "fsc_0.5_angst": finite(self.resolution.at_05),
                "unmasked_fsc_0.143_angst": finite(self.resolution.unmasked_at_0143),
                "mask": self.resolution.mask,
            }
        return {
            "output_dir": str(self.output_dir),
            "particles": self.n_particles,
            "averaged": self.n_averaged,
            "views": self.n_views,
            "half_sets": [{"particles": h.n_particles, "views": h.n_views} for h in self.half_sets],
            "maps": list(self.maps),
            "pixel_size_angst": self.pixel_size_angst,
            "visible_frames": self.visible_frames,
            "skipped": dict(self.skipped),
            "failures": [failure.to_dict() for failure in self.failures],
            "left_out": dict(self.left_out),
            "resolution": resolution,
            "bytes_read": self.bytes_read,
            "requests": self.n_requests,
            "bytes_written": self.bytes_written,
            "seconds": round(self.seconds, 3),
            "predicted_memory_bytes": self.predicted_memory_bytes,
            "peak_memory_bytes": self.peak_memory_bytes,
            "assumptions": dict(self.assumptions),
        }


def left_out_sentences(summary: ReconstructSummary, limit: int = 5) -> list[str]:
    """Say of which particles images were left out."""
    told = [f"particle {name}: {text}" for name, text in list(summary.left_out.items())[:limit]]
    more = len(summary.left_out) - limit
    return [*told, f"and {more} more particles, see report/report.json"] if more > 0 else told


def finite(value: float) -> float | None:
    """Give a number for JSON, which knows no infinity."""
    return round(value, 4) if abs(value) < float("inf") else None
