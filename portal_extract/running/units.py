"""The unit of work: some particles of one tilt series, seconds long.

A task can be pickled and holds no open file, no filesystem and no pixel; what comes back of it are counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from portal_extract.images.reader import Reader
from portal_extract.options import RunOptions
from portal_extract.running.engine import Stream, ViewConsumer
from portal_extract.running.events import Observer


@dataclass(frozen=True)
class UnitResult:
    """What came of a unit.

    Attributes
    ----------
    label
        Name of the tilt series.
    particles
        Indices (into the whole project) of the unit's particles.
    bad
        Those whose result is no good, with the reason.
    n_views
        Images processed.
    bytes_read, n_requests
        Of stored images.
    """

    label: str
    particles: tuple[int, ...]
    bad: Mapping[int, str] = field(default_factory=dict)
    n_views: int = 0
    bytes_read: int = 0
    n_requests: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for the journal."""
        return {
            "label": self.label,
            "particles": to_runs(self.particles),
            "bad": {str(k): v for k, v in self.bad.items()},
            "n_views": self.n_views,
            "bytes_read": self.bytes_read,
            "n_requests": self.n_requests,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> UnitResult:
        """Read what :meth:`to_dict` wrote."""
        values = dict(content)
        values["particles"] = from_runs(values["particles"])
        values["bad"] = {int(k): v for k, v in values["bad"].items()}
        return cls(**values)


@dataclass(frozen=True)
class UnitFailure:
    """A unit that could not be done.

    Attributes
    ----------
    label
        Name of the tilt series.
    particles
        Indices (into the whole project) of the unit's particles.
    error
        Why.
    """

    label: str
    particles: tuple[int, ...]
    error: Exception

    @property
    def cause(self) -> str:
        """Why, as a sentence; errors that nobody foresaw are named with their type."""
        from portal_extract.errors import PortalExtractError

        text = str(self.error)
        return text if isinstance(self.error, PortalExtractError) else f"{type(self.error).__name__}: {text}"


class UnitConsumer(ViewConsumer, Protocol):
    """A consumer that knows what it could not do."""

    @property
    def bad(self) -> Mapping[int, str]:
        """Particles (0-based within the unit) whose result is no good, with the reason."""


class UnitTask(Protocol):
    """Everything that is needed to run a unit, in this process or another."""

    @property
    def particles(self) -> tuple[int, ...]:
        """Indices of the particles in the whole project."""

    @property
    def label(self) -> str:
        """How messages name the unit: its tilt series."""

    @property
    def may_open_early(self) -> bool:
        """Whether opening reads no pixels, so that it may happen while another unit is read."""

    def open(
        self, run: RunOptions, workers: int, observer: Observer, reader: Reader
    ) -> tuple[Stream, UnitConsumer]:
        """Make the stream of patches and the consumer that takes them."""


def to_runs(numbers: Iterable[int]) -> list[list[int]]:
    """Write numbers as runs of consecutive ones: first, and one after the last."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1][1] = number + 1
        else:
            runs.append([number, number + 1])
    return runs


def from_runs(runs: Iterable[Iterable[int]]) -> tuple[int, ...]:
    """Read what :func:`to_runs` wrote."""
    return tuple(number for start, stop in runs for number in range(start, stop))
