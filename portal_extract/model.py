"""The model: a project is tilt series, optics groups and particles, as plain arrays.

Nothing here knows of STAR files, of the portal, or of pixels. Everything is frozen and can be pickled.
Vectors are in x, y, z order, arrays of images in (tilt, y, x) order; lengths of columns:
``F`` tilt images of a tilt series, ``N`` particles, ``G`` optics groups.

Spaces (RELION 5.0.1 behaviour): *tomogram space* is in unbinned tilt-series pixels with the origin at
the centre of voxel (0, 0, 0); *image space* is in unbinned pixels of a tilt image with the origin at
the centre of pixel (0, 0), its third coordinate is the depth along the beam.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import dask.array

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

DeformationKind = Literal["linear", "spline", "Fourier"]


@dataclass(frozen=True)
class ImageStack:
    """Where the pixels of a tilt series are; opening it reads headers only.

    Attributes
    ----------
    uris
        ``(F,)`` one address per tilt image: a path, ``s3://`` or ``https://`` of an MRC stack or of an
        OME-Zarr group (ending ``.zarr``) or array. Usually all the same.
    sections
        ``(F,)`` 0-based section of each tilt image in its file.
    size_px
        Width and height of every tilt image, in unbinned pixels.
    storage
        Options for the store, e.g. ``{"endpoint_url": ...}`` for S3; only plain values.
    """

    uris: tuple[str, ...]
    sections: Ints
    size_px: tuple[int, int]
    storage: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Deformation:
    """2D deformation of the tilt images (``rlnTomoDeformation*``).

    Attributes
    ----------
    kind
        ``linear``, ``spline`` or ``Fourier``.
    grid
        Number of grid points in x and y.
    coefficients
        ``(F, K)`` flat coefficients of each tilt image, in the order of the STAR file.
    """

    kind: DeformationKind
    grid: tuple[int, int]
    coefficients: Floats


@dataclass(frozen=True)
class TiltSeries:
    """One tilt series with its alignment and optics: what RELION calls a tomogram.

    Attributes
    ----------
    name
        ``rlnTomoName``.
    image_stack
        Where the pixels are.
    pixel_size_angst
        Angstrom per unbinned pixel of the tilt images (``rlnTomoTiltSeriesPixelSize``).
    voltage_kv, spherical_aberration_mm, amplitude_contrast
        Optics of the microscope.
    handedness
        Sign of the depth in the defocus (``rlnTomoHand``).
    tomogram_size_px
        Size x, y, z of the tomogram in unbinned tilt-series pixels; (-999, -999, -999) when unknown
        (RELION 5.0.1 behaviour).
    projections
        ``(F, 4, 4)`` tomogram space (x, y, z, 1) to image space (x, y, depth, 1), in pixels.
    defocus_u_angst, defocus_v_angst, defocus_angle_deg
        ``(F,)`` underfocus positive; the angle is that of U from the x axis.
    phase_shift_deg, ctf_scale, ctf_bfactor_a2
        ``(F,)`` 0, 1 and 0 where the source has none.
    dose_e_per_a2
        ``(F,)`` accumulated dose before each image (``rlnMicrographPreExposure``).
    defocus_slope
        Multiplies the depth-dependent defocus (``rlnTomoDefocusSlope``).
    bfactor_per_dose
        ``rlnCtfBfactorPerElectronDose``; > 0 replaces the dose model of Grant & Grigorieff.
    deformation
        2D deformation, or None.
    """

    name: str
    image_stack: ImageStack
    pixel_size_angst: float
    voltage_kv: float
    spherical_aberration_mm: float
    amplitude_contrast: float
    handedness: float
    tomogram_size_px: tuple[int, int, int]
    projections: Floats
    defocus_u_angst: Floats
    defocus_v_angst: Floats
    defocus_angle_deg: Floats
    phase_shift_deg: Floats
    ctf_scale: Floats
    ctf_bfactor_a2: Floats
    dose_e_per_a2: Floats
    defocus_slope: float = 1.0
    bfactor_per_dose: float = 0.0
    deformation: Deformation | None = None

    @property
    def n_tilts(self) -> int:
        """Number of tilt images."""
        return len(self.dose_e_per_a2)

    @property
    def images(self) -> dask.array.Array:
        """Tilt images as a lazy ``(F, height, width)`` float32 dask array over the stored chunks.

        Opening reads headers and metadata only. For notebooks and viewers; the extraction itself reads
        stored blocks directly.
        """
        from portal_extract.images.lazy import open_lazily

        return open_lazily(self.image_stack)

    @property
    def centre_px(self) -> Floats:
        """``(3,)`` centre of the tomogram for coordinates and defocus: half the size, not truncated."""
        return np.array(self.tomogram_size_px, dtype=np.float64) / 2.0


@dataclass(frozen=True)
class OpticsGroup:
    """One row of the optics table.

    Attributes
    ----------
    name
        ``rlnOpticsGroupName``.
    pixel_size_angst
        ``rlnTomoTiltSeriesPixelSize`` of the group.
    even_zernike, odd_zernike
        Coefficients of the symmetric and antisymmetric aberrations, or None.
    """

    name: str
    pixel_size_angst: float
    even_zernike: Floats | None = None
    odd_zernike: Floats | None = None


@dataclass(frozen=True)
class ParticleSet:
    """Particles of a whole project, in the order of their table.

    Attributes
    ----------
    names
        ``(N,)`` ``rlnTomoParticleName``.
    tilt_series
        ``(N,)`` index into :attr:`Project.tilt_series`.
    optics_group
        ``(N,)`` index into :attr:`Project.optics_groups` (``rlnOpticsGroup`` minus one).
    coordinates_angst
        ``(N, 3)`` centred coordinates (relative to the tomogram centre), or NaN rows where only
        ``coordinates_px`` is given.
    coordinates_px
        ``(N, 3)`` pixel coordinates in tomogram space (RELION 4), or None.
    origins_angst
        ``(N, 3)`` refined shifts in the subtomogram frame, 0 where absent.
    subtomogram_angles_deg
        ``(N, 3)`` rot, tilt, psi of ``rlnTomoSubtomogram*``, 0 where absent.
    angles_deg
        ``(N, 3)`` rot, tilt, psi of ``rlnAngle*``, 0 where absent.
    random_subset
        ``(N,)`` half set 1 or 2, or None.
    trajectories_angst
        For each particle ``(F, 3)`` shifts per tilt image in tomogram space, or None for all.
    """

    names: tuple[str, ...]
    tilt_series: Ints
    optics_group: Ints
    coordinates_angst: Floats
    origins_angst: Floats
    subtomogram_angles_deg: Floats
    angles_deg: Floats
    coordinates_px: Floats | None = None
    random_subset: Ints | None = None
    trajectories_angst: tuple[Floats, ...] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: Ints) -> ParticleSet:
        """Pick particles, in the order of the indices."""

        def rows(values: Any) -> Any:
            return None if values is None else values[indices]

        return ParticleSet(
            names=tuple(self.names[i] for i in indices),
            tilt_series=self.tilt_series[indices],
            optics_group=self.optics_group[indices],
            coordinates_angst=self.coordinates_angst[indices],
            origins_angst=self.origins_angst[indices],
            subtomogram_angles_deg=self.subtomogram_angles_deg[indices],
            angles_deg=self.angles_deg[indices],
            coordinates_px=rows(self.coordinates_px),
            random_subset=rows(self.random_subset),
            trajectories_angst=None
            if self.trajectories_angst is None
            else tuple(self.trajectories_angst[i] for i in indices),
        )


@dataclass(frozen=True)
class Project:
    """Everything that a job needs to know before it opens an image.

    Attributes
    ----------
    tilt_series
        In processing order (that of ``tomograms.star``), used or not.
    optics_groups
        In the order of the optics table.
    particles
        All particles of known tilt series, in table order.
    tables
        The tables behind the model, for writing them back with every column
        (:class:`portal_extract.relion_io.tables.ProjectTables`).
    """

    tilt_series: tuple[TiltSeries, ...]
    optics_groups: tuple[OpticsGroup, ...]
    particles: ParticleSet
    tables: Any = None

    @cached_property
    def particles_of(self) -> tuple[Ints, ...]:
        """For each tilt series, the indices of its particles, in table order."""
        return tuple(np.flatnonzero(self.particles.tilt_series == t) for t in range(len(self.tilt_series)))

    def part(self, series_index: int, particles: Ints) -> Project:
        """Make a small project of some particles of one tilt series, without tables.

        Parameters
        ----------
        series_index
            The tilt series.
        particles
            ``(n,)`` indices of particles, all of them in this tilt series.
        """
        chosen = replace(self.particles.take(particles), tilt_series=np.zeros(len(particles), dtype=np.int64))
        return Project((self.tilt_series[series_index],), self.optics_groups, chosen)
