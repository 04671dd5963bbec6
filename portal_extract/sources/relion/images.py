"""Where the pixels of a RELION project's tilt series are."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from portal_extract.errors import (
    AccessDeniedError,
    ImageFormatError,
    NotFoundError,
    PortalExtractError,
    ReadError,
    StarFileError,
    join_problems,
)
from portal_extract.model import ImageStack, Ints
from portal_extract.relion_io.mrc import read_header
from portal_extract.sources.relion.columns import names, rows
from portal_extract.sources.relion.tilts import TomogramTables

if TYPE_CHECKING:
    from portal_extract.images.reader import Reader

URI_LABEL = "tomoTiltSeriesURI"
STACK_LABEL = "rlnTomoTiltSeriesName"
IMAGE_LABEL = "rlnMicrographName"
COUNT_LABEL = "rlnTomoFrameCount"
_SECTION = re.compile(r"(\d+)@(.+)", re.DOTALL)
_REMOTE = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


@dataclass(frozen=True)
class FileImages:
    """Finds the images of tilt series that the tables name.

    In this order: ``tomoTiltSeriesURI`` (per tilt or global: OME-Zarr or MRC, local or remote; the section is
    the N of ``N@`` in ``rlnMicrographName``, or else the row), ``rlnTomoTiltSeriesName`` (one stack, sections
    in row order), ``rlnMicrographName`` (``N@stack``, or a file with one image).

    Attributes
    ----------
    relative_dir
        Folder that local paths are relative to; None for the current directory.
    storage
        Options for remote stores.
    reader
        Looks at remote files.
    meanwhile
        Called while the answers of a remote store are on their way; perhaps several times.
    """

    reader: Reader
    relative_dir: str | None = None
    storage: Mapping[str, Any] = field(default_factory=dict)
    meanwhile: Callable[[], object] | None = None

    def __call__(self, tomogram: TomogramTables) -> ImageStack:
        """Find the images of one tilt series; reads headers only.

        Raises
        ------
        StarFileError
            The tables do not name images, or sections that do not exist.
        ImageFormatError, ReadError
            A file is missing, truncated, of an unknown kind, or of another size than the others.
        """
        named, sections = _named_images(tomogram)
        uris = tuple(self.locate(name) for name in named)
        shapes = self._shapes(tomogram, uris)
        sections = _settle_sections(tomogram, uris, sections, shapes)
        sizes = {shape[1:] for shape in shapes.values()}
        if len(sizes) > 1:
            first = next(iter(shapes.values()))[1:]
            odd = [f"{uri} ({shape[2]} x {shape[1]})" for uri, shape in shapes.items() if shape[1:] != first]
            raise ImageFormatError(
                f"{tomogram.tilts_where}: the images differ in size: {uris[0]} is {first[1]} x {first[0]}, "
                f"not so {names(odd, 4)}"
            )
        height, width = sizes.pop()
        return ImageStack(uris, sections, (width, height), dict(self.storage))

    def _shapes(self, tomogram: TomogramTables, uris: tuple[str, ...]) -> dict[str, tuple[int, int, int]]:
        """Shape of each file; an error names the row that needs it."""
        from portal_extract.images.layout import is_mrc_uri, look_at

        shapes: dict[str, tuple[int, int, int]] = {}
        errors: dict[str, PortalExtractError] = {}
        distinct = list(dict.fromkeys(uris))
        local = {uri for uri in distinct if is_mrc_uri(uri) and not _REMOTE.match(uri)}
        others = look_at(
            [uri for uri in distinct if uri not in local], self.storage, self.reader, self.meanwhile
        )
        for uri in distinct:
            found = _local_shape(uri) if uri in local else others[uri]
            if isinstance(found, PortalExtractError):
                errors[uri] = found
            else:
                shapes[uri] = found if isinstance(found, tuple) else found.shape
        if errors:
            uri, first = next(iter(errors.items()))
            more = f"; {len(errors) - 1} more files of it are wrong too" if len(errors) > 1 else ""
            kinds = (NotFoundError, ImageFormatError, AccessDeniedError)
            kind = next((kind for kind in kinds if type(first) is kind), ReadError)
            row = uris.index(uri) + 1
            raise kind(f"{first} (needed by {tomogram.tilts_where}, row {row}{more})") from first
        return shapes

    def locate(self, name: str) -> str:
        """Absolute path of a local image; a remote address as it is."""
        if name.startswith("file://"):
            return name.removeprefix("file://")
        if _REMOTE.match(name):
            return name
        return os.path.abspath(os.path.join(self.relative_dir or "", name))


def _local_shape(path: str) -> tuple[int, int, int] | PortalExtractError:
    try:
        return read_header(path).shape
    except (NotFoundError, ReadError) as error:
        return error


def _named_images(tomogram: TomogramTables) -> tuple[list[str], Ints]:
    """Name of each image, and its 0-based section; -1 where the file must tell."""
    tilts, n = tomogram.tilts, len(tomogram.tilts)
    in_order = np.arange(n, dtype=np.int64)
    per_tilt = tilts.get(IMAGE_LABEL)
    uris = _per_tilt_or_global(tomogram, URI_LABEL)
    if uris is not None:
        sections = _split(per_tilt)[1] if per_tilt is not None else None
        return uris, in_order if sections is None else np.where(sections < 0, in_order, sections)
    if STACK_LABEL in tomogram.row:
        _check_frame_count(tomogram)
        return [tomogram.row[STACK_LABEL]] * n, in_order
    if per_tilt is None:
        raise StarFileError(
            f"{tomogram.tilts_where}: no images: neither column {IMAGE_LABEL} nor {URI_LABEL}, and no "
            f"{STACK_LABEL} in the tomogram table"
        )
    return _split(per_tilt)


def _per_tilt_or_global(tomogram: TomogramTables, label: str) -> list[str] | None:
    if label in tomogram.row and label not in tomogram.tilts:
        return [tomogram.row[label]] * len(tomogram.tilts)
    return tomogram.tilts.get(label)


def _split(values: list[str]) -> tuple[list[str], Ints]:
    """``N@file`` to file and N - 1; -1 where there is no N."""
    found = [_SECTION.fullmatch(value) for value in values]
    files = [match[2] if match else value for match, value in zip(found, values, strict=True)]
    # N = 0 becomes -2: out of range, but not "none given"
    sections = [int(match[1]) - 1 if match and int(match[1]) else -2 if match else -1 for match in found]
    return files, np.array(sections, dtype=np.int64)


def _check_frame_count(tomogram: TomogramTables) -> None:
    count = tomogram.row.get(COUNT_LABEL)
    if count is not None and count != str(len(tomogram.tilts)):
        raise StarFileError(
            f"{tomogram.where}: {COUNT_LABEL} is {count}, but {tomogram.tilts_where} has "
            f"{len(tomogram.tilts)} rows"
        )


def _settle_sections(
    tomogram: TomogramTables,
    uris: tuple[str, ...],
    sections: Ints,
    shapes: Mapping[str, tuple[int, int, int]],
) -> Ints:
    counts = np.array([shapes[uri][0] for uri in uris], dtype=np.int64)
    problems = []
    unclear = np.flatnonzero((sections == -1) & (counts > 1))
    if len(unclear):
        i = int(unclear[0])
        problems.append(
            f"{tomogram.tilts_where}: {rows(unclear)}: {uris[i]} holds {counts[i]} sections: name one of "
            "them, as N@file"
        )
    settled = np.where(sections == -1, 0, sections)
    bad = np.flatnonzero((settled < 0) | (settled >= counts))
    if len(bad):
        i = int(bad[0])
        given = [str(section + 1 if section >= 0 else 0) for section in settled[bad[:5]].tolist()]
        problems.append(
            f"{tomogram.tilts_where}: section number out of range in {rows(bad, given)}: {uris[i]} has "
            f"sections 1 to {counts[i]}"
        )
    if problems:
        raise StarFileError(join_problems(tuple(problems)))
    return settled
