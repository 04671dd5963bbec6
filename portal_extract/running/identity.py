"""What decides the results of a run, in a form that can be compared with an earlier one."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
from typing import Any

import numpy as np

from portal_extract._version import __version__
from portal_extract.model import ImageStack, Project, TiltSeries


def project_identity(project: Project, options: Any) -> dict[str, dict[str, Any]]:
    """Identify options and inputs of a job.

    Parameters
    ----------
    project
        Its model decides the pixels, its tables decide the STAR files; both are hashed.
    options
        A dataclass of plain values.

    Returns
    -------
    Sections ``program``, ``options`` and ``inputs`` of JSON values.
    """
    inputs = {
        "tilt series": digest([_without_images(s) for s in project.tilt_series]),
        "images": digest([_stack_identity(s.image_stack) for s in project.tilt_series]),
        "optics": digest(project.optics_groups),
        "particles": digest(project.particles),
    }
    if project.tables is not None:
        inputs["particle table"] = digest(list(project.tables.particles.texts.items()))
        inputs["optics table"] = digest(list(project.tables.optics.texts.items()))
    program = {"portal-extract": __version__}
    return {"program": program, "options": dataclasses.asdict(options), "inputs": inputs}


def _without_images(series: TiltSeries) -> list[Any]:
    return [getattr(series, f.name) for f in dataclasses.fields(series) if f.name != "image_stack"]


def _stack_identity(stack: ImageStack) -> list[Any]:
    """Addresses, sections, and size and time of the files that are local."""
    files = []
    for uri in sorted(set(stack.uris)):
        try:
            status = os.stat(uri)
            files.append((uri, status.st_size, status.st_mtime_ns))
        except OSError:
            files.append((uri, 0, 0))
    return [files, list(stack.uris), stack.sections, stack.size_px]


def digest(value: Any) -> str:
    """Hash plain values, dataclasses, sequences and arrays."""
    hasher = hashlib.sha256()
    _feed(hasher, value)
    return hasher.hexdigest()[:16]


def _feed(hasher: Any, value: Any) -> None:
    if isinstance(value, np.ndarray):
        hasher.update(f"{value.dtype}{value.shape}".encode())
        hasher.update(np.ascontiguousarray(value).tobytes())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            _feed(hasher, getattr(value, field.name))
    elif isinstance(value, (list, tuple)):
        hasher.update(f"[{len(value)}".encode())
        for item in value:
            _feed(hasher, item)
    else:
        hasher.update(pickle.dumps(value, protocol=4))
