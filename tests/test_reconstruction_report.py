"""The pictures of a report: there, whole, and showing what they should."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from portal_extract.reconstruction.fsc import shell_correlation
from portal_extract.reconstruction.report import write_fsc_plot, write_halves, write_views


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(16, 16, 16)).astype(np.float32)


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("L")).astype(int)


def test_fsc_plot_shows_the_curve(tmp_path):
    write_fsc_plot(tmp_path / "new" / "good.png", shell_correlation(noise(1), noise(1), 2.0), "same")
    write_fsc_plot(tmp_path / "new" / "bad.png", shell_correlation(noise(1), noise(2), 2.0), "same")
    good, bad = (pixels(tmp_path / "new" / name) for name in ("good.png", "bad.png"))
    assert (good < 50).any()
    assert good.shape != bad.shape or np.abs(good - bad).max() > 100
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["bad.png", "good.png"]


def test_views_show_the_map(tmp_path):
    z, y, x = np.mgrid[:16, :16, :16]
    ball = ((z - 8) ** 2 + (y - 8) ** 2 + (x - 8) ** 2 < 16).astype(np.float32)
    write_views(tmp_path / "ball.png", ball, 4.0, "ball")
    write_views(tmp_path / "negative.png", -ball, 4.0, "ball")
    bright, dark = pixels(tmp_path / "ball.png"), pixels(tmp_path / "negative.png")
    assert bright.shape == dark.shape
    assert (bright != dark).mean() > 0.1


def test_half_maps_are_drawn_one_below_the_other(tmp_path):
    one, other = noise(1), noise(2)
    write_halves(tmp_path / "one.png", [one, other], 4.0)
    write_halves(tmp_path / "other.png", [one, one], 4.0)
    first, second = pixels(tmp_path / "one.png"), pixels(tmp_path / "other.png")
    height = len(first) // 2
    assert np.array_equal(first[:height], second[:height])
    assert (first[height:] != second[height:]).mean() > 0.1


def test_a_constant_map_can_be_drawn(tmp_path):
    write_views(tmp_path / "flat.png", np.zeros((8, 8, 8), np.float32), 1.0)
    assert (tmp_path / "flat.png").stat().st_size > 0


def test_an_existing_picture_stays_if_drawing_fails(tmp_path, monkeypatch):
    path = tmp_path / "views.png"
    write_views(path, noise(1), 1.0)
    before = path.read_bytes()

    def full_disk(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_views(path, noise(2), 1.0)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["views.png"]
