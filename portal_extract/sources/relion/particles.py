"""Particles and optics groups out of the particle file, completed as RELION completes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from portal_extract.model import Bools, Floats, Ints, OpticsGroup, ParticleSet
from portal_extract.relion_io.labels import (
    ANGLE_LABELS,
    CENTRED_LABELS,
    ORIGIN_LABELS,
    PIXEL_LABELS,
    SUBTOMOGRAM_LABELS,
)
from portal_extract.relion_io.string_table import StringTable
from portal_extract.sources.relion.columns import Columns, names, rows
from portal_extract.sources.relion.tilts import GlobalColumns

#: built optics tables have these columns, in this order, and the group's number and name
_BUILT_OPTICS = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnTomoTiltSeriesPixelSize")
_TOLERANCE = 1e-3


def tilt_series_of(particles: Columns, known: GlobalColumns) -> Ints:
    """Index of each particle's tilt series, ``(N,)``; particles of unknown ones are a problem.

    RELION ignores such particles with a warning; here nothing is dropped silently.
    """
    wanted = particles.strings("rlnTomoName")
    position = {name: index for index, name in enumerate(known.names)}
    index = np.array([position.get(name, -1) for name in wanted], dtype=np.int64)
    unknown = np.flatnonzero(index < 0)
    if len(unknown) and "rlnTomoName" in particles:
        missing = list(dict.fromkeys(wanted[i] for i in unknown))
        particles.problems.add(
            f"{particles.where}: {rows(unknown)} of rlnTomoName {names(missing)}, which the tomogram table "
            f"does not have (it has {names(known.names)}): add the tomograms or take the particles out"
        )
    return index


def complete_names(table: StringTable) -> StringTable:
    """Table with ``rlnTomoParticleName``: where missing, ``TOMO/1``, ``TOMO/2`` ... within each tomogram."""
    if "rlnTomoParticleName" in table:
        return table
    counts: Counter[str] = Counter()
    made = []
    for name in table["rlnTomoName"]:
        counts[name] += 1
        made.append(f"{name}/{counts[name]}")
    return table.with_column("rlnTomoParticleName", made)


def complete_optics(
    particles: StringTable, optics: StringTable, tomograms: StringTable, tilt_series: Ints
) -> tuple[StringTable, StringTable]:
    """Particle and optics table; a missing optics table is built as RELION 5.0.1 builds it.

    Groups are numbered in the order in which the particle table meets them; a group is a distinct
    ``rlnOpticsGroupName`` of the tomograms, or a tomogram where they have none.
    """
    if len(optics):
        return particles, optics
    label = "rlnOpticsGroupName" if "rlnOpticsGroupName" in tomograms else "rlnTomoName"
    group_names = tomograms[label]
    first_of: dict[str, int] = {}
    for t in dict.fromkeys(tilt_series.tolist()):
        first_of.setdefault(group_names[t], t)
    number = {name: str(n) for n, name in enumerate(first_of, start=1)}
    numbers = [number[group_names[t]] for t in tilt_series.tolist()]
    source = list(first_of.values())
    of_groups = tomograms.take(source)
    columns = {name: of_groups[name] for name in _BUILT_OPTICS}
    columns["rlnOpticsGroup"] = list(number.values())
    columns["rlnOpticsGroupName"] = list(number)
    return particles.with_column("rlnOpticsGroup", numbers), StringTable.of(columns)


def read_optics_groups(optics: Columns) -> tuple[OpticsGroup, ...]:
    """Optics groups, one for each row of the optics table."""
    n = len(optics)
    pixel_sizes = optics.numbers("rlnTomoTiltSeriesPixelSize")
    bad = np.flatnonzero(pixel_sizes <= 0)
    if len(bad):
        optics.problems.add(f"{optics.where}: rlnTomoTiltSeriesPixelSize must be positive in {rows(bad)}")
    given = "rlnOpticsGroupName" in optics
    group_names = optics.strings("rlnOpticsGroupName") if given else [f"opticsGroup{g + 1}" for g in range(n)]
    even, odd = (
        optics.vectors(label) if label in optics else [None] * n
        for label in ("rlnEvenZernike", "rlnOddZernike")
    )
    return tuple(
        OpticsGroup(group_names[g], float(pixel_sizes[g]), _or_none(even[g]), _or_none(odd[g]))
        for g in range(n)
    )


def _or_none(coefficients: Floats | None) -> Floats | None:
    return coefficients if coefficients is not None and len(coefficients) else None


def check_optics_agree(optics: Columns, known: GlobalColumns, group: Ints, tilt_series: Ints) -> None:
    """Note where optics of a group differ by 0.001 or more from those of a tomogram that uses it."""
    checks = {
        "rlnSphericalAberration": known.spherical_aberration_mm,
        "rlnAmplitudeContrast": known.amplitude_contrast,
        "rlnVoltage": known.voltage_kv,
        "rlnTomoTiltSeriesPixelSize": known.pixel_size_angst,
    }
    n_series = len(known.names)
    pairs = [divmod(pair, n_series) for pair in np.unique(group * n_series + tilt_series).tolist()]
    for label, of_tomograms in checks.items():
        if label not in optics:
            continue
        of_groups = optics.numbers(label)
        for g, t in pairs:
            if abs(of_groups[g] - of_tomograms[t]) >= _TOLERANCE:
                optics.problems.add(
                    f"{optics.where}: {label} is {of_groups[g]:g} in row {g + 1} but {of_tomograms[t]:g} for "
                    f"tomogram {known.names[t]}, whose particles are in this group: make the tables agree"
                )


def optics_group_of(particles: Columns, n_groups: int) -> Ints:
    """Row of each particle's optics group, ``(N,)``: its number minus one (RELION 5.0.1 behaviour)."""
    group = particles.integers("rlnOpticsGroup") - 1
    if "rlnOpticsGroup" in particles:
        bad = np.flatnonzero((group < 0) | (group >= n_groups))
        if len(bad):
            values = [str(number) for number in (group[bad[:5]] + 1).tolist()]
            particles.problems.add(
                f"{particles.where}: rlnOpticsGroup is outside of the {n_groups} rows of data_optics in "
                f"{rows(bad, values)}"
            )
    return group


def read_particles(particles: Columns, tilt_series: Ints, n_groups: int) -> ParticleSet:
    """Particles of a completed table, without trajectories."""
    n = len(particles)
    centred, pixels = np.full((n, 3), np.nan), None
    if particles.has(*CENTRED_LABELS):
        centred = particles.triples(CENTRED_LABELS)
    elif particles.has(*PIXEL_LABELS):
        pixels = particles.triples(PIXEL_LABELS)
    else:
        particles.problems.add(
            f"{particles.where}: no coordinates: neither {', '.join(CENTRED_LABELS)} "
            f"nor {', '.join(PIXEL_LABELS)}"
        )
    subset = particles.integers("rlnRandomSubset") if "rlnRandomSubset" in particles else None
    return ParticleSet(
        names=tuple(particles.strings("rlnTomoParticleName")),
        tilt_series=tilt_series,
        optics_group=optics_group_of(particles, n_groups),
        coordinates_angst=centred,
        coordinates_px=pixels,
        origins_angst=particles.triples(ORIGIN_LABELS, 0.0),
        subtomogram_angles_deg=_angles(particles, SUBTOMOGRAM_LABELS),
        angles_deg=_angles(particles, ANGLE_LABELS),
        random_subset=subset,
    )


def _angles(particles: Columns, labels: Sequence[str]) -> Floats:
    """Euler angles; as in RELION the first column decides whether there are any."""
    if labels[0] not in particles:
        return np.zeros((len(particles), 3))
    return particles.triples(labels)


def used_tilt_series(tilt_series: Ints, n: int) -> Bools:
    """Whether each of ``n`` tilt series has particles."""
    return np.bincount(tilt_series[tilt_series >= 0], minlength=n) > 0
