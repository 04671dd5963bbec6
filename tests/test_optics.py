"""CTF, dose, aberrations and whitening against formulas written out, one sample at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from portal_extract.model import ImageStack, TiltSeries
from portal_extract.optics.aberrations import zernike_image
from portal_extract.optics.ctf import ctf_coefficients, ctf_image, electron_wavelength_angst
from portal_extract.optics.dose import dose_ranges, dose_weights
from portal_extract.optics.whitening import noise_amplitude_inverse, radial_average, whitening_image


def make_series(n_tilts: int = 3, **changes) -> TiltSeries:
    rng = np.random.default_rng(3)
    values = {
        "name": "TS_1",
        "image_stack": ImageStack(("none",) * n_tilts, np.arange(n_tilts), (200, 180)),
        "pixel_size_angst": 1.7,
        "voltage_kv": 300.0,
        "spherical_aberration_mm": 2.7,
        "amplitude_contrast": 0.1,
        "handedness": -1.0,
        "tomogram_size_px": (200, 180, 60),
        "projections": np.tile(np.eye(4), (n_tilts, 1, 1)),
        "defocus_u_angst": 20000 + 5000 * rng.random(n_tilts),
        "defocus_v_angst": 19000 + 5000 * rng.random(n_tilts),
        "defocus_angle_deg": 360 * rng.random(n_tilts),
        "phase_shift_deg": 90 * rng.random(n_tilts),
        "ctf_scale": 0.5 + rng.random(n_tilts),
        "ctf_bfactor_a2": np.array([0.0, 50.0, 120.0])[:n_tilts],
        "dose_e_per_a2": np.array([0.0, 12.0, 60.0])[:n_tilts],
        "defocus_slope": 1.1,
    }
    return TiltSeries(**{**values, **changes})


def test_wavelength_of_300_kv():
    assert electron_wavelength_angst(300.0) == pytest.approx(0.0196875, abs=1e-6)


def test_ctf_against_the_formula():
    series, size, pixel, depth = make_series(), 12, 3.4, np.array([100.0, -50.0, 7.0])
    coefficients = ctf_coefficients(series, np.arange(3), depth, size, pixel)
    for f in range(3):
        image = ctf_image(coefficients, f, size)
        for y in range(size):
            for x in range(size // 2 + 1):
                assert image[y, x] == pytest.approx(_ctf(series, f, depth[f], size, pixel, x, y), abs=1e-9)


def _ctf(s, f, depth, size, pixel, x, y):
    dz = s.handedness * s.pixel_size_angst * s.defocus_slope * depth
    wavelength = electron_wavelength_angst(s.voltage_kv)
    fx, fy = x / (size * pixel), (y if y < size // 2 else y - size) / (size * pixel)
    k2 = fx * fx + fy * fy
    angle = math.atan2(fy, fx) - math.radians(s.defocus_angle_deg[f])
    u, v = s.defocus_u_angst[f] + dz, s.defocus_v_angst[f] + dz
    defocus = u * math.cos(angle) ** 2 + v * math.sin(angle) ** 2
    gamma = -math.pi * wavelength * defocus * k2
    gamma += math.pi / 2 * s.spherical_aberration_mm * 1e7 * wavelength**3 * k2 * k2
    gamma -= math.radians(s.phase_shift_deg[f]) + math.atan(
        s.amplitude_contrast / math.sqrt(1 - s.amplitude_contrast**2)
    )
    return -math.sin(gamma) * math.exp(-s.ctf_bfactor_a2[f] / 4 * k2) * s.ctf_scale[f]


def test_dose_weights_by_hand():
    size, pixel = 8, 2.0
    weights = dose_weights(np.array([0.0, 30.0]), 0.0, size, pixel)
    assert np.all(weights[0] == 1.0)
    assert weights[1, 0, 0] == 1.0
    k = math.hypot(3, -2) / (size * pixel)
    assert weights[1, 6, 3] == pytest.approx(math.exp(-15 / (0.245 * k**-1.665 + 2.81)), rel=1e-6)
    weights = dose_weights(np.array([30.0]), 4.0, size, pixel)
    assert weights[0, 6, 3] == pytest.approx(math.exp(-4 * 30 / 4 * k * k), rel=1e-6)


def test_dose_ranges_slowly():
    size, cutoff = 16, 0.3
    weights = dose_weights(np.array([0.0, 20.0, 400.0]), 0.0, size, 2.5)
    found = dose_ranges(weights, cutoff)
    for f in range(3):
        for y in range(size):
            k = y if y < size // 2 else y - size
            largest = max(
                (x for x in range(size // 2 + 1)
                 if x * x <= size * size // 4 - k * k and float(weights[f, y, x]) > cutoff),
                default=-1,
            )  # fmt: skip
            assert found[f, y] == largest + 1


def test_zernike_polynomials_by_hand():
    size, pixel = 10, 1.5
    x, y = 3, 8  # frequencies 3 and -2
    fx, fy = 3 / (size * pixel), -2 / (size * pixel)
    rho, phi = math.hypot(fx, fy), math.atan2(fy, fx)
    even = [1, rho**2 * math.sin(2 * phi), 2 * rho**2 - 1, rho**2 * math.cos(2 * phi)]
    even += [rho**4 * math.sin(4 * phi), (4 * rho**4 - 3 * rho**2) * math.sin(2 * phi)]
    odd = [rho * math.sin(phi), rho * math.cos(phi), rho**3 * math.sin(3 * phi)]
    odd += [(3 * rho**3 - 2 * rho) * math.sin(phi), (3 * rho**3 - 2 * rho) * math.cos(phi)]
    for parity, expected in (("even", even), ("odd", odd)):
        for index, value in enumerate(expected):
            unit = np.eye(len(expected))[index]
            assert zernike_image(unit, parity, size, pixel)[y, x] == pytest.approx(value, abs=1e-12)


def test_whitening_makes_coloured_noise_white():
    rng = np.random.default_rng(5)
    shape = (256, 320)
    k = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1]))
    colour = 1.0 / (0.05 + k)
    image = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape)) * colour, s=shape).astype(np.float32)
    weights = whitening_image(noise_amplitude_inverse(image, 32), 32, 1.0)
    tiles = [image[j : j + 32, i : i + 32] for j in range(0, 224, 16) for i in range(0, 288, 16)]
    power = np.mean([np.abs(np.fft.rfft2(t, norm="ortho") * weights) ** 2 for t in tiles], axis=0)
    average = radial_average(power)
    assert np.all(np.abs(average[1:] - 1.0) < 0.35)
    unweighted = radial_average(np.mean([np.abs(np.fft.rfft2(t, norm="ortho")) ** 2 for t in tiles], axis=0))
    assert unweighted[1] / unweighted[-1] > 20  # it was anything but white


def test_radial_average_slowly():
    rng = np.random.default_rng(2)
    power = rng.random((8, 5))
    total, weight = np.zeros(6), np.zeros(6)
    for y in range(8):
        for x in range(5):
            r = math.hypot(x, y if y < 4 else y - 8)
            for i, share in ((int(r), 1 - (r - int(r))), (int(r) + 1, r - int(r))):
                if i < 5:
                    total[i] += share * power[y, x]
                    weight[i] += share
    assert np.allclose(radial_average(power), total[:5] / weight[:5])


def test_whitening_reads_the_spectrum_at_binning_times_the_radius():
    inverse = np.arange(20, dtype=np.float32)
    image = whitening_image(inverse, 16, 2.0)
    assert image[0, 3] == pytest.approx(6.0)
    assert image[15, 0] == pytest.approx(2.0)  # frequency -1
    assert image[8, 8] == 19.0  # beyond the spectrum: its last value
