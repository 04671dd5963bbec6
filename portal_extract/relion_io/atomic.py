"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from portal_extract.errors import OutputError

Buffer = bytes | bytearray | memoryview


def write_atomically(path: str | os.PathLike[str], *buffers: Buffer) -> None:
    """Write buffers, one after the other, to a temporary name beside the target and rename it.

    Parameters
    ----------
    path
        The target; one that exists is replaced. Its folder must exist.
    buffers
        C-contiguous data.

    Raises
    ------
    OutputError
        The disk refuses (full, read-only, no such folder); nothing is left behind.
    """
    target = Path(path)
    # a random name: two writers of one target, on whatever machines, must not share it
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
    try:
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666
        )
        try:
            _write_all(descriptor, [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)])
        finally:
            os.close(descriptor)
        os.replace(temporary, target)
    except OSError as error:
        _attempt(temporary.unlink)
        raise OutputError(f"{target} cannot be written: {error.strerror or error}") from error
    except BaseException:
        _attempt(temporary.unlink)
        raise


@contextmanager
def open_atomically(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for writing that gets its name when the context ends without an error.

    Parameters
    ----------
    path
        The target; one that exists is replaced. Its folder must exist.

    Raises
    ------
    OutputError
        The disk refuses; nothing is left behind.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, target)
    except OSError as error:
        _attempt(temporary.unlink)
        raise OutputError(f"{target} cannot be written: {error.strerror or error}") from error
    except BaseException:
        _attempt(temporary.unlink)
        raise


def _write_all(descriptor: int, views: Sequence[memoryview]) -> None:
    pending = list(views)
    while pending:
        if hasattr(os, "writev"):
            written = os.writev(descriptor, pending[:16])
        else:  # pragma: no cover
            written = os.write(descriptor, pending[0])
        while pending and written >= len(pending[0]):
            written -= len(pending.pop(0))
        if written:
            pending[0] = pending[0][written:]


def _attempt(action: Callable[[], None]) -> None:
    try:
        action()
    except OSError:
        return
