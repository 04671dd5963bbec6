"""Projects out of RELION 5 (and RELION 4) STAR files."""

from __future__ import annotations

from portal_extract.sources.relion.files import ProjectFiles, read_project
from portal_extract.sources.relion.project import TableNames, Trajectories, build_project
from portal_extract.sources.relion.tilts import ImageStackFactory, TomogramTables

__all__ = [
    "ImageStackFactory",
    "ProjectFiles",
    "TableNames",
    "TomogramTables",
    "Trajectories",
    "build_project",
    "read_project",
]
