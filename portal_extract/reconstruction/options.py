"""Options of a reconstruction, as one object."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from portal_extract.errors import UnsupportedError

VisibleFrames = Literal["geometric", "stored"]


@dataclass(frozen=True, slots=True)
class ReconstructOptions:
    """What is reconstructed, in RELION's terms (RELION's names in brackets).

    Attributes
    ----------
    box_size
        Box of each particle and of the 3D transform in binned pixels, even [--b].
    crop_size
        Size of the final maps in binned pixels, even; None or the box size for no cropping [--crop].
    binning
        Real number >= 1 [--bin].
    symmetry
        Point group, or path of a symmetry file [--sym].
    helical_units
        Number of asymmetric units; 1 for no helix [--nr_helical_asu].
    helical_rise_angst, helical_twist_deg
        Helical symmetry [--helical_rise, --helical_twist].
    snr
        Wiener offset 1/SNR of the CTF correction; <= 0 uses the heuristic [--SNR].
    ctf
        Weight by CTF and dose; off also switches the dose weights off [absence of --no_ctf].
    whiten
        [--whiten].
    circle_crop
        Soft circular mask with background subtraction on the unbinned boxes [absence of
        --no_circle_crop].
    taper_px
        Soft edge of the final maps in binned pixels [--taper].
    cutoff_fraction
        Smallest dose weight inserted [--cutoff_fract].
    max_dose_e_per_a2
        Tilt images with a higher accumulated dose are left out; None for no limit (not in RELION).
    visible_frames
        ``geometric``: the tilt images whose boxes lie inside, whatever the particle table says (RELION
        5.0.1 behaviour). ``stored``: of these only those that ``rlnTomoVisibleFrames`` names.
    make_subsets
        Draw half sets at random where ``rlnRandomSubset`` is absent.
    seed
        Seed of that draw.
    """

    box_size: int
    crop_size: int | None = None
    binning: float = 1.0
    symmetry: str = "C1"
    helical_units: int = 1
    helical_rise_angst: float = 0.0
    helical_twist_deg: float = 0.0
    snr: float = -1.0
    ctf: bool = True
    whiten: bool = False
    circle_crop: bool = True
    taper_px: float = 10.0
    cutoff_fraction: float = 0.01
    max_dose_e_per_a2: float | None = None
    visible_frames: VisibleFrames = "geometric"
    make_subsets: bool = False
    seed: int = 0

    @property
    def output_size(self) -> int:
        """Side of the final maps in binned pixels."""
        return self.crop_size if self.is_cropped and self.crop_size is not None else self.box_size

    @property
    def is_cropped(self) -> bool:
        """Whether the final maps are smaller than the box, so that uncropped maps are written as well."""
        return self.crop_size is not None and self.crop_size < self.box_size

    @property
    def unbinned_box(self) -> int:
        """Side of the square cut from a tilt image, in unbinned pixels (RELION 5.0.1 behaviour)."""
        return int(self.binning * self.box_size + 0.5)

    @property
    def visibility_radius_px(self) -> float:
        """Distance that a particle must keep from the image border, in unbinned pixels.

        Half the box size, not multiplied by the binning (RELION 5.0.1 behaviour): boxes of binned
        reconstructions stick out of the image and are continued by its border pixels.
        """
        return self.box_size / 2.0

    @property
    def has_symmetry(self) -> bool:
        """Whether the transforms are symmetrised."""
        return self.symmetry.upper() != "C1" or self.helical_units > 1

    def check(self) -> None:
        """Refuse what cannot be honoured, all of it at once.

        Raises
        ------
        UnsupportedError
            Values that RELION itself gets wrong (odd sizes, binning below 1, an odd unbinned box,
            whitening without CTF), or that make no sense.
        """
        problems = [*self._problems_of_size(), *self._problems_of_symmetry(), *self._problems_of_weights()]
        if problems:
            raise UnsupportedError(problems)

    def _problems_of_size(self) -> Iterator[str]:
        box, crop = self.box_size, self.crop_size
        if box < 2 or box % 2:
            yield f"--box-size {box}: must be even and at least 2; use {max(2, box + box % 2)}"
        if crop is not None and (crop < 2 or crop % 2):
            yield f"--crop-size {crop}: must be even and at least 2; use {max(2, crop + crop % 2)}"
        if crop is not None and crop > box:
            yield f"--crop-size {crop} is larger than --box-size {box}: crop to at most the box"
        if not self.binning >= 1.0 or self.binning == float("inf"):
            yield f"--bin {self.binning:g}: must be a finite number of at least 1"
        elif self.binning != 1.0 and self.unbinned_box % 2:
            yield (
                f"--bin {self.binning:g} with --box-size {box} makes an unbinned box of "
                f"{self.unbinned_box} pixels, which is odd: RELION reads uninitialised memory there; "
                "choose another box size"
            )

    def _problems_of_symmetry(self) -> Iterator[str]:
        from portal_extract.reconstruction.symmetry import point_group_operators

        try:
            point_group_operators(self.symmetry)
        except UnsupportedError as error:
            yield from error.problems
        if self.helical_units < 1:
            yield f"--helical-nr-asu {self.helical_units}: must be at least 1"
        elif self.helical_units > 1 and self.helical_rise_angst == 0 and self.helical_twist_deg == 0:
            yield (
                f"--helical-nr-asu {self.helical_units} without --helical-rise and --helical-twist: "
                "give at least one of them"
            )

    def _problems_of_weights(self) -> Iterator[str]:
        if self.whiten and not self.ctf:
            yield (
                "--whiten with --no-ctf: RELION multiplies the weights anew for every particle there; "
                "leave one of them out"
            )
        if not 0.0 <= self.cutoff_fraction < 1.0:
            yield f"--cutoff-fract {self.cutoff_fraction:g}: must be at least 0 and less than 1"
        if not self.taper_px >= 0.0:
            yield f"--taper {self.taper_px:g}: must not be negative"
        if self.max_dose_e_per_a2 is not None and not self.max_dose_e_per_a2 > 0:
            yield f"--max-dose {self.max_dose_e_per_a2:g}: must be positive"
        if self.visible_frames not in ("geometric", "stored"):
            yield f"--visible-frames {self.visible_frames}: must be geometric or stored"
