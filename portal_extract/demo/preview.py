"""A picture of what an extraction did: a tilt image with its boxes, particle images, and their average."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from portal_extract.demo.averaging import Average, average_particles
from portal_extract.demo.extracted import Extracted, read_extracted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
Images = NDArray[np.float32]
BOX_COLOUR = "#ffb000"
DISPLAY_PX = 700
PREVIEW_DPI = 110
GRID = (3, 8)


@dataclass(frozen=True)
class TiltView:
    """A tilt image and where particles are in it.

    Attributes
    ----------
    image
        ``(height, width)`` unbinned pixels.
    centres_px
        ``(N, 2)`` x, y of the particles, origin at the centre of pixel (0, 0).
    box_px
        Side of a box in unbinned pixels.
    pixel_size_angst
        Pixel size.
    title
        What it is.
    """

    image: Images
    centres_px: Floats
    box_px: float
    pixel_size_angst: float
    title: str


def draw_preview(
    out_dir: Path,
    png: Path,
    *,
    tilt_view: TiltView | None = None,
    average: Average | None = None,
    reference: Images | None = None,
    title: str = "",
) -> None:
    """Draw the picture of an extraction.

    Parameters
    ----------
    out_dir
        Output folder of a 2D extraction: ``particles.star`` and stacks.
    png
        File to write; it appears whole or not at all.
    tilt_view
        A tilt image with boxes; left out if None.
    average
        A 3D average; None makes a quick one if the folder tells the geometry.
    reference
        ``(n, n, n)`` true density of the pixel size of the average, to be shown beside it.
    title
        Headline.

    Raises
    ------
    StarFileError
        The folder holds no 2D extraction.
    """
    extracted = read_extracted(out_dir)
    if average is None:
        average = average_particles(extracted)
    figure = _figure(16.0 if tilt_view else 8.0, 8.9)
    figure.suptitle(title, fontsize=13)
    # T tilt image, P particles, A average
    rows = ["P"] if average is None else ["P", "A"]
    if tilt_view is not None:
        rows = [f"T{row}" for row in rows]
    axes = figure.subplot_mosaic(
        ";".join(rows),
        width_ratios=(1.1, 1.0)[-len(rows[0]) :],
        height_ratios=(GRID[0] / GRID[1], 2 / 3)[: len(rows)],
    )
    if tilt_view is not None:
        _draw_tilt_view(axes["T"], tilt_view)
    _draw_particles(axes["P"], extracted)
    if average is not None:
        _draw_average(axes["A"], average, reference)
    _save(figure, png)


def _draw_tilt_view(axes: Axes, view: TiltView) -> None:
    from matplotlib.patches import Rectangle

    step = max(1, -(-max(view.image.shape) // DISPLAY_PX))
    height, width = (size // step for size in view.image.shape)
    trimmed = view.image[: height * step, : width * step].astype(np.float64)
    shown = gaussian_filter(trimmed.reshape(height, step, width, step).mean(axis=(1, 3)), 1.0)
    low, high = np.percentile(shown, (0.3, 99.7))
    # pixel (0, 0) of the shown image is centred on the middle of its unbinned pixels
    extent = (-0.5, width * step - 0.5, -0.5, height * step - 0.5)
    axes.imshow(shown, cmap="gray", vmin=low, vmax=high, origin="lower", extent=extent)
    half = view.box_px / 2
    for x, y in view.centres_px:
        axes.add_patch(
            Rectangle(
                (x - half, y - half),
                view.box_px,
                view.box_px,
                fill=False,
                edgecolor=BOX_COLOUR,
                linewidth=0.9,
            )
        )
    axes.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[])
    axes.set_title(view.title, fontsize=10)
    _scale_bar(axes, view.pixel_size_angst, view.image.shape[1] / 4)


def _draw_particles(axes: Axes, extracted: Extracted) -> None:
    rows, columns = GRID
    chosen = np.linspace(0, len(extracted) - 1, min(rows * columns, len(extracted))).astype(int)
    images = [extracted.lowest_tilt_image(int(index)).astype(np.float64) for index in chosen]
    size = images[0].shape[0]
    tiles = []
    for image in images:
        smooth = gaussian_filter(image, max(0.7, size / 40))
        tiles.append(_unit_range(smooth, -2.2 * smooth.std(), 3.2 * smooth.std()))
    _show_mosaic(axes, tiles, columns)
    axes.set_title(f"{len(images)} of {len(extracted)} particles at their lowest tilt, smoothed", fontsize=10)
    _scale_bar(axes, float(extracted.pixel_sizes_angst[chosen[0]]), size / 2)


def _draw_average(axes: Axes, average: Average, reference: Images | None) -> None:
    size = average.volume.shape[0] * 3 // 4
    volumes = [average.volume] if reference is None else [average.volume, reference]
    tiles = []
    for volume in volumes:
        inner = _centre(volume, size)
        for axis in range(3):
            projection = gaussian_filter(inner.sum(axis=axis, dtype=np.float64), 0.7)
            tiles.append(_unit_range(projection, *np.percentile(projection, (2.0, 99.8))))
    _show_mosaic(axes, tiles, 3)
    what = f"average of {average.n_particles} particles ({average.n_images} images)"
    if reference is not None:
        what = f"above: {what}; below: the true density"
    axes.set_title(f"{what}\nprojections along z, y, x", fontsize=10)
    _scale_bar(axes, average.pixel_size_angst, size / 4)


def _unit_range(image: Floats, low: float, high: float) -> Floats:
    """Map low..high to 0..1."""
    return np.asarray(np.clip((image - low) / max(high - low, 1e-30), 0.0, 1.0), dtype=np.float64)


def _show_mosaic(axes: Axes, tiles: list[Floats], columns: int) -> None:
    """Show images in rows of equal size, with narrow gaps."""
    height, width = tiles[0].shape
    gap = max(1, width // 40)
    rows = -(-len(tiles) // columns)
    mosaic = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), np.nan)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        top, left = (rows - 1 - row) * (height + gap), column * (width + gap)
        mosaic[top : top + height, left : left + width] = tile
    axes.imshow(mosaic, cmap="gray", origin="lower", vmin=0.0, vmax=1.0, interpolation="antialiased")
    axes.set_axis_off()


def _centre(volume: Images, size: int) -> Images:
    start = volume.shape[0] // 2 - size // 2
    part = slice(start, start + size)
    return volume[part, part, part]


def _scale_bar(axes: Axes, pixel_size_angst: float, longest_px: float) -> None:
    """Draw a bar of a round length in the lower left corner, at most so many pixels long."""
    from matplotlib.patheffects import withStroke

    target = longest_px * pixel_size_angst
    unit = 10.0 ** np.floor(np.log10(target))
    length = max(step * unit for step in (1, 2, 5) if step * unit <= target)
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    x, y = left + 0.02 * (right - left), bottom + 0.02 * (right - left)
    outline = [withStroke(linewidth=5, foreground="black")]
    axes.plot([x, x + length / pixel_size_angst], [y, y], color="white", linewidth=3, path_effects=outline)
    axes.annotate(
        f"{length / 10:g} nm",
        (x, y),
        xytext=(0, 4),
        textcoords="offset points",
        color="white",
        fontsize=9,
        path_effects=[withStroke(linewidth=2, foreground="black")],
    )
    axes.set(xlim=(left, right), ylim=(bottom, top))


def _figure(width: float, height: float) -> Figure:
    """Make a figure of its own, outside of matplotlib's global list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        figure.savefig(partial, dpi=PREVIEW_DPI, format="png", metadata={"Software": "portal-extract"})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
