"""The output folder: claimed by one run at a time, with a report beside the results."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from portal_extract._version import __version__
from portal_extract.errors import OutputError
from portal_extract.options import ExtractOptions
from portal_extract.relion_io.atomic import write_atomically

JOURNAL = ".journal"
_RESULTS = ("Subtomograms", "particles.star", "optimisation_set.star", "motion.star", "report")


@contextmanager
def claim_output(output_dir: Path, *, overwrite: bool) -> Iterator[None]:
    """Hold the output folder for this run alone.

    Parameters
    ----------
    output_dir
        Made if it is not there.
    overwrite
        Remove the results of an earlier run first; without, such a folder is refused.

    Raises
    ------
    OutputError
        The folder holds results, is in use by another run, or cannot be written.
    """
    import fcntl

    try:
        (output_dir / JOURNAL).mkdir(parents=True, exist_ok=True)
        lock = open(output_dir / JOURNAL / ".lock", "a+")  # noqa: SIM115
    except OSError as error:
        raise OutputError(
            f"{output_dir}: cannot be written ({error.strerror}); choose another --output-dir"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"{output_dir}: another run is writing to this folder; wait for it to end"
            ) from error
        found = [name for name in _RESULTS if (output_dir / name).exists()]
        if found and not overwrite:
            raise OutputError(
                f"{output_dir}: holds {', '.join(found)} of an earlier run; "
                "choose another --output-dir or use --overwrite"
            )
        for name in found:
            _remove(output_dir / name)
        yield


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        os.unlink(path)


def write_report(output_dir: Path, summary: Mapping[str, Any], options: ExtractOptions) -> None:
    """Write ``report/report.json``: the summary, the options and the version."""
    content = {"version": __version__, "options": asdict(options), **summary}
    (output_dir / "report").mkdir(exist_ok=True)
    write_atomically(output_dir / "report" / "report.json", (json.dumps(content, indent=1) + "\n").encode())
