"""Pictures of a reconstruction for a person to look at: FSC curves, central slices, projections."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from portal_extract.reconstruction.fsc import GOLD_STANDARD, HALF, ShellCorrelation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Maps = NDArray[np.float32]

_DPI = 110
_AXES = (("z", "x", "y"), ("y", "x", "z"), ("x", "y", "z"))


def prepare() -> None:
    """Import what drawing needs, in a thread of its own: it takes half a second, and there is time now."""
    Thread(target=_figure, args=(1.0, 1.0), daemon=True).start()


def write_fsc_plot(path: Path, curves: ShellCorrelation, title: str = "") -> None:
    """Draw the FSC curves of two half maps as a PNG.

    Parameters
    ----------
    path
        File to write; it appears whole or not at all.
    curves
        From :func:`portal_extract.reconstruction.fsc.shell_correlation`.
    title
        What the maps are of.
    """
    figure = _figure(7.4, 5.0)
    axes = figure.add_subplot()
    x = curves.frequency_per_angst
    axes.axhline(0.0, color="0.8", linewidth=0.8)
    for curve, label, style in (
        (curves.unmasked, "unmasked", {"color": "0.6"}),
        (curves.masked, "masked", {"color": "tab:blue"}),
        (curves.randomised, "masked, phases randomised", {"color": "tab:red", "linewidth": 1.0}),
        (curves.corrected, "corrected", {"color": "black", "linewidth": 1.8}),
    ):
        axes.plot(x, curve, label=label, **style)
    lowest = min(float(np.min(c)) for c in (curves.unmasked, curves.corrected, curves.randomised))
    bottom = min(-0.1, lowest - 0.02)
    axes.set(xlim=(0, x[-1]), ylim=(bottom, 1.03), ylabel="Fourier shell correlation")
    for threshold in (GOLD_STANDARD, HALF):
        _mark(axes, curves, threshold, bottom)
    axes.set_xlabel("spatial frequency (1/Å)")
    axes.set_title(title, fontsize=10)
    _label_resolutions(axes, x[-1])
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    _save(figure, path)


def _mark(axes: Axes, curves: ShellCorrelation, threshold: float, bottom: float) -> None:
    """Draw a threshold, and the resolution where the corrected curve falls below it."""
    resolution = curves.resolution_at(threshold)
    axes.axhline(threshold, color="tab:green", linestyle="--", linewidth=0.8)
    if np.isfinite(resolution):
        axes.plot([1 / resolution] * 2, [bottom, threshold], color="tab:green", linestyle=":", linewidth=1.2)
        text = f"{threshold:g} to {resolution:.1f} Å"
    else:
        text = f"{threshold:g} not reached"
    axes.annotate(
        text, (0.012, threshold), xycoords=axes.get_yaxis_transform(), va="bottom", color="tab:green"
    )


def write_views(path: Path, volume: Maps, pixel_size_angst: float, title: str = "") -> None:
    """Draw the three central slices and the three projections of a map as a PNG.

    Parameters
    ----------
    path
        File to write; it appears whole or not at all.
    volume
        ``(n, n, n)`` map in z, y, x order; protein is drawn bright.
    pixel_size_angst
        For the scale bar.
    title
        What the map is of.
    """
    axes = [axis for axis, _, _ in _AXES]
    sums = [volume.sum(axis=column, dtype=np.float64) for column in range(3)]
    rows = [
        _slices(volume, ""),
        [(f"projection along {a}", image) for a, image in zip(axes, sums, strict=True)],
    ]
    _draw(path, rows, pixel_size_angst, title)


def write_halves(path: Path, halves: Sequence[Maps], pixel_size_angst: float, title: str = "") -> None:
    """Draw the three central slices of each half map, one half map below the other, as a PNG.

    Parameters
    ----------
    path, pixel_size_angst, title
        As for :func:`write_views`.
    halves
        Two maps ``(n, n, n)``.
    """
    rows = [_slices(volume, f"half {number}: ") for number, volume in enumerate(halves, start=1)]
    _draw(path, rows, pixel_size_angst, title)


def _slices(volume: Maps, name: str) -> list[tuple[str, NDArray[Any]]]:
    middle = volume.shape[0] // 2
    return [
        (f"{name}slice at {axis} = {middle}", np.take(volume, middle, axis=column))
        for column, (axis, _, _) in enumerate(_AXES)
    ]


def _draw(
    path: Path, rows: Sequence[Sequence[tuple[str, NDArray[Any]]]], pixel_size_angst: float, title: str
) -> None:
    """Draw rows of three pictures, seen along z, y and x."""
    figure = _figure(9.0, 6.6, layout=None)
    figure.subplots_adjust(left=0.035, right=0.985, bottom=0.045, top=0.91, wspace=0.1, hspace=0.2)
    grid = figure.subplots(len(rows), 3)
    for panels, pictures in zip(grid, rows, strict=True):
        for axes, (_, across, up), (what, image) in zip(panels, _AXES, pictures, strict=True):
            low, high = np.percentile(image, (0.5, 99.5))
            axes.imshow(
                image,
                cmap="gray",
                vmin=low,
                vmax=high if high > low else low + 1.0,
                origin="lower",
                interpolation="bicubic",
            )
            axes.set(xticks=[], yticks=[], xlabel=across, ylabel=up)
            axes.set_title(what, fontsize=9)
    _scale_bar(grid[0][0], len(rows[0][0][1]), pixel_size_angst)
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


def _label_resolutions(axes: Axes, last: float) -> None:
    """Mark resolutions in A along the upper edge."""
    upper = axes.secondary_xaxis("top")
    ticks = np.linspace(0, last, 7)[1:]
    upper.set_xticks(ticks, [f"{1 / tick:.1f} Å" for tick in ticks], fontsize=8)


def _scale_bar(axes: Axes, size: int, pixel_size_angst: float) -> None:
    """Draw a bar of a round length, about a quarter of the map."""
    target = 0.25 * size * pixel_size_angst
    unit = 10.0 ** np.floor(np.log10(target))
    length = max(step * unit for step in (1, 2, 5) if step * unit <= target)
    start = 0.06 * size
    axes.plot([start, start + length / pixel_size_angst], [start, start], color="white", linewidth=3)
    axes.text(start, start * 1.4, f"{length:g} Å", color="white", fontsize=8, va="bottom")


def _figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """Make a figure of its own, outside of matplotlib's global list; a layout to be found takes time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    """Write beside the target and move into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        figure.savefig(
            partial, dpi=_DPI, format="png", pil_kwargs={"compress_level": 3}, metadata={"Software": None}
        )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
