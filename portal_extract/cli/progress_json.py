"""Events as JSON lines on standard error, for other programs: ``--json-progress``.

Each line is an object with ``event`` (the name of the event in lower case, such as ``stage_advanced``),
``time`` (seconds since 1970) and the fields of the event (:mod:`portal_extract.running.events`). Steps and
bytes of a quarter of a second are added up in one line, so the sums are exact and the lines are few. The
last line of a run that succeeded is ``finished`` with the summary, of another one ``error`` or
``interrupted`` with a message and the exit code.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from portal_extract.running.events import BytesRead, Event, Observer, StageAdvanced

_SECONDS_BETWEEN_LINES = 0.25


@contextmanager
def show_progress_as(values: Mapping[str, Any]) -> Iterator[Observer]:
    """Give the observer that the options of a command ask for.

    Parameters
    ----------
    values
        Parsed options: ``json_progress``, ``quiet``, ``as_json``.
    """
    if values.get("json_progress"):
        lines = JsonLines(sys.stderr)
        try:
            yield lines
        finally:
            lines.flush()
        return
    from portal_extract.cli.progress import show_progress

    with show_progress(values["quiet"] or values["as_json"]) as observer:
        yield observer


class JsonLines:
    """Writes events as JSON lines.

    Parameters
    ----------
    stream
        Where to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lock = stream, threading.Lock()
        self._steps: dict[str, int] = {}
        self._read = BytesRead(0, 0, 0)
        self._last = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Observe."""
        with self._lock:
            if isinstance(event, StageAdvanced):
                self._steps[event.stage] = self._steps.get(event.stage, 0) + event.steps
            elif isinstance(event, BytesRead):
                self._read = BytesRead(
                    self._read.n_bytes + event.n_bytes,
                    self._read.n_requests + event.n_requests,
                    self._read.n_retries + event.n_retries,
                )
            else:
                self._write_sums()
                self._write(event)
            if time.monotonic() - self._last > _SECONDS_BETWEEN_LINES:
                self._write_sums()

    def flush(self) -> None:
        """Write what has been added up."""
        with self._lock:
            self._write_sums()

    def _write_sums(self) -> None:
        if self._read != BytesRead(0, 0, 0):
            self._write(self._read)
        for stage, steps in self._steps.items():
            self._write(StageAdvanced(stage, steps))
        self._steps, self._read, self._last = {}, BytesRead(0, 0, 0), time.monotonic()

    def _write(self, event: Event) -> None:
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()
        write_line(self._stream, name, dataclasses.asdict(event))


def write_line(stream: TextIO, name: str, fields: Mapping[str, Any]) -> None:
    """Write one line."""
    print(json.dumps({"event": name, "time": round(time.time(), 3), **fields}), file=stream, flush=True)
