"""Headers in place of tilt images that stayed in the cloud.

RELION opens the header of the first tilt image of every tilt series, also where it works on extracted
particles alone, because it needs the size. A file that is nothing but a header answers that; where a job
wants pixels of it, the job fails at once instead of reading zeros.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from portal_extract.model import Project, TiltSeries
from portal_extract.relion_io.atomic import write_atomically
from portal_extract.relion_io.mrc import Statistics, header_bytes
from portal_extract.relion_io.paths import check_tomogram_names
from portal_extract.relion_io.project_star import make_folder
from portal_extract.relion_io.tables import ProjectTables

URI_COLUMN = "tomoTiltSeriesURI"
FOLDER = "report/headers"
# the format's way to say that nothing is known of the density
_UNKNOWN = Statistics(minimum=0.0, maximum=-1.0, mean=-2.0, rms=-1.0)


def with_image_headers(out_dir: Path, project: Project, prefix: str) -> ProjectTables:
    """Write ``report/headers/NAME.mrcs``, a header alone, for each tilt series, and name it in its table.

    Parameters
    ----------
    out_dir
        The output folder.
    project
        Its tilt series give the sizes. One whose size is not known, or whose table has no
        ``tomoTiltSeriesURI`` to tell where the pixels are, is left alone.
    prefix
        How STAR files name the output folder.

    Returns
    -------
    ProjectTables
        The tables of the project with ``rlnMicrographName`` set anew; ``tomoTiltSeriesURI`` still names the
        pixels.

    Raises
    ------
    UnsupportedError, OutputError
        A name of a tilt series cannot be a path, or the disk refuses.
    """
    tables: ProjectTables = project.tables
    check_tomogram_names([series.name for series in project.tilt_series])
    tilts = dict(tables.tilts)
    make_folder(out_dir / FOLDER)
    for series in project.tilt_series:
        if series.image_stack.size_px == (0, 0) or URI_COLUMN not in tilts[series.name]:
            continue
        name = f"{FOLDER}/{series.name}.mrcs"
        write_atomically(out_dir / name, _header(series))
        images = [f"{section + 1:06d}@{prefix}{name}" for section in series.image_stack.sections.tolist()]
        tilts[series.name] = tilts[series.name].with_column("rlnMicrographName", images)
    return replace(tables, tilts=tilts)


def _header(series: TiltSeries) -> bytes:
    width, height = series.image_stack.size_px
    n_sections = int(series.image_stack.sections.max()) + 1
    return header_bytes((n_sections, height, width), 2, series.pixel_size_angst, _UNKNOWN, "stack")
