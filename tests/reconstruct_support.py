"""Reconstructions of small projects of noise, for tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np

from portal_extract.options import RunOptions
from portal_extract.reconstruction.job import reconstruct
from portal_extract.reconstruction.options import ReconstructOptions
from portal_extract.reconstruction.summary import ReconstructSummary
from portal_extract.running.events import Event, Note

OPTIONS = ReconstructOptions(box_size=16, make_subsets=True, seed=5, taper_px=3)
#: sums are on disk after each tilt series
AT_ONCE = {"checkpoint_seconds": 0.0}


def average(project, out: Path, options=OPTIONS, run: RunOptions | None = None, **more) -> ReconstructSummary:
    """Reconstruct; ``more`` goes to the job, but for ``box_size`` and so on, which change the options."""
    fields = {key: more.pop(key) for key in list(more) if hasattr(options, key)}
    return reconstruct(project, replace(options, **fields), out, run, **more)


def maps(out: Path) -> dict[str, bytes]:
    """All maps of a folder."""
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.mrc"))}


def tables(out: Path) -> dict[str, bytes]:
    """All STAR files but the report's."""
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.star"))}


def volume(out: Path, name: str = "merged") -> np.ndarray:
    return mrcfile.read(out / f"{name}.mrc").astype(np.float64)


def sums_on_disk(out: Path) -> list[str]:
    return sorted(path.name for path in (out / ".journal").glob(".sum-*"))


class Told:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def notes(self, level: str | None = None) -> str:
        found = [e for e in self.events if isinstance(e, Note) and (level is None or e.level == level)]
        return "\n".join(note.text for note in found)


def without_pictures(monkeypatch) -> None:
    """Leave the pictures out, which take longer than the rest."""
    for name in ("write_views", "write_halves", "write_fsc_plot"):
        monkeypatch.setattr(f"portal_extract.reconstruction.outputs.{name}", lambda *_: None)
