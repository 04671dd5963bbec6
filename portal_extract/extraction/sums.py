"""The sum over all pseudo-subtomograms of a job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from portal_extract.extraction.tasks import sum_path
from portal_extract.extraction.volumes import VolumeSum
from portal_extract.model import Project
from portal_extract.options import ExtractOptions
from portal_extract.relion_io.mrc import write_mrc
from portal_extract.running.units import UnitResult


def write_sums(
    project: Project, options: ExtractOptions, output_dir: Path, results: Sequence[UnitResult]
) -> None:
    """Add the sums of all units and write ``sum_data.mrc``, ``sum_weight.mrc`` and ``sum_div.mrc``.

    Units are added in the order of their first particle, so the result does not depend on which was
    finished first. The pixel size is that of the first tilt series (RELION 5.0.1 behaviour).
    """
    total = VolumeSum(options.output_size)
    for result in sorted(results, key=lambda r: r.particles[0]):
        with np.load(sum_path(output_dir, result.particles)) as part:
            total.add(part["data"], part["weight"])
    pixel = options.binning * project.tilt_series[0].pixel_size_angst
    for name, volume in total.volumes(options.volume).items():
        write_mrc(output_dir / f"{name}.mrc", volume, pixel, kind="volume")
