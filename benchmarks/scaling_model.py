"""How long a large job takes: a model, the measurements that it was held to, and what it says of 64 workers.

python benchmarks/scaling_model.py            # print both tables
python benchmarks/scaling_model.py --write    # and put them into docs/scaling.md
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scaling.md"
BEGIN, END = "<!-- made by benchmarks/scaling_model.py: {} -->", "<!-- end -->"


@dataclass(frozen=True)
class Job:
    """A job of equal units.

    Attributes
    ----------
    n_units
        Tilt series, or strips of them.
    compute_s
        CPU time of a unit on one thread.
    n_requests, bytes_read
        Of a unit; 0 where the images are in the page cache.
    n_files, bytes_written
        Of a unit.
    """

    n_units: int
    compute_s: float
    n_requests: int = 0
    bytes_read: float = 0.0
    n_files: int = 300
    bytes_written: float = 300 * 41 * 64 * 64 * 4.0


@dataclass(frozen=True)
class Place:
    """Where a job runs.

    Attributes
    ----------
    n_slots
        Units that run at a time.
    latency_s
        From a request to its first byte, and what the client itself needs.
    stream_bytes_per_s
        Bandwidth of one connection.
    site_bytes_per_s
        Bandwidth of all workers together.
    requests, total_requests
        The options of that name.
    handout_s
        Time of the program and the scheduler for one unit.
    """

    n_slots: int
    latency_s: float = 0.05
    stream_bytes_per_s: float = 85e6
    site_bytes_per_s: float = math.inf
    requests: int = 32
    total_requests: int = 512
    handout_s: float = 0.0065


def requests_in_flight(place: Place) -> int:
    """Give the requests in flight of one unit, as in :mod:`portal_extract.running.cluster`."""
    handed_out = place.n_slots + place.n_slots // 4 + 1
    return max(1, min(place.requests, place.total_requests // handed_out))


def unit_seconds(job: Job, place: Place) -> float:
    """Time of one unit: fetching and computing overlap hardly on one thread, so they are added."""
    fetch = 0.0
    if job.n_requests:
        per_request = place.latency_s + job.bytes_read / job.n_requests / place.stream_bytes_per_s
        fetch = max(
            job.n_requests * per_request / requests_in_flight(place),
            job.bytes_read / (place.site_bytes_per_s / place.n_slots),
        )
    return fetch + job.compute_s


def seconds(job: Job, place: Place) -> float:
    """Time of a job: units in rounds, and handing out, which gets in the way when it takes as long."""
    rounds = math.ceil(job.n_units / place.n_slots)
    return math.hypot(rounds * unit_seconds(job, place), job.n_units * place.handout_s)


#: case, job, place, seconds found; see docs/scaling.md for how
MEASURED = (
    ("box 64, 10 units, 1 process", Job(10, 0.79), Place(1), 8.1),
    ("box 64, 10 units, 2 processes", Job(10, 0.79), Place(2), 4.1),
    ("idle units of 0.8 s, 8 slots", Job(160, 0.8), Place(8), 16.3),
    ("idle units of 0.8 s, 16 slots", Job(320, 0.8), Place(16), 16.3),
    ("idle units of 0.8 s, 32 slots", Job(640, 0.8), Place(32), 17.2),
    ("idle units of 0.8 s, 64 slots", Job(1280, 0.8), Place(64), 19.9),
    ("idle units of 0.8 s, 128 slots", Job(2560, 0.8), Place(128), 27.0),
    ("666 requests, 1 in flight", Job(1, 0.8, 666, 1.75e8), Place(1, 0.055, math.inf, requests=1), 37.5),
    ("666 requests, 2 in flight", Job(1, 0.8, 666, 1.75e8), Place(1, 0.055, math.inf, requests=2), 18.2),
    ("666 requests, 4 in flight", Job(1, 0.8, 666, 1.75e8), Place(1, 0.055, math.inf, requests=4), 9.3),
    ("666 requests, 8 in flight", Job(1, 0.8, 666, 1.75e8), Place(1, 0.055, math.inf, requests=8), 5.8),
    ("666 requests, 16 in flight", Job(1, 0.8, 666, 1.75e8), Place(1, 0.055, math.inf, requests=16), 3.6),
)

#: 41 tilt images of 3838 x 3710 float32, of which 300 particles in a box of 64 at binning 4 touch all
SERIES = Job(10_000, 4.7, 656, 2.1e9)
PREDICTED = (
    ("100 ms and 10 Gbit/s from the bucket", SERIES, Place(64, 0.1, site_bytes_per_s=1.25e9)),
    ("in its region, 4 nodes of 25 Gbit/s", SERIES, Place(64, 0.03, site_bytes_per_s=12.5e9)),
    ("images on a local file system", Job(10_000, 4.7), Place(64)),
)


def measured_table() -> list[str]:
    """Lines of the table that compares."""
    lines = ["| case | found, s | model, s | model / found |", "|---|---|---|---|"]
    for name, job, place, found in MEASURED:
        said = seconds(job, place)
        lines.append(f"| {name} | {found:.1f} | {said:.1f} | {said / found:.2f} |")
    return lines


def predicted_table() -> list[str]:
    """Lines of the table that predicts."""
    head = "| place | hours | GET/s | GB/s read | GB/s written | stacks/s | program busy |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for name, job, place in PREDICTED:
        time = seconds(job, place)
        values = (
            f"{time / 3600:.1f}",
            f"{job.n_units * job.n_requests / time:.0f}",
            f"{job.n_units * job.bytes_read / time / 1e9:.1f}",
            f"{job.n_units * job.bytes_written / time / 1e9:.1f}",
            f"{job.n_units * job.n_files / time:.0f}",
            f"{job.n_units * place.handout_s / time:.0%}",
        )
        lines.append(f"| {name} | {' | '.join(values)} |")
    return lines


def filled(page: str) -> str:
    """Give the page with both tables."""
    for name, lines in (("measured", measured_table()), ("predicted", predicted_table())):
        before, rest = page.split(BEGIN.format(name))
        after = rest[rest.index(END) :]
        page = before + "\n".join([BEGIN.format(name), *lines, ""]) + after
    return page


def main() -> None:
    """Print the tables, or write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print("\n".join([*measured_table(), "", *predicted_table()]))


if __name__ == "__main__":
    main()
