"""The parts of ``portal-extract demo``: simulate, serve, and draw what was extracted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from portal_extract.demo.averaging import average_particles
from portal_extract.demo.extracted import read_extracted
from portal_extract.demo.phantom import phantom_volume
from portal_extract.demo.plan import RIBOSOME, DemoOptions
from portal_extract.demo.portal import RemotePortal, environment, serve_in_process
from portal_extract.demo.preview import TiltView, draw_preview
from portal_extract.demo.records import DATASET_ID
from portal_extract.demo.simulate import DemoDataset, simulate_portal
from portal_extract.running.events import Observer, ignore


@contextmanager
def demo_portal(
    folder: Path, options: DemoOptions | None = None, observer: Observer = ignore
) -> Iterator[tuple[DemoDataset, RemotePortal]]:
    """Simulate a data set (or find it there) and serve it from a process of its own.

    Parameters
    ----------
    folder
        Folder of the data set.
    options
        What to simulate; None for the default data set.
    observer
        Is told of each run that is simulated.

    Yields
    ------
    DemoDataset, RemotePortal
        The data set with its truth, and the addresses that serve it; both servers stop with the context.

    Raises
    ------
    OutputError
        The folder holds something else.
    SourceError
        The portal did not start.
    """
    dataset = simulate_portal(folder, options, observer)
    with serve_in_process(folder) as portal:
        yield dataset, portal


def serving_lines(portal_url: str, s3_endpoint_url: str) -> list[str]:
    """Shell lines that point any client at a portal.

    Parameters
    ----------
    portal_url, s3_endpoint_url
        Addresses of the API and of the S3 endpoint.
    """
    variables = environment(portal_url, s3_endpoint_url)
    return [f"export {name}={value}" for name, value in variables.items()]


def serve_until_stopped(
    portal: RemotePortal, say: Callable[[str], None], stop: threading.Event | None = None
) -> None:
    """Tell how to reach a portal, and wait for Control-C.

    Parameters
    ----------
    portal
        A running portal.
    say
        Is called with each line.
    stop
        Ends the waiting as well.
    """
    say(f"the portal holds data set {DATASET_ID}; point any client at it:")
    for line in serving_lines(portal.portal_url, portal.s3_endpoint_url):
        say(line)
    say("Control-C stops it")
    stop = stop or threading.Event()
    try:
        while not stop.wait(0.5):
            pass
    except KeyboardInterrupt:
        say("stopped")


def tilt_view(
    dataset: DemoDataset, run_name: str, object_name: str = RIBOSOME, box_angst: float = 440.0
) -> TiltView:
    """Find the tilt image nearest to the horizontal, with boxes where the particles truly are.

    Parameters
    ----------
    dataset
        The simulated data.
    run_name
        A run.
    object_name
        The particles to box.
    box_angst
        Side of the boxes.

    Raises
    ------
    NotFoundError
        There is no such run, or no such particle in it.
    """
    import zarr

    scene = dataset.scene(run_name)
    centres = dataset.particles(run_name, object_name).centres_angst
    tilt = int(np.argmin(np.where(scene.aligned, np.abs(scene.tilt_deg), np.inf)))
    group = zarr.open_group(dataset.zarr_path(run_name), mode="r")
    image = np.asarray(group["0"][tilt], dtype=np.float32)  # type: ignore[index]
    positions, _ = scene.project(centres)
    return TiltView(
        image=image,
        centres_px=positions[tilt],
        box_px=box_angst / scene.plan.pixel_size_angst,
        pixel_size_angst=scene.plan.pixel_size_angst,
        title=f"{run_name}: tilt image at {scene.tilt_deg[tilt]:.1f}°, {len(centres)} {object_name}s",
    )


def demo_preview(
    dataset: DemoDataset,
    out_dir: Path,
    png: Path,
    *,
    run_name: str | None = None,
    object_name: str = RIBOSOME,
) -> None:
    """Draw the picture of an extraction from the simulated portal, with the true density beside the average.

    Parameters
    ----------
    dataset
        The simulated data.
    out_dir
        Output folder of the extraction.
    png
        File to write.
    run_name
        Run whose tilt image is shown; None for the last one that can be extracted.
    object_name
        What was extracted.

    Raises
    ------
    StarFileError
        The folder holds no 2D extraction.
    NotFoundError
        There is no such run, or no such particle in it.
    """
    if run_name is None:
        run_name = [scene.name for scene in dataset.scenes if scene.plan.has_ctf][-1]
    extracted = read_extracted(out_dir)
    average = average_particles(extracted)
    reference = None
    if average is not None:
        reference = phantom_volume(object_name, average.volume.shape[0], average.pixel_size_angst)
    draw_preview(
        out_dir,
        png,
        tilt_view=tilt_view(dataset, run_name, object_name),
        average=average,
        reference=reference,
        title=f"portal-extract demo: {len(extracted)} particles streamed from a simulated portal",
    )
