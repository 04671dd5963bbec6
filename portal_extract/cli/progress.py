"""Observers that show progress: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
    from rich.progress import Progress, ProgressColumn, Task, TaskID

#: of text that does not go to a terminal
WIDTH = 100
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


def human_speed(per_second: float) -> str:
    """Write a speed with at least two digits."""
    return f"{per_second:.0f}" if per_second >= 10 else f"{per_second:.1f}"


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


@dataclass
class _Stage:
    """How far a stage is; one that is started again grows."""

    total: int | None
    unit: str
    start: float
    done: int = 0
    is_running: bool = True

    def state(self, n_bytes: int, n_retries: int) -> str:
        """Tell progress, speed, bytes and, while it runs, the time left."""
        seconds = max(time.monotonic() - self.start, 1e-9)
        parts = [f"{self.done}{'' if self.total is None else f' of {self.total}'} {self.unit}"]
        parts.append(f"{human_speed(self.done / seconds)} {self.unit}/s")
        parts += _read(n_bytes, n_retries)
        if not self.is_running:
            parts.append(f"done in {human_seconds(seconds)}")
        elif self.total and self.done:
            left = (self.total - self.done) * seconds / self.done
            parts.append(f"{human_seconds(left)} left")
        return ", ".join(parts)


def _read(n_bytes: int, n_retries: int) -> list[str]:
    retries = [f"{n_retries} retried"] if n_retries else []
    return [f"{human_bytes(n_bytes)} read", *retries] if n_bytes else retries


def _titled(stage: str) -> str:
    return stage[:1].upper() + stage[1:]


class Lines:
    """Writes a line when a stage starts and ends, and now and then in between."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stages: dict[str, _Stage] = {}
        self._bytes = self._retries = 0
        self._last = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Observe."""
        with self._lock:
            if isinstance(event, BytesRead):
                self._bytes += event.n_bytes
                self._retries += event.n_retries
            elif isinstance(event, Note):
                self._write(f"{'warning: ' if event.level == 'warning' else ''}{event.text}")
            elif isinstance(event, StageStarted):
                self._stages[event.stage] = _Stage(event.total, event.unit, time.monotonic())
                total = "" if event.total is None else f": {event.total} {event.unit}"
                self._write(f"{_titled(event.stage)}{total}")
            elif isinstance(event, StageAdvanced) and event.stage in self._stages:
                self._stages[event.stage].done += event.steps
                if time.monotonic() - self._last > _SECONDS_BETWEEN_LINES:
                    self._tell(event.stage)
            elif isinstance(event, StageFinished) and event.stage in self._stages:
                self._stages[event.stage].is_running = False
                self._tell(event.stage)
                del self._stages[event.stage]

    def _tell(self, name: str) -> None:
        self._write(f"{_titled(name)}: {self._stages[name].state(self._bytes, self._retries)}")

    def _write(self, text: str) -> None:
        self._last = time.monotonic()
        print(text, file=sys.stderr, flush=True)


class Bars:
    """Draws a bar for each stage; a stage that comes again makes its bar longer."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._running: set[str] = set()
        self._bytes = self._retries = 0
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Observe."""
        if isinstance(event, Note):
            style = "yellow" if event.level == "warning" else ""
            self._progress.console.print(event.text, style=style, highlight=False, markup=False)
            return
        with self._lock:
            if isinstance(event, BytesRead):
                self._bytes += event.n_bytes
                self._retries += event.n_retries
                for stage in self._running:
                    read = ", ".join(_read(self._bytes, self._retries))
                    self._progress.update(self._tasks[stage], read=read)
            elif isinstance(event, StageStarted):
                self._start(event)
            elif isinstance(event, StageAdvanced) and event.stage in self._running:
                self._progress.advance(self._tasks[event.stage], event.steps)
            elif isinstance(event, StageFinished) and event.stage in self._running:
                self._finish(event.stage)

    def _start(self, event: StageStarted) -> None:
        self._running.add(event.stage)
        if event.stage not in self._tasks:
            self._tasks[event.stage] = self._progress.add_task(
                _titled(event.stage), total=event.total, unit=event.unit, read="", took=None
            )
            return
        before = self._task(event.stage).total
        total = None if before is None or event.total is None else before + event.total
        self._progress.update(self._tasks[event.stage], total=total, took=None)

    def _finish(self, stage: str) -> None:
        self._running.remove(stage)
        task = self._task(stage)
        # a bar without a total would go on moving
        total = task.completed if task.total is None else task.total
        self._progress.update(task.id, total=total, took=task.elapsed or 0.0)

    def _task(self, stage: str) -> Task:
        return next(task for task in self._progress.tasks if task.id == self._tasks[stage])


@contextmanager
def _bars() -> Iterator[Bars]:
    from rich.progress import Progress

    with Progress(*bar_columns(), console=error_console()) as progress:
        yield Bars(progress)


def bar_columns() -> list[ProgressColumn]:
    """Columns of the bars: name, bar, count, speed, bytes, time."""
    from rich.progress import BarColumn, TextColumn

    return [
        TextColumn("{task.description:<17}"),
        BarColumn(bar_width=20),
        _column(_count),
        _column(_speed),
        TextColumn("{task.fields[read]}"),
        _column(_time),
    ]


def _column(text_of: Callable[[Task], str]) -> ProgressColumn:
    from rich.progress import ProgressColumn
    from rich.text import Text

    class Column(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(text_of(task), no_wrap=True)

    return Column()


def _count(task: Task) -> str:
    of = "" if task.total is None else f"/{task.total:.0f}"
    return f"{task.completed:.0f}{of} {task.fields['unit']}"


def _speed(task: Task) -> str:
    # over the whole stage, because batches come in bursts
    seconds = _elapsed(task)
    return f"{human_speed(task.completed / seconds)}/s" if task.completed and seconds else ""


def _time(task: Task) -> str:
    seconds = _elapsed(task)
    if task.fields["took"] is not None:
        return f"in {human_seconds(seconds)}"
    if not task.total or not task.completed:
        return f"{human_seconds(seconds)} so far" if seconds >= 1 else ""
    return f"{human_seconds((task.total - task.completed) * seconds / task.completed)} left"


def _elapsed(task: Task) -> float:
    took: float | None = task.fields["took"]
    return (task.elapsed or 0.0) if took is None else took


def error_console() -> Console:
    """Make a console on standard error; where that is no terminal, it is 100 columns wide."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = WIDTH
    return console
