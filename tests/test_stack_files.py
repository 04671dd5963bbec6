"""Stacks that grow in any order: the bytes, how often files are opened, disks that fail, memory."""

from __future__ import annotations

import errno
import os
import tempfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portal_extract.errors import OutputError
from portal_extract.extraction.stack_files import StackFiles, images_that_wait
from portal_extract.relion_io.half import to_half

SHAPE = (4, 6)
HEADER = bytes(range(256)) * 4


def images_of(n: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, *SHAPE)).astype(np.float32)


def at_once(images: np.ndarray, float16: bool) -> bytes:
    return HEADER + (to_half(images) if float16 else images).tobytes()


def open_files(folder: Path, lengths, *, float16: bool = False, waiting: int = 1) -> StackFiles:
    paths = [folder / "stacks" / f"{n}.mrcs" for n in range(len(lengths))]
    return StackFiles(paths, np.array(lengths), SHAPE, float16=float16, images_waiting=waiting)


def put_all(files: StackFiles, particle: int, images: np.ndarray, order=None, n: int = 1) -> bool:
    order = np.arange(len(images)) if order is None else np.array(order)
    given = [files.put(particle, order[i : i + n], images[order[i : i + n]]) for i in range(0, len(order), n)]
    assert not any(given[:-1])
    return given[-1]


def write_one(files: StackFiles) -> None:
    assert put_all(files, 0, images_of(1))
    files.complete(0, HEADER)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def full(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@st.composite
def arrivals(draw):
    """Lengths of stacks, and batches of their images in any order: for each batch (particle, slots)."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    views = draw(st.permutations([(p, slot) for p, n in enumerate(lengths) for slot in range(n)]))
    batches, start = [], 0
    while start < len(views):
        stop = start + draw(st.integers(1, 12))
        batch: dict[int, list[int]] = {}
        for particle, slot in views[start:stop]:
            batch.setdefault(particle, []).append(slot)
        batches.append(list(batch.items()))
        start = stop
    return lengths, batches


@given(arrivals(), st.booleans(), st.sampled_from([1, 2, 3, 5, 100]), st.integers(1, 4))
@settings(deadline=None, max_examples=150)
def test_any_order_and_any_batches_from_threads_give_the_same_file(arrival, float16, waiting, n_threads):
    lengths, batches = arrival
    images = [images_of(n, seed) for seed, n in enumerate(lengths)]
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(n_threads) as pool:
        files = open_files(Path(name), lengths, float16=float16, waiting=waiting)

        def take(batch):
            completed = []
            for particle, slots in batch:
                mine = images[particle][slots]
                if files.put(particle, np.array(slots), mine):
                    files.complete(particle, HEADER)
                    completed.append(particle)
                mine.fill(np.nan)
            return completed

        completed = [particle for some in pool.map(take, batches) for particle in some]
        assert sorted(completed) == list(range(len(lengths)))
        for particle in range(len(lengths)):
            path = Path(name, f"stacks/{particle}.mrcs")
            assert path.read_bytes() == at_once(images[particle], float16)
        assert len(names(Path(name))) == len(lengths)


def test_many_threads_at_one_stack(tmp_path):
    images = images_of(400)
    order = np.random.default_rng(1).permutation(400)
    for waiting in (1, 2, 7, 1000):
        files = open_files(tmp_path, [400], waiting=waiting)
        with ThreadPoolExecutor(8) as pool:
            given = list(pool.map(lambda part, f=files: f.put(0, part, images[part]), np.split(order, 100)))
        assert sum(given) == 1
        files.complete(0, HEADER)
        assert (tmp_path / "stacks/0.mrcs").read_bytes() == at_once(images, False)


@pytest.mark.parametrize(
    ("waiting", "n_opened", "n_written"), [(1, 42, 42), (4, 9, 10), (7, 6, 7), (40, 2, 2), (41, 1, 0)]
)
def test_files_are_opened_and_written_seldom(tmp_path, monkeypatch, waiting, n_opened, n_written):
    opened, written, open_, pwrite = [], [], os.open, os.pwrite

    def count_open(path, *rest):
        opened.append(path)
        return open_(path, *rest)

    def count_write(descriptor, data, offset):
        written.append(len(data))
        return pwrite(descriptor, data, offset)

    images = images_of(41)
    files = open_files(tmp_path, [41], waiting=waiting)
    monkeypatch.setattr(os, "open", count_open)
    monkeypatch.setattr(os, "pwrite", count_write)
    assert put_all(files, 0, images)
    files.complete(0, HEADER)
    assert len(opened) == n_opened
    assert waiting == 1 or n_opened <= 41 // (waiting + 1) + 1
    # neighbours are written together; what fits into the buffer is written as other small files are
    assert len(written) == n_written
    assert (tmp_path / "stacks/0.mrcs").read_bytes() == at_once(images, False)


def test_a_disk_that_writes_a_little_at_a_time(tmp_path, monkeypatch):
    images, pwrite = images_of(11), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:50], offset))
    files = open_files(tmp_path, [11], waiting=3, float16=True)
    put_all(files, 0, images, order=[3, 4, 10, 0, 9, 8, 1, 7, 2, 6, 5])
    files.complete(0, HEADER)
    assert (tmp_path / "stacks/0.mrcs").read_bytes() == at_once(images, True)


@pytest.mark.parametrize("waiting", [1, 3])
def test_a_full_disk_is_named_and_leaves_no_file_that_looks_whole(tmp_path, monkeypatch, waiting):
    images = images_of(9)
    files = open_files(tmp_path, [9], waiting=waiting)
    files.put(0, np.arange(5), images[:5])
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(OutputError, match=r"stacks/0\.mrcs cannot be written: No space left on device"):
            files.put(0, np.arange(5, 9), images[5:])
    with pytest.raises(ValueError, match=r"0\.mrcs lacks 4 images"):
        files.complete(0, HEADER)
    (left,) = names(tmp_path)
    assert left.startswith(".0.mrcs.")
    assert left.endswith(".part")
    files.discard(0)
    assert names(tmp_path) == []


def test_a_disk_that_is_full_for_the_end_of_a_stack(tmp_path, monkeypatch):
    images = images_of(9)
    files = open_files(tmp_path, [9, 2], waiting=3)
    put_all(files, 0, images, n=2)
    put_all(files, 1, images[:2])
    for name, particle in (("pwrite", 0), ("replace", 0), ("writev", 1), ("replace", 1)):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, full)
            with pytest.raises(OutputError, match=rf"{particle}\.mrcs cannot be written: No space left"):
                files.complete(particle, HEADER)
        assert all(left.startswith(".0.mrcs.") and left.endswith(".part") for left in names(tmp_path))
    # what waited still waits
    files.complete(0, HEADER)
    files.complete(1, HEADER)
    assert names(tmp_path) == ["0.mrcs", "1.mrcs"]
    assert (tmp_path / "stacks/0.mrcs").read_bytes() == at_once(images, False)
    assert (tmp_path / "stacks/1.mrcs").read_bytes() == at_once(images[:2], False)
    with pytest.raises(ValueError, match="lacks 9 images"):
        files.complete(0, HEADER)


@pytest.mark.parametrize("waiting", [1, 2])
def test_an_unfinished_file_that_vanishes_is_not_begun_anew(tmp_path, waiting):
    images = images_of(6)
    files = open_files(tmp_path, [6], waiting=waiting)
    files.put(0, np.arange(3), images[:3])
    (tmp_path / "stacks" / names(tmp_path)[0]).unlink()
    with pytest.raises(OutputError, match=r"0\.mrcs cannot be written: No such file"):
        files.put(0, np.arange(3, 6), images[3:])
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "stacks").write_text("no folder")
    for waiting in (1, 2):
        files = open_files(tmp_path, [1], waiting=waiting)
        with pytest.raises(OutputError, match="stacks cannot be made: File exists"):
            write_one(files)


def test_what_is_discarded_leaves_nothing(tmp_path):
    images = images_of(5)
    for waiting in (1, 2, 5):
        files = open_files(tmp_path, [5], waiting=waiting)
        put_all(files, 0, images)
        files.discard(0)
        assert names(tmp_path) == []


def peak_of(action) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_of_what_waits_is_bounded_and_taken_only_where_needed(tmp_path):
    n_particles, n_images, side, waiting = 20, 12, 64, 3
    image = np.ones((1, side, side), np.float32)
    paths = [tmp_path / f"{n}.mrcs" for n in range(n_particles)]

    def write(tilt_by_tilt: bool, float16: bool = False) -> None:
        lengths = np.full(n_particles, n_images)
        files = StackFiles(paths, lengths, (side, side), float16=float16, images_waiting=waiting)
        views = [(p, s) for p in range(n_particles) for s in range(n_images)]
        for particle, slot in sorted(views, key=lambda view: view[::-1]) if tilt_by_tilt else views:
            if files.put(particle, np.array([slot]), image):
                files.complete(particle, HEADER)

    # what is written at one time is copied once
    copy, slack = (waiting + 1) * image.nbytes, 50_000
    bound = n_particles * waiting * image.nbytes
    assert bound < peak_of(lambda: write(tilt_by_tilt=True)) < bound + copy + slack
    assert peak_of(lambda: write(tilt_by_tilt=True, float16=True)) < bound / 2 + copy + slack
    assert peak_of(lambda: write(tilt_by_tilt=False)) < waiting * image.nbytes + copy + slack


def test_images_that_wait():
    assert images_that_wait(100, 41, 64 * 64 * 4, 1 << 30) == 32
    assert images_that_wait(100, 20, 64 * 64 * 4, 1 << 30) == 20
    assert images_that_wait(100, 41, 64 * 64 * 4, 100 * 64 * 64 * 4 * 7 + 5) == 7
    assert images_that_wait(100, 41, 64 * 64 * 4, 0) == 1
    assert images_that_wait(100, 41, 512 * 512 * 4, 1 << 40) == 1
    assert images_that_wait(0, 1, 1024, 0) == 1
