"""Options shared by commands, and how they become option objects."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from portal_extract.cli.config import read_config
from portal_extract.cli.grouped import option, stack_options
from portal_extract.errors import UnsupportedError, UsageError
from portal_extract.options import ExtractOptions, PathStyle, RunOptions, VolumeOptions

BOX, SIGNAL, VOLUME, OUTPUT, RUN, READ, TALK = (
    "Particles (RELION's names in brackets)",
    "Signal",
    "3D pseudo-subtomograms",
    "Output",
    "Running",
    "Reading",
    "Messages and configuration",
)

if TYPE_CHECKING:
    IntType = click.ParamType[int]
    StrType = click.ParamType[str]
else:  # older versions of click have no such parameters
    IntType = StrType = click.ParamType

_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class ByteSize(IntType):
    """A size in bytes, such as 2GiB or 500MB.

    Parameters
    ----------
    at_least
        The smallest size that makes sense.
    """

    name = "size"

    def __init__(self, at_least: int = 1) -> None:
        self._at_least = at_least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse a size; K, M, G and T are powers of 1024 with or without ``iB``, of 1000 with ``B`` alone."""
        n_bytes = value if isinstance(value, int) else self._parse(str(value), param, ctx)
        if n_bytes < self._at_least:
            least = f"{self._at_least >> 20}MiB" if self._at_least >> 20 else f"{self._at_least} byte"
            self.fail(f"{value} is too small; give at least {least}", param, ctx)
        return n_bytes

    def _parse(self, text: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([KMGT]?)(iB|B)?\s*", text, re.IGNORECASE)
        if not match:
            self.fail(f"{text!r} is not a size; write for example 2GiB", param, ctx)
        number, unit, suffix = float(match[1]), match[2].upper(), (match[3] or "").lower()
        factor = 1000 ** "_KMGT".index(unit) if suffix == "b" and unit else _UNITS[unit]
        return int(number * factor)


box_options = stack_options(
    option("--box-size", type=int, required=True, group=BOX, help="Box in binned pixels, even [--b]."),
    option("--crop-size", type=int, group=BOX, help="Size of the output images in binned pixels, even [--crop].  [default: the box]"),
    option("--bin", "binning", type=float, default=1.0, group=BOX, help="Binning, any real number from 1 [--bin]."),
    option("--max-dose", type=float, group=BOX, help="Leave out tilt images with more accumulated dose, e/A^2 [--max_dose].  [default: no limit]"),
    option("--min-frames", type=int, default=1, group=BOX, help="Leave out particles that fewer tilt images see [--min_frames]."),
)  # fmt: skip

signal_options = stack_options(
    option("--ctf/--no-ctf", default=True, group=SIGNAL, help="Multiply by CTF and dose weights, or by neither [--no_ctf]."),
    option("--circle-crop/--no-circle-crop", default=True, group=SIGNAL, help="Soft circular mask, background subtracted [--no_circle_crop]."),
    option("--circle-precrop", is_flag=True, group=SIGNAL, help="The same on the unbinned box before anything else [--circle_precrop]."),
    option("--ic/--no-ic", "invert_contrast", default=True, group=SIGNAL, help="Invert the contrast [--no_ic]."),
    option("--dont-apply-offsets", is_flag=True, group=SIGNAL, help="Leave refined origins out of the coordinates [--dont_apply_offsets]."),
    option("--apply-orientations", is_flag=True, group=SIGNAL, help="Move the particles' angles into the subtomogram frame [--apply_orientations]."),
    option("--whiten", is_flag=True, group=SIGNAL, help="Divide by the noise amplitude of each tilt image [--whiten]."),
    option("--grid-precorr", is_flag=True, group=SIGNAL, help="Gridding pre-correction [--grid_precorr]."),
    option("--real-subtomo", is_flag=True, hidden=True, group=SIGNAL),
)  # fmt: skip

volume_options = stack_options(
    option("--output-mode", type=click.Choice(["stack2d", "volume3d"]), default="stack2d", group=VOLUME, help="2D stacks [--stack2d], or 3D pseudo-subtomograms."),
    option("--write-ctf", is_flag=True, group=VOLUME, help="Also write the squared CTF [--ctf]."),
    option("--write-multiplicity", is_flag=True, group=VOLUME, help="Also write the number of samples of each voxel [--multi]."),
    option("--write-normalised", is_flag=True, group=VOLUME, help="Also write data and CTF divided by that number [--nrm]."),
    option("--write-divided", is_flag=True, group=VOLUME, help="Also write CTF-corrected volumes [--div]."),
    option("--combined/--no-combined", default=True, group=VOLUME, help="Write CTF and multiplicity as one file of weights [--no_comb]."),
    option("--snr", type=float, default=-1.0, group=VOLUME, help="Signal-to-noise ratio of CTF-corrected volumes; a heuristic if not positive [--SNR]."),
    option("--taper", type=float, default=5.0, group=VOLUME, help="Soft edge of CTF-corrected volumes in binned pixels [--taper]."),
    option("--center/--no-center", default=True, group=VOLUME, help="Subtract the mean of CTF-corrected volumes [--no_center]."),
    option("--cone-weight", is_flag=True, group=VOLUME, help="Down-weight a cone along the beam [--cone_weight]."),
    option("--cone-angle", type=float, default=10.0, group=VOLUME, help="Opening angle of the cone, degrees [--cone_angle]."),
    option("--cone-sig0", type=float, default=2.0, group=VOLUME, help="Width of the cone at the origin, voxels [--cone_sig0]."),
    option("--cutoff-fract", type=float, default=0.01, group=VOLUME, help="Leave out samples with a smaller dose weight [--cutoff_fract]."),
    option("--sum", "write_sum", is_flag=True, group=VOLUME, help="Also write the sum over all particles [--sum]."),
    option("--writing/--no-writing", default=True, group=VOLUME, help="Write the volumes of each particle [--no_writing]."),
)  # fmt: skip

store_options = stack_options(
    option("--s3-endpoint-url", envvar=["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"], group=RUN, help="S3 endpoint; also environment AWS_ENDPOINT_URL_S3.  [default: Amazon's, us-west-2]"),
)  # fmt: skip

output_options = stack_options(
    option("--output-dir", "-o", type=click.Path(file_okay=False), required=True, group=OUTPUT, help="Folder for the results [--o]."),
    option("--float16", is_flag=True, group=OUTPUT, help="Half-precision stacks, MRC mode 12 [--float16]."),
    option("--stack-layout", type=click.Choice(["particle", "tomogram"]), default="particle", group=OUTPUT, help="One stack for each particle, as RELION's tomography jobs want it; or one for each tomogram, with images.star for programs that take single images."),
    option("--paths", type=click.Choice(["auto", "absolute", "relative"]), default="auto", group=OUTPUT, help="How STAR files name files; auto is relative when the output lies below the current folder."),
    option("--overwrite", is_flag=True, group=OUTPUT, help="Remove the results of an earlier run in the folder."),
    option("--dry-run", is_flag=True, group=OUTPUT, help="Say what would be done; read no pixel and write nothing."),
)  # fmt: skip

run_options = stack_options(
    option("--workers", type=click.IntRange(1), group=RUN, help="Computing threads.  [default: all cores]"),
    option("--memory", type=ByteSize(at_least=16 << 20), default="2GiB", group=RUN, help="Bound for the working memory."),
    option("--requests", type=click.IntRange(1, 1024), default=32, group=RUN, help="Concurrent requests to a remote store."),
    option("--read", "strategy", type=click.Choice(["auto", "blocks", "chunks"]), default="auto", group=READ, help="Of compressed chunks fetch the blocks that some box touches, whole chunks, or whatever is cheaper for each chunk."),
    option("--request-cost", type=ByteSize(at_least=0), default="64KiB", group=READ, help="What one more request costs, in bytes that pass meanwhile; more where the store is far and the line is fast."),
    option("--gap", type=ByteSize(at_least=0), default="16KiB", group=READ, help="Fetch ranges of one object that are closer than this in one request."),
    option("--cache-dir", type=click.Path(file_okay=False, resolve_path=True), group=READ, help="Keep blocks fetched over the network in this folder, so that another extraction fetches only what is new; processes may share it.  [default: no cache]"),
    option("--cache-size", type=ByteSize(at_least=1 << 20), default="20GiB", group=READ, help="Bound for --cache-dir; what was used longest ago is dropped."),
)  # fmt: skip

talk_options = stack_options(
    option("--config", type=click.Path(dir_okay=False), is_eager=True, expose_value=False, callback=read_config, group=TALK, help="TOML file with options; the command line wins."),
    option("--quiet", "-q", is_flag=True, group=TALK, help="Print nothing but errors."),
    option("--json", "as_json", is_flag=True, group=TALK, help="Print the summary as JSON on standard output."),
    option("--debug", is_flag=True, group=TALK, help="Show tracebacks."),
)  # fmt: skip


class Listed(StrType):
    """Values separated by commas; the option can be repeated too."""

    name = "list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Leave the text; :func:`listed` cuts it, so that repeated options join."""
        if isinstance(value, (list, tuple)):
            return ",".join(map(str, value))
        return str(value)


def listed(texts: tuple[str, ...], kind: type = str, option: str = "") -> tuple[Any, ...]:
    """Cut comma-separated texts into values, each once.

    Names of objects can hold commas: a comma with a blank behind it does not separate names.

    Parameters
    ----------
    texts
        What was given, once or several times.
    kind
        Type of the values.
    option
        Names the option in the message.

    Raises
    ------
    UsageError
        A value is not of the kind.
    """
    separator = r",(?!\s)" if kind is str else ","
    values = [part.strip() for text in texts for part in re.split(separator, text) if part.strip()]
    try:
        return tuple(dict.fromkeys(kind(value) for value in values))
    except ValueError as error:
        raise UsageError(
            f"{option} {','.join(values)}: ids are whole numbers, separated by commas"
        ) from error


def extract_options(values: Mapping[str, Any]) -> ExtractOptions:
    """Build the options of an extraction from parsed values.

    Raises
    ------
    UnsupportedError
        What cannot be honoured.
    """
    if values["real_subtomo"]:
        raise UnsupportedError(
            [
                "--real-subtomo: cutting from tomograms [--real_subtomo] is experimental in RELION and not offered; extract from the tilt series instead"
            ]
        )
    options = ExtractOptions(
        box_size=values["box_size"],
        crop_size=values["crop_size"],
        binning=values["binning"],
        max_dose_e_per_a2=values["max_dose"],
        min_frames=values["min_frames"],
        float16=values["float16"],
        ctf=values["ctf"],
        circle_crop=values["circle_crop"],
        circle_precrop=values["circle_precrop"],
        invert_contrast=values["invert_contrast"],
        apply_offsets=not values["dont_apply_offsets"],
        apply_orientations=values["apply_orientations"],
        whiten=values["whiten"],
        grid_precorrection=values["grid_precorr"],
        mode=values["output_mode"],
        stack_layout=values["stack_layout"],
        volume=VolumeOptions(
            write_ctf=values["write_ctf"],
            write_multiplicity=values["write_multiplicity"],
            write_normalised=values["write_normalised"],
            write_divided=values["write_divided"],
            write_combined=values["combined"],
            snr=values["snr"],
            taper_px=values["taper"],
            centre=values["center"],
            cone_weight=values["cone_weight"],
            cone_angle_deg=values["cone_angle"],
            cone_sigma0=values["cone_sig0"],
            cutoff_fraction=values["cutoff_fract"],
            write_sum=values["write_sum"],
            write_particles=values["writing"],
        ),
    )
    if values["dont_apply_offsets"] and values["apply_orientations"]:
        raise UsageError("--dont-apply-offsets and --apply-orientations exclude each other: drop one of them")
    options.check()
    return options


def running_options(values: Mapping[str, Any]) -> RunOptions:
    """Build the options of a run from parsed values.

    Raises
    ------
    UsageError
        Options that contradict each other.
    """
    paths: PathStyle = values["paths"]
    if values["cache_dir"] and values["strategy"] == "chunks":
        raise UsageError("--cache-dir keeps blocks, not whole chunks: leave out --read chunks")
    return RunOptions(
        workers=values["workers"],
        memory_bytes=values["memory"],
        paths=paths,
        overwrite=values["overwrite"],
        requests_in_flight=values["requests"],
        total_requests=values["total_requests"],
        on_error=values["on_error"],
        strategy=values["strategy"],
        request_cost_bytes=values["request_cost"],
        gap_bytes=values["gap"],
        cache_dir=values["cache_dir"],
        cache_bytes=values["cache_size"],
    )
