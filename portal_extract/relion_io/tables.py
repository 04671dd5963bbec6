"""The tables behind a project, kept so that they can be written back with every column.

Every column of every table holds strings, exactly as they
stood in the file (so names that look like numbers stay names and unknown columns travel unchanged); what
the package computes is formatted anew when it is written. Labels carry no leading underscore.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from portal_extract.relion_io.string_table import StringTable


@dataclass(frozen=True)
class ProjectTables:
    """Tables of a project, all values as strings.

    Attributes
    ----------
    particles
        ``data_particles``: row n belongs to particle n of :class:`portal_extract.model.ParticleSet`
        (generated columns such as ``rlnTomoParticleName`` and ``rlnOpticsGroup`` are in it).
    optics
        ``data_optics``, as read or built; row g belongs to optics group g.
    general
        ``data_general`` of the particle file; empty if there was none.
    tomograms
        ``data_global``; row t belongs to tilt series t.
    tilts
        Per-tilt table of each tilt series, by ``rlnTomoName``.
    tomograms_file, trajectories_file, manifolds_file
        Paths for the optimisation set, as the user gave them; None if there is none. A project of the
        portal has no ``tomograms_file``: its tables are written beside the particles.
    """

    particles: StringTable
    optics: StringTable
    tomograms: StringTable
    tilts: Mapping[str, StringTable]
    general: Mapping[str, str] = field(default_factory=dict)
    tomograms_file: str | None = None
    trajectories_file: str | None = None
    manifolds_file: str | None = None
