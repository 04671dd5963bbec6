"""The journal: what a folder was made of, and which units are finished, so that a run can go on.

It is a file with what decides the results, and a log with one line for each finished unit. The log only
grows, and one process alone writes it: a line that a kill cut short is the last one, and is dropped.
"""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from portal_extract.errors import OutputError
from portal_extract.relion_io.atomic import write_atomically
from portal_extract.running.units import UnitResult, to_runs

FOLDER = ".journal"
IDENTITY = "run.json"
LOG = "units.log"
_TOKEN = "token"


class Journal:
    """The journal of one output folder.

    Parameters
    ----------
    output_dir
        The folder; must be held by this run.
    """

    def __init__(self, output_dir: Path) -> None:
        self._output_dir, self._folder = output_dir, output_dir / FOLDER

    @property
    def token(self) -> str:
        """Identifies the run from its first start to its end; another run in the same folder has another."""
        token: str = read_json(self._folder / IDENTITY)[_TOKEN]
        return token

    def begin(self, identity: Mapping[str, Any]) -> list[UnitResult]:
        """Start a run, or go on with the one that was interrupted.

        Parameters
        ----------
        identity
            What decides the results: options and inputs, as plain JSON values in two levels.

        Returns
        -------
        Results of the units that are finished.

        Raises
        ------
        OutputError
            The folder holds a run with other options or inputs; the message names what differs.
        """
        path = self._folder / IDENTITY
        wanted = json.loads(json.dumps(identity))
        if path.exists():
            found = read_json(path)
            differences = [
                f"{key} was {_short(found.get(section, {}).get(key))}, is {_short(value)}"
                for section, values in wanted.items()
                for key, value in values.items()
                if found.get(section, {}).get(key) != value
            ]
            if differences:
                raise OutputError(
                    f"{self._output_dir}: holds a run with other options or inputs "
                    f"({'; '.join(differences)}); choose another --output-dir, or --overwrite to start anew"
                )
            return self._finished()
        (self._folder / LOG).unlink(missing_ok=True)
        write_atomically(path, json.dumps({_TOKEN: uuid.uuid4().hex, **wanted}, indent=1).encode())
        return []

    def record(self, result: UnitResult) -> None:
        """Record a finished unit; its files are in place.

        Raises
        ------
        OutputError
            The disk refuses; the log ends with the unit before.
        """
        self._append(result.to_dict())

    def forget(self, result: UnitResult) -> None:
        """Strike a unit whose files are gone."""
        self._append({"forget": to_runs(result.particles)})

    def _append(self, entry: Mapping[str, Any]) -> None:
        path = self._folder / LOG
        line = json.dumps(entry).encode() + b"\n"
        try:
            with open(path, "ab", buffering=0) as file:
                end, problem = file.tell(), os.strerror(errno.ENOSPC)
                try:
                    if file.write(line) == len(line):
                        return
                except OSError as error:
                    problem = error.strerror or str(error)
                # what is left of the line would be dropped anyway; without it the log reads well
                file.truncate(end)
        except OSError as error:
            problem = error.strerror or str(error)
        raise OutputError(f"{path} cannot be written: {problem}")

    def _finished(self) -> list[UnitResult]:
        path = self._folder / LOG
        if not path.exists():
            return []
        try:
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                os.truncate(path, len(whole))
            entries = [json.loads(line) for line in whole.splitlines()]
            finished: dict[str, UnitResult] = {}
            for entry in entries:
                if "forget" in entry:
                    finished.pop(json.dumps(entry["forget"]), None)
                else:
                    finished[json.dumps(entry["particles"])] = UnitResult.from_dict(entry)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(f"{path}: unreadable journal ({error}); --overwrite starts anew") from error
        return list(finished.values())


def read_json(path: Path) -> dict[str, Any]:
    """Read a file of the journal.

    Raises
    ------
    OutputError
        It is not there, or no JSON.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: unreadable journal ({error}); --overwrite starts anew") from error
    return content


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
