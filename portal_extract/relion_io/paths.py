"""Names that become paths: of the files of each particle, and of the output folder in STAR files."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from portal_extract.errors import UnsupportedError
from portal_extract.model import Project
from portal_extract.options import PathStyle

SUBTOMOGRAMS = "Subtomograms"
_ODD = r"""\x00-\x20\x7f-\xa0\u2000-\u200f\u2028\u2029\u202f\u205f\u3000\\@:*?"'<>|#"""
_COMPONENT = rf"(?!\.{{1,2}}(?:/|$))[^{_ODD}/]+"
_SAFE = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
#: file systems hold names of 255 bytes; a suffix and a temporary name need some of them
_LONGEST = 180
_NAMED = 8


def is_safe_name(name: str) -> bool:
    """Whether a name can be a path below a folder: no ``..``, not absolute, no odd characters.

    Odd are blanks and control characters, what shells and file systems treat specially, and what RELION
    reads as a part of another kind (``@`` of a section, ``:`` of a format). Slashes may part the name.
    """
    if _SAFE.fullmatch(name) is None:
        return False
    return len(name) * 4 <= _LONGEST or max(map(len, name.encode().split(b"/"))) <= _LONGEST


def check_tomogram_names(names: Sequence[str]) -> None:
    """Refuse names of tilt series that cannot be paths.

    Raises
    ------
    UnsupportedError
        Naming each of them.
    """
    bad = [name for name in names if not is_safe_name(name)]
    if bad:
        raise UnsupportedError([_refusal("tomogram name (rlnTomoName)", name) for name in bad[:_NAMED]])


def stack_paths(project: Project, suffix: str) -> tuple[str, ...]:
    """Path of the file of each particle, below the output folder (RELION 5.0.1 naming rule).

    Where the first particle of the first tilt series that has any holds a slash in its name, the names are
    paths below ``Subtomograms/``; otherwise each tilt series has a folder there.

    Parameters
    ----------
    project
        All particles count, whether they will be extracted or not.
    suffix
        Such as ``_stack2d.mrcs``.

    Returns
    -------
    ``(N,)`` relative paths, with ``/`` on every platform.

    Raises
    ------
    UnsupportedError
        A name would leave the output folder or holds odd characters, or two particles would share a file.
    """
    particles = project.particles
    first = next((members[0] for members in project.particles_of if len(members)), None)
    if first is None:
        return ()
    series = [project.tilt_series[t].name for t in particles.tilt_series.tolist()]
    if "/" in particles.names[first]:
        stems = list(particles.names)
    else:
        stems = [f"{name}/{particle}" for name, particle in zip(series, particles.names, strict=True)]
    problems = _unsafe(stems, particles.names) + _shared(stems, particles.names)
    if problems:
        raise UnsupportedError(problems)
    return tuple(f"{SUBTOMOGRAMS}/{stem}{suffix}" for stem in stems)


def _unsafe(stems: Sequence[str], names: Sequence[str]) -> list[str]:
    bad = [i for i, stem in enumerate(stems) if not is_safe_name(stem)]
    found = [_refusal(f"particle table, row {i + 1} ({names[i]}):", stems[i]) for i in bad[:_NAMED]]
    if len(bad) > _NAMED:
        found.append(f"and {len(bad) - _NAMED} more names of this kind")
    return found


def _shared(stems: Sequence[str], names: Sequence[str]) -> list[str]:
    if len(set(stems)) == len(stems):
        return []
    first: dict[str, int] = {}
    pairs = [(first[stem], i) for i, stem in enumerate(stems) if first.setdefault(stem, i) != i]
    found = [
        f"particle table, rows {a + 1} ({names[a]}) and {b + 1} ({names[b]}) would share one file: give "
        "every particle a name of its own (rlnTomoParticleName)"
        for a, b in pairs[:_NAMED]
    ]
    if len(pairs) > _NAMED:
        found.append(f"and {len(pairs) - _NAMED} more pairs of this kind")
    return found


def _refusal(what: str, name: str) -> str:
    return (
        f"{what} {name!r} cannot be a path below the output folder: use letters, digits and _ - + . only; "
        "no part may be empty, '.' or '..'"
    )


def output_prefix(out_dir: Path, style: PathStyle, cwd: Path | None = None) -> str:
    """How STAR files name the output folder: put in front of ``particles.star``; ends with a slash.

    Parameters
    ----------
    out_dir
        The output folder.
    style
        ``auto`` is relative to the current directory when the folder lies below it (RELION's habit), else
        absolute.
    cwd
        The current directory; None for that of the process.
    """
    base = os.path.abspath(cwd if cwd is not None else os.getcwd())
    target = os.path.abspath(os.path.join(base, out_dir))
    relative = os.path.relpath(target, base) if style != "absolute" else ""
    outside = relative == os.pardir or relative.startswith(os.pardir + os.sep)
    if style == "absolute" or (style == "auto" and outside):
        return target.rstrip(os.sep) + "/"
    return "" if relative == os.curdir else relative.replace(os.sep, "/") + "/"
