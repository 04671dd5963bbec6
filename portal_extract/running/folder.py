"""The output folder: held by one run at a time; what earlier runs left is swept or kept as asked."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from portal_extract._version import __version__
from portal_extract.errors import OutputError
from portal_extract.relion_io.atomic import write_atomically
from portal_extract.running.guard import UNITS_LOCK, no_units
from portal_extract.running.journal import FOLDER as JOURNAL
from portal_extract.running.journal import IDENTITY

_LOCK = ".lock"


@contextmanager
def hold_output(output_dir: Path, results: tuple[str, ...], *, overwrite: bool) -> Iterator[None]:
    """Hold the output folder for this run alone.

    Parameters
    ----------
    output_dir
        Made if it is not there.
    results
        Names of what a run writes into it.
    overwrite
        Remove them first, and the journal.

    Raises
    ------
    OutputError
        The folder is in use by another run or cannot be written, or it holds results without the journal of
        the run that made them.
    """
    journal = output_dir / JOURNAL
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        known = has_journal(output_dir)
        found = [name for name in results if (output_dir / name).exists()]
        if found and not known and not overwrite:
            raise OutputError(
                f"{output_dir}: holds {', '.join(found)} of another program or run; "
                "choose another --output-dir or use --overwrite"
            )
        journal.mkdir(exist_ok=True)
        lock = open(journal / _LOCK, "a+")  # noqa: SIM115
    except OSError as error:
        raise OutputError(
            f"{output_dir}: cannot be written ({error.strerror}); choose another --output-dir"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # on a file system without locks two runs at once cannot be told
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                raise OutputError(f"{output_dir}: another run is writing here; wait for it to end") from error
        try:
            if overwrite:
                _empty(output_dir, results)
            else:
                _sweep(output_dir, results)
        except OSError as error:
            raise OutputError(f"{output_dir}: cannot be cleared: {error}") from error
        try:
            yield
        except BaseException:
            # whatever ended the run, its unfinished files are of no use; they may also fill the disk
            with suppress(OSError):
                _sweep(output_dir, results)
            raise


def has_journal(output_dir: Path) -> bool:
    """Tell whether a folder holds a run of this program, finished or not."""
    return (output_dir / JOURNAL / IDENTITY).is_file()


def _empty(output_dir: Path, results: tuple[str, ...]) -> None:
    """Remove results and journal; the journal's identity first, so that no unit of the old run begins."""
    journal = output_dir / JOURNAL
    with no_units(journal):
        (journal / IDENTITY).unlink(missing_ok=True)
        for path in [*(output_dir / name for name in results), *journal.iterdir()]:
            if path.name not in (_LOCK, UNITS_LOCK):
                _remove(path)


def _sweep(output_dir: Path, results: tuple[str, ...]) -> None:
    """Remove the unfinished files of a run that was killed."""
    folders = [output_dir / name for name in results if (output_dir / name).is_dir()]
    walked = [(root, files) for folder in folders for root, _, files in os.walk(folder)]
    walked += [next(os.walk(folder))[::2] for folder in (output_dir, output_dir / JOURNAL)]
    for root, files in walked:
        for name in files:
            if name.startswith(".") and name.endswith(".part"):
                Path(root, name).unlink(missing_ok=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists() or path.is_symlink():
        os.unlink(path)


def write_report(output_dir: Path, content: Mapping[str, Any]) -> None:
    """Write ``report/report.json``, with the version of the package."""
    (output_dir / "report").mkdir(exist_ok=True)
    text = json.dumps({"version": __version__, **content}, indent=1) + "\n"
    write_atomically(output_dir / "report" / "report.json", text.encode())
