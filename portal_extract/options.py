"""Options travel as one object per stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from portal_extract.errors import UnsupportedError

PathStyle = Literal["auto", "absolute", "relative"]
OutputMode = Literal["stack2d", "volume3d"]
OnError = Literal["stop", "skip"]
StackLayout = Literal["particle", "tomogram"]
Strategy = Literal["auto", "blocks", "chunks"]

KIB = 1 << 10
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class VolumeOptions:
    """What 3D pseudo-subtomograms add (RELION's names in brackets).

    Attributes
    ----------
    write_ctf, write_multiplicity, write_normalised, write_divided
        Additional volumes [--ctf, --multi, --nrm, --div].
    write_combined
        CTF and multiplicity volumes in one file [absence of --no_comb].
    snr
        Wiener offset 1/SNR of divided volumes; <= 0 uses the heuristic [--SNR].
    taper_px
        Soft edge of divided volumes in binned pixels [--taper].
    centre
        Subtract the mean of divided volumes [absence of --no_center].
    cone_weight, cone_angle_deg, cone_sigma0
        Down-weight a cone [--cone_weight, --cone_angle, --cone_sig0].
    cutoff_fraction
        Smallest dose weight inserted [--cutoff_fract].
    write_sum, write_particles
        Sum over all particles, and the volumes of each [--sum, absence of --no_writing].
    """

    write_ctf: bool = False
    write_multiplicity: bool = False
    write_normalised: bool = False
    write_divided: bool = False
    write_combined: bool = True
    snr: float = -1.0
    taper_px: float = 5.0
    centre: bool = True
    cone_weight: bool = False
    cone_angle_deg: float = 10.0
    cone_sigma0: float = 2.0
    cutoff_fraction: float = 0.01
    write_sum: bool = False
    write_particles: bool = True


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """What is extracted, in RELION's terms (RELION's names in brackets).

    Attributes
    ----------
    box_size
        Box of each particle in binned pixels, even [--b].
    crop_size
        Size of the output images in binned pixels, even; None for the box size [--crop].
    binning
        Real number >= 1 [--bin].
    max_dose_e_per_a2
        Tilt images with a higher accumulated dose are left out; None for no limit [--max_dose].
    min_frames
        Particles with fewer visible tilt images are left out [--min_frames].
    float16
        Write half-precision files (MRC mode 12) [--float16].
    ctf
        Multiply by CTF and dose weights; off also switches the dose weights off [absence of --no_ctf].
    circle_crop, circle_precrop
        Soft circular mask with background subtraction on the binned box, and on the unbinned box
        before anything else [absence of --no_circle_crop; --circle_precrop].
    invert_contrast
        [absence of --no_ic].
    apply_offsets
        Add refined origins to the coordinates [absence of --dont_apply_offsets].
    apply_orientations
        Move the particles' angles into the subtomogram frame; implies ``apply_offsets``
        [--apply_orientations].
    whiten
        [--whiten].
    grid_precorrection
        [--grid_precorr].
    mode
        2D stacks, or 3D pseudo-subtomograms [--stack2d, or its absence].
    volume
        Options of 3D pseudo-subtomograms.
    stack_layout
        One stack for each ``particle`` (RELION's), or one for each ``tomogram`` with a table of its images,
        for programs that take single images.
    """

    box_size: int
    crop_size: int | None = None
    binning: float = 1.0
    max_dose_e_per_a2: float | None = None
    min_frames: int = 1
    float16: bool = False
    ctf: bool = True
    circle_crop: bool = True
    circle_precrop: bool = False
    invert_contrast: bool = True
    apply_offsets: bool = True
    apply_orientations: bool = False
    whiten: bool = False
    grid_precorrection: bool = False
    mode: OutputMode = "stack2d"
    volume: VolumeOptions = VolumeOptions()
    stack_layout: StackLayout = "particle"

    @property
    def output_size(self) -> int:
        """Size of the output images in binned pixels."""
        return self.box_size if self.crop_size is None else self.crop_size

    @property
    def unbinned_box(self) -> int:
        """Side of the square cut from a tilt image, in unbinned pixels (RELION 5.0.1 behaviour)."""
        return int(self.binning * self.box_size + 0.5)

    @property
    def boundary(self) -> int:
        """Pixels cropped on each side of the box, in binned pixels."""
        return (self.box_size - self.output_size) // 2

    @property
    def offsets_applied(self) -> bool:
        """Whether refined origins enter the coordinates."""
        return self.apply_offsets or self.apply_orientations

    def check(self) -> None:
        """Refuse what cannot be honoured, all of it at once.

        Raises
        ------
        UnsupportedError
            Values that RELION itself gets wrong (odd sizes, binning below 1, an odd unbinned box), or
            that make no sense.
        """
        problems = list(self._problems())
        if problems:
            raise UnsupportedError(problems)

    def _problems(self) -> list[str]:
        found = []
        box, crop = self.box_size, self.output_size
        if box < 2 or box % 2:
            found.append(f"--box-size {box}: must be even and at least 2; use {max(2, box + box % 2)}")
        if self.crop_size is not None and (crop < 2 or crop % 2):
            found.append(f"--crop-size {crop}: must be even and at least 2; use {max(2, crop + crop % 2)}")
        if crop > box:
            found.append(f"--crop-size {crop} is larger than --box-size {box}: crop to at most the box")
        if not self.binning >= 1.0 or self.binning == float("inf"):
            found.append(f"--bin {self.binning:g}: must be a finite number of at least 1")
        elif self.binning != 1.0 and self.unbinned_box % 2:
            found.append(
                f"--bin {self.binning:g} with --box-size {box} makes an unbinned box of "
                f"{self.unbinned_box} pixels, which is odd: RELION reads uninitialised memory there; "
                "choose another box size"
            )
        if self.stack_layout == "tomogram" and self.mode != "stack2d":
            found.append(
                "--stack-layout tomogram: volumes are one file for each particle; use --output-mode stack2d"
            )
        if self.min_frames < 1:
            found.append(f"--min-frames {self.min_frames}: must be at least 1")
        if self.max_dose_e_per_a2 is not None and not self.max_dose_e_per_a2 > 0:
            found.append(f"--max-dose {self.max_dose_e_per_a2:g}: must be positive")
        return found


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How the work is run; nothing here changes a voxel.

    Attributes
    ----------
    workers
        Compute threads (per process); None for all cores.
    memory_bytes
        Bound for the working memory of a process.
    paths
        How STAR files name files: relative to the current directory when the output lies below it
        (``auto``, RELION's habit), always ``absolute``, or always ``relative``.
    overwrite
        Start anew in a folder that holds an earlier run.
    requests_in_flight
        Concurrent requests to a remote store, per process.
    total_requests
        Concurrent requests of all processes of a cluster together.
    on_error
        After a unit of work failed: ``stop`` when those at work are done, or ``skip`` it.
    strategy
        Of compressed chunks fetch whole ones, only the blocks that some box touches, or whatever is cheaper
        for each chunk.
    request_cost_bytes
        What one more request costs, in bytes that could have been transferred meanwhile.
    gap_bytes
        Ranges of one object closer than this are fetched in one request.
    cache_dir
        Folder for stored blocks that were fetched over a network, as an absolute path where other machines
        take part; None for no cache.
    cache_bytes
        Most bytes kept in ``cache_dir``.
    """

    workers: int | None = None
    memory_bytes: int = 2 * GIB
    paths: PathStyle = "auto"
    overwrite: bool = False
    requests_in_flight: int = 32
    total_requests: int = 512
    on_error: OnError = "stop"
    strategy: Strategy = "auto"
    request_cost_bytes: int = 64 * KIB
    gap_bytes: int = 16 * KIB
    cache_dir: str | None = None
    cache_bytes: int = 20 * GIB
