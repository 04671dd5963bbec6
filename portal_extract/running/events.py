"""What happens during a run, told to whoever listens; the core never prints.

An observer is any callable that takes an :class:`Event`. It may be called from several threads and must
return quickly. Progress bars, plain lines and JSON lines are observers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""


@dataclass(frozen=True, slots=True)
class StageStarted(Event):
    """A stage begins: ``total`` steps of ``unit`` ("views", "requests", ...); None if unknown."""

    stage: str
    total: int | None
    unit: str


@dataclass(frozen=True, slots=True)
class StageAdvanced(Event):
    """``steps`` more steps of a stage are done."""

    stage: str
    steps: int


@dataclass(frozen=True, slots=True)
class StageFinished(Event):
    """A stage is over."""

    stage: str


@dataclass(frozen=True, slots=True)
class BytesRead(Event):
    """Stored bytes arrived: ``n_bytes`` of ``n_requests`` requests, ``n_retries`` of them repeated."""

    n_bytes: int
    n_requests: int = 1
    n_retries: int = 0


@dataclass(frozen=True, slots=True)
class Note(Event):
    """A sentence for the user; ``level`` is "info" or "warning"."""

    text: str
    level: str = "info"


Observer = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Observe nothing."""
