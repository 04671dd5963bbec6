"""Every error that portal-extract raises on purpose.

PortalExtractError
├── UsageError              options that contradict each other or cannot be honoured
│   └── UnsupportedError    a column, option or value that is known and refused
├── SourceError             the description of the data is missing or wrong
│   ├── StarFileError       a STAR file: missing, unreadable, lacking a block, column or row
│   ├── PortalError         the portal's API did not answer, or answered nonsense
│   ├── NotFoundError       no such run, tilt series, annotation ...
│   └── IneligibleError     found, but nothing of it can be extracted
├── ReadError               pixels could not be had
│   ├── ImageFormatError    a file that is no MRC or OME-Zarr, truncated or corrupt
│   ├── AccessDeniedError   the store refuses
│   └── ChunkReadError      a stored chunk could not be fetched or decoded after all attempts
├── MemoryBudgetError       the plan cannot fit the memory given, with the number needed
├── ClusterError            the dask cluster is lost, or its workers die
└── OutputError             the output folder: in use, full, read-only, or of another run
    └── BadResultError      a result that must not be named in a STAR file (not finite, constant)

Each message is one sentence or a short list: it names the file, run, tilt or row and says what to do.
At the command line it is all a user sees; the exit code is 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class PortalExtractError(Exception):
    """Base of all errors that portal-extract raises on purpose."""


class UsageError(PortalExtractError):
    """Options that contradict each other or cannot be honoured."""


class UnsupportedError(UsageError):
    """Known columns, options or values that are refused, all of them in one message.

    Parameters
    ----------
    problems
        One sentence for each thing refused.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(join_problems(self.problems))

    def __reduce__(self) -> tuple[type[UnsupportedError], tuple[tuple[str, ...]]]:
        return type(self), (self.problems,)


class SourceError(PortalExtractError):
    """The description of the data is missing or wrong."""


class StarFileError(SourceError):
    """A STAR file is missing or unreadable, or lacks a block, column or row."""


class PortalError(SourceError):
    """The portal's API did not answer, or answered something unusable."""


class NotFoundError(SourceError):
    """No such run, tilt series, annotation or object."""


class IneligibleError(SourceError):
    """What was asked for exists, but nothing of it can be extracted.

    Parameters
    ----------
    message
        Why, one sentence for each thing found.
    report
        The eligibility report, where there is one
        (:class:`portal_extract.sources.portal.eligibility.EligibilityReport`).
    """

    def __init__(self, message: str, report: Any = None) -> None:
        self.report = report
        super().__init__(message)


class ReadError(PortalExtractError):
    """Pixels could not be had."""


class ImageFormatError(ReadError):
    """A file that is no MRC or OME-Zarr, or is truncated or corrupt."""


class AccessDeniedError(ReadError):
    """The store refuses to hand out an object."""


class ChunkReadError(ReadError):
    """A stored chunk could not be fetched or decoded.

    Parameters
    ----------
    uri
        Address of the object.
    attempts
        Number of attempts made.
    cause
        What went wrong last.
    byte_range
        First byte and byte after the last one, or None for the whole object.
    """

    def __init__(
        self, uri: str, attempts: int, cause: str, byte_range: tuple[int, int] | None = None
    ) -> None:
        self.uri, self.attempts, self.cause, self.byte_range = uri, attempts, cause, byte_range
        part = f" bytes {byte_range[0]}-{byte_range[1] - 1}" if byte_range else ""
        times = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        super().__init__(f"{uri}{part}: not readable after {times}: {cause}")

    def __reduce__(
        self,
    ) -> tuple[type[ChunkReadError], tuple[str, int, str, tuple[int, int] | None]]:
        return type(self), (self.uri, self.attempts, self.cause, self.byte_range)


class MemoryBudgetError(PortalExtractError):
    """The plan cannot fit the memory given."""


class ClusterError(PortalExtractError):
    """The dask cluster could not be had or was lost, or its workers died; finished units are kept."""


class OutputError(PortalExtractError):
    """The output folder is in use, full, read-only, or belongs to another run."""


class BadResultError(OutputError):
    """A result that must not be named in a STAR file: not finite, or constant."""


def join_problems(problems: tuple[str, ...]) -> str:
    """One problem as it is, several as a list."""
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} problems:\n" + "\n".join(f"  - {problem}" for problem in problems)
