"""Observers that show progress: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from portal_extract.running.events import (
    BytesRead,
    Event,
    Note,
    Observer,
    StageAdvanced,
    StageFinished,
    StageStarted,
    ignore,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, TaskID

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def show_progress(quiet: bool) -> Iterator[Observer]:
    """Give an observer that suits the terminal; progress goes to standard error."""
    if quiet:
        yield ignore
    elif sys.stderr.isatty():
        with _bars() as bars:
            yield bars
    else:
        yield Lines()


def human_bytes(n: float) -> str:
    """Write a size with three digits: 12.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}" if unit != "B" else f"{n:.0f} B"
        n /= 1000
    return f"{n:.3g} TB"


def human_seconds(seconds: float) -> str:
    """Write a time: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


class Lines:
    """Writes a line when a stage starts and ends, and now and then in between."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stages: dict[str, tuple[int, int | None, str, float]] = {}
        self._bytes, self._last = 0, time.monotonic()

    def __call__(self, event: Event) -> None:
        """Observe."""
        with self._lock:
            if isinstance(event, BytesRead):
                self._bytes += event.n_bytes
            elif isinstance(event, Note):
                self._write(f"{'warning: ' if event.level == 'warning' else ''}{event.text}")
            elif isinstance(event, StageStarted):
                self._stages[event.stage] = (0, event.total, event.unit, time.monotonic())
                total = "" if event.total is None else f": {event.total} {event.unit}"
                self._write(f"{event.stage}{total}")
            elif isinstance(event, StageAdvanced) and event.stage in self._stages:
                done, total_steps, unit, start = self._stages[event.stage]
                self._stages[event.stage] = (done + event.steps, total_steps, unit, start)
                if time.monotonic() - self._last > _SECONDS_BETWEEN_LINES:
                    self._write(self._state(event.stage))
            elif isinstance(event, StageFinished) and event.stage in self._stages:
                self._write(f"{self._state(event.stage)}, done")
                del self._stages[event.stage]

    def _state(self, stage: str) -> str:
        done, total, unit, start = self._stages[stage]
        seconds = max(time.monotonic() - start, 1e-9)
        of = f" of {total}" if total is not None else ""
        read = f", {human_bytes(self._bytes)} read" if self._bytes else ""
        return f"{stage}: {done}{of} {unit}, {done / seconds:.0f} {unit}/s{read}"

    def _write(self, text: str) -> None:
        self._last = time.monotonic()
        print(text, file=sys.stderr, flush=True)


class Bars:
    """Draws a bar for each stage."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Observe."""
        if isinstance(event, BytesRead):
            with self._lock:
                self._bytes += event.n_bytes
                for task in self._tasks.values():
                    self._progress.update(task, read=f"{human_bytes(self._bytes)} read")
        elif isinstance(event, Note):
            style = "yellow" if event.level == "warning" else ""
            self._progress.console.print(event.text, style=style, highlight=False)
        elif isinstance(event, StageStarted):
            self._tasks[event.stage] = self._progress.add_task(
                event.stage, total=event.total, unit=event.unit, read=""
            )
        elif isinstance(event, StageAdvanced) and event.stage in self._tasks:
            self._progress.advance(self._tasks[event.stage], event.steps)
        elif isinstance(event, StageFinished) and event.stage in self._tasks:
            task = self._tasks.pop(event.stage)
            self._progress.stop_task(task)


@contextmanager
def _bars() -> Iterator[Bars]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        _speed_column(),
        TextColumn("{task.fields[read]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=error_console()) as progress:
        yield Bars(progress)


def _speed_column() -> ProgressColumn:
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class SpeedColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:.0f} {task.fields['unit']}/s")

    return SpeedColumn()


def error_console() -> Console:
    """Make a console on standard error."""
    from rich.console import Console

    return Console(stderr=True)
