"""Keeps units that still run somewhere apart from a run that starts anew in their folder.

A worker of a cluster does not notice at once that its client has died, and may finish its unit minutes
later. If it belongs to the same run that does no harm: the bytes are the same. Before a folder is emptied
for another run, though, no unit may be at work in it. Each unit therefore holds a shared lock on a file of
the journal, and :func:`portal_extract.running.folder.hold_output` takes the same lock alone.
"""

from __future__ import annotations

import fcntl
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from portal_extract._version import __version__
from portal_extract.errors import OutputError
from portal_extract.running.journal import FOLDER, IDENTITY, read_json

UNITS_LOCK = ".units"
_PATIENCE_S = 20.0


@dataclass(frozen=True)
class Guard:
    """Permission to write into an output folder; travels with a task.

    Attributes
    ----------
    output_dir
        Absolute path.
    token
        Of the run (:attr:`portal_extract.running.journal.Journal.token`).
    version
        Of the package that made the task.
    """

    output_dir: str
    token: str
    version: str = __version__

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for a unit, in the process that does it.

        Raises
        ------
        OutputError
            The folder cannot be seen from here, is of another run by now, or this process has another
            version of the package.
        """
        here, journal = socket.gethostname(), Path(self.output_dir) / FOLDER
        if self.version != __version__:
            raise OutputError(
                f"the worker on {here} has portal-extract {__version__}, the run was started with "
                f"{self.version}: install the same version for all workers"
            )
        try:
            lock = open(journal / UNITS_LOCK, "a+")  # noqa: SIM115
        except OSError as error:
            raise OutputError(
                f"{self.output_dir} cannot be written from {here} ({error.strerror}): the output folder must "
                "be on a file system that all workers share"
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputError(f"{self.output_dir}: another run has taken the folder over") from error
            except OSError:
                pass  # a file system without locks
            if not (journal / IDENTITY).exists() or read_json(journal / IDENTITY).get("token") != self.token:
                raise OutputError(f"{self.output_dir}: another run has taken the folder over")
            yield


@contextmanager
def no_units(journal: Path) -> Iterator[None]:
    """Wait until no unit of an earlier run is at work, and keep units away.

    Raises
    ------
    OutputError
        Some are still at work after that time.
    """
    deadline = time.monotonic() + _PATIENCE_S
    with open(journal / UNITS_LOCK, "a+") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise OutputError(
                        f"{journal.parent}: workers of an earlier run are still writing here; "
                        "try again when they have ended"
                    ) from error
                time.sleep(0.1)
            except OSError:
                break  # a file system without locks
            else:
                break
        yield
