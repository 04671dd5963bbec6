"""The journal: what a folder was made of, and which units are finished, so that a run can go on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from portal_extract.errors import OutputError
from portal_extract.relion_io.atomic import write_atomically
from portal_extract.running.units import UnitResult

FOLDER = ".journal"
_IDENTITY = "run.json"


class Journal:
    """The journal of one output folder.

    Parameters
    ----------
    output_dir
        The folder; must be claimed by this run.
    """

    def __init__(self, output_dir: Path) -> None:
        self._output_dir, self._folder = output_dir, output_dir / FOLDER

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
        path = self._folder / _IDENTITY
        wanted = json.loads(json.dumps(identity))
        if path.exists():
            found = self._read(path)
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
        else:
            write_atomically(path, json.dumps(wanted, indent=1).encode())
        return [UnitResult.from_dict(self._read(file)) for file in sorted(self._folder.glob("unit-*.json"))]

    def record(self, result: UnitResult) -> None:
        """Record a finished unit; its files are in place."""
        write_atomically(self._path(result), json.dumps(result.to_dict()).encode())

    def forget(self, result: UnitResult) -> None:
        """Strike a unit whose files are gone."""
        self._path(result).unlink(missing_ok=True)

    def _path(self, result: UnitResult) -> Path:
        text = ",".join(map(str, result.particles))
        name = hashlib.sha256(text.encode()).hexdigest()[:12]
        return self._folder / f"unit-{result.particles[0]:08d}-{name}.json"

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise OutputError(f"{path}: unreadable journal ({error}); --overwrite starts anew") from error
        return content


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
