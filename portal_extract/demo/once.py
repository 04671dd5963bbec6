"""Folders of generated data that appear whole, and are made only once."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from portal_extract.errors import OutputError

STATEMENT = "demo.json"
MARK = "generated_by"
PROGRAM = "portal-extract demo"


def make_once(folder: Path, contents: Mapping[str, Any], write: Callable[[Path], None]) -> bool:
    """Make a folder of generated data, unless it is there with the same contents.

    Parameters
    ----------
    folder
        Folder to make; one that holds other generated data is replaced.
    contents
        What decides the data; can be written as JSON.
    write
        Fills an empty folder.

    Returns
    -------
    bool
        Whether anything was made.

    Raises
    ------
    OutputError
        The folder holds something that was not generated.
    """
    statement = json.loads(json.dumps({MARK: PROGRAM, **contents}))
    found = _read(folder)
    if found == statement:
        return False
    if folder.exists() and found is None and not (folder.is_dir() and not any(folder.iterdir())):
        raise OutputError(f"{folder}: holds something other than generated data; choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        write(made)
        (made / STATEMENT).write_text(json.dumps(statement, indent=2) + "\n")
        if folder.exists():
            os.replace(folder, Path(scratch) / "old")
        os.replace(made, folder)
    return True


def _read(folder: Path) -> dict[str, Any] | None:
    """Read the statement of a folder; None if it has none."""
    try:
        statement = json.loads((folder / STATEMENT).read_text())
    except (OSError, ValueError):
        return None
    return statement if isinstance(statement, dict) and MARK in statement else None
