"""Files of image stacks that grow in any order: a few images of each wait, so files are opened seldom."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portal_extract.errors import OutputError
from portal_extract.model import Ints
from portal_extract.relion_io.atomic import write_atomically
from portal_extract.relion_io.half import to_half
from portal_extract.relion_io.mrc import HEADER_BYTES

#: images of one particle that are worth a write of their own, even where each close goes over a network
_WRITE_BYTES = 512 << 10


def images_that_wait(n_particles: int, longest: int, image_bytes: int, memory_bytes: int) -> int:
    """Choose how many images of each particle wait to be written together.

    Parameters
    ----------
    n_particles
        Particles whose images may wait at the same time.
    longest
        Images of the longest stack.
    image_bytes
        Size of an image as it is stored.
    memory_bytes
        Bound for what waits, all particles together.

    Returns
    -------
    At least 1, which means that no image waits.
    """
    affordable = memory_bytes // (max(n_particles, 1) * image_bytes)
    return max(1, min(_WRITE_BYTES // image_bytes, longest, affordable))


@dataclass
class _Buffer:
    """Copies of images that wait: ``images[i]`` belongs at ``slots[i]``."""

    images: NDArray[Any]
    slots: list[int]


class StackFiles:
    """Writes the stacks of particles whose images come in any order, from several threads.

    A stack grows in an unfinished file beside its place and gets its name when it is whole. Images of a
    particle wait in memory until they are too many for its buffer, and are then written all at once; so a
    stack that fits into its buffer is written in one go. A buffer is made for the first image that waits, and
    given free with the stack.

    Parameters
    ----------
    paths
        ``K`` files to be written, one for each particle; folders are made.
    lengths
        ``(K,)`` images of each stack.
    shape
        Rows and columns of an image.
    float16
        Write half precision, encoded as RELION does.
    images_waiting
        Most images of a particle that wait; 1 for none, each is written at once.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        lengths: Ints,
        shape: tuple[int, int],
        *,
        float16: bool,
        images_waiting: int = 1,
    ) -> None:
        self._paths, self._lengths, self._shape = paths, lengths.tolist(), shape
        self._dtype = np.dtype(np.float16 if float16 else np.float32)
        self._images_waiting = images_waiting
        # one lock for each particle: a thread must not wait for the disk because of another particle
        self._locks = [threading.Lock() for _ in paths]
        self._missing: list[int] = lengths.tolist()
        self._is_begun = [False] * len(paths)
        self._buffers: dict[int, _Buffer] = {}
        self._made_folders: set[Path] = set()
        # one name per writer: a unit that a cluster runs twice must not write to one file
        self._token = uuid.uuid4().hex[:12]

    def put(self, particle: int, slots: Ints, images: NDArray[np.float32]) -> bool:
        """Take images of a particle; they are copied or written before this returns.

        Parameters
        ----------
        particle
            Which stack.
        slots
            ``(n,)`` places of the images in the stack, each of which is put once.
        images
            ``(n, rows, columns)`` float32.

        Returns
        -------
        Whether all images of the particle are there now; true for one call alone, after all others.

        Raises
        ------
        OutputError
            The disk refuses. The stack can only be discarded then.
        """
        stored: NDArray[Any] = to_half(images) if self._dtype == np.float16 else images
        if self._images_waiting == 1:
            # not under the lock: threads write to different places of the file
            self._write(particle, slots.tolist(), stored)
            with self._locks[particle]:
                return self._count(particle, len(slots))
        with self._locks[particle]:
            if not self._keep(particle, slots, stored):
                waiting = self._waiting(particle)
                self._write(particle, [*waiting.slots, *slots.tolist()], [*waiting.images, *stored])
                waiting.slots.clear()
            return self._count(particle, len(slots))

    def complete(self, particle: int, header: bytes) -> None:
        """Write the header and what waits, and give the file its name.

        Parameters
        ----------
        particle
            Which stack; all its images are there.
        header
            The first 1024 bytes of the file.

        Raises
        ------
        OutputError
            The disk refuses.
        ValueError
            Images are missing.
        """
        with self._locks[particle]:
            if self._missing[particle]:
                raise ValueError(f"{self._paths[particle]} lacks {self._missing[particle]} images")
            waiting = self._waiting(particle)
            if self._is_begun[particle]:
                self._write(particle, waiting.slots, waiting.images, header)
                with self._told(particle):
                    os.replace(self._temporary(particle), self._paths[particle])
            else:
                self._make_folder(particle)
                images = (waiting.images[i].data for i in np.argsort(waiting.slots))
                write_atomically(self._paths[particle], header, *images)
            self._forget(particle)

    def discard(self, particle: int) -> None:
        """Forget a stack and remove its unfinished file.

        Raises
        ------
        OutputError
            The disk refuses.
        """
        with self._locks[particle]:
            if self._is_begun[particle]:
                with self._told(particle):
                    self._temporary(particle).unlink(missing_ok=True)
            self._forget(particle)

    def _forget(self, particle: int) -> None:
        """Give the buffer free; whatever comes now begins a new file."""
        self._buffers.pop(particle, None)
        self._is_begun[particle] = False
        self._missing[particle] = self._lengths[particle]

    def _waiting(self, particle: int) -> _Buffer:
        """Images that wait, without the room for more."""
        buffer = self._buffers.get(particle)
        if buffer is None:
            return _Buffer(np.empty((0, *self._shape), self._dtype), [])
        return _Buffer(buffer.images[: len(buffer.slots)], buffer.slots)

    def _count(self, particle: int, n: int) -> bool:
        self._missing[particle] -= n
        return self._missing[particle] == 0

    def _keep(self, particle: int, slots: Ints, stored: NDArray[Any]) -> bool:
        """Copy images into the buffer of their particle, if it has room for all of them."""
        buffer = self._buffers.get(particle)
        room = min(self._images_waiting, self._lengths[particle])
        n = len(buffer.slots) if buffer else 0
        if n + len(slots) > room:
            return False
        if buffer is None:
            buffer = self._buffers[particle] = _Buffer(np.empty((room, *self._shape), self._dtype), [])
        buffer.images[n : n + len(slots)] = stored
        buffer.slots += slots.tolist()
        return True

    def _write(
        self,
        particle: int,
        slots: Sequence[int],
        images: Sequence[NDArray[Any]] | NDArray[Any],
        header: bytes = b"",
    ) -> None:
        """Write images to their places in the unfinished file, neighbours together.

        The header comes last: a file that has one has all its images.
        """
        image_bytes = self._dtype.itemsize * self._shape[0] * self._shape[1]
        order = np.argsort(slots)
        sorted_slots = np.array(slots, np.int64)[order]
        runs = np.split(order, np.flatnonzero(np.diff(sorted_slots) != 1) + 1) if len(slots) else []
        if not self._is_begun[particle]:
            self._make_folder(particle)
        with self._told(particle):
            # a file that was begun must still be there: a new one would lack the images written before
            begin = 0 if self._is_begun[particle] else os.O_CREAT
            descriptor = os.open(self._temporary(particle), os.O_WRONLY | begin, 0o666)
            self._is_begun[particle] = True
            try:
                for run in runs:
                    rows = images[run[0]] if len(run) == 1 else np.stack([images[i] for i in run])
                    offset = HEADER_BYTES + slots[run[0]] * image_bytes
                    _write_at(descriptor, np.ascontiguousarray(rows).data.cast("B"), offset)
                _write_at(descriptor, memoryview(header), 0)
            finally:
                os.close(descriptor)

    def _temporary(self, particle: int) -> Path:
        path = self._paths[particle]
        return path.with_name(f".{path.name}.{self._token}.part")

    def _make_folder(self, particle: int) -> None:
        folder = self._paths[particle].parent
        if folder not in self._made_folders:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"{folder} cannot be made: {error.strerror}") from error
            self._made_folders.add(folder)

    @contextmanager
    def _told(self, particle: int) -> Iterator[None]:
        """Name the file in errors of the disk."""
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{self._paths[particle]} cannot be written: {error.strerror or error}"
            ) from error


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of some bytes at a place in a file."""
    while data:
        n = os.pwrite(descriptor, data, offset)
        data, offset = data[n:], offset + n
