"""MRC files and half precision."""

from __future__ import annotations

import os
import struct
import threading

import mrcfile
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from relion_cases import SHARED

from portal_extract.errors import ImageFormatError, OutputError
from portal_extract.relion_io.half import to_half
from portal_extract.relion_io.mrc import (
    HEADER_BYTES,
    Statistics,
    header_bytes,
    parse_header,
    read_header,
    statistics,
    write_mrc,
    write_stack,
)

RNG = np.random.default_rng(7)

# ------------------------------------------------------------------------------------- half


def half_bits_slowly(bits: int) -> int:
    """Bits of the half that RELION writes for the bits of a float32."""
    sign, exponent, mantissa = bits >> 31, (bits >> 23) & 0xFF, bits & 0x7FFFFF
    if exponent == 255:
        return (sign << 15) | 0x7C00 | (0x200 if mantissa else 0)
    if exponent == 0:
        return sign << 15
    mantissa += 1 << 12
    if mantissa >> 23:
        exponent, mantissa = exponent + 1, 0
    exponent += 15 - 127
    if exponent < 1:
        return sign << 15
    if exponent > 30:
        return (sign << 15) | 0x7BFF
    return (sign << 15) | (exponent << 10) | (mantissa >> 13)


def check_bits(bits: np.ndarray) -> None:
    values = bits.astype(np.uint32).view(np.float32)
    halves = to_half(values)
    expected = np.array([half_bits_slowly(int(b)) for b in bits], dtype=np.uint16)
    nan = np.isnan(values)
    assert np.isnan(halves[nan]).all()
    np.testing.assert_array_equal(halves.view(np.uint16)[~nan], expected[~nan])


def test_half_around_every_half_and_every_tie():
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32).view(np.uint32)
    ties = halves[:-1] + (halves[1:] - halves[:-1]) // 2
    for offset in (-1, 0, 1):
        check_bits(ties.astype(np.int64) + offset)
        check_bits(np.maximum(halves.astype(np.int64) + offset, 0) | (1 << 31))


def test_half_of_arbitrary_bits():
    check_bits(RNG.integers(0, 1 << 32, 100_000, dtype=np.uint64))
    special = [0, 1 << 31, 0x7F800000, 0xFF800000, 0x7FFFFFFF, 0x7FC00000, 0x7F7FFFFF, 0x387FF000, 0x387FEFFF]
    check_bits(np.array(special, dtype=np.uint64))


def test_half_keeps_shapes_and_takes_views():
    values = RNG.normal(size=(3, 40, 50)).astype(np.float32)
    whole = to_half(values)
    assert whole.shape == values.shape
    np.testing.assert_array_equal(to_half(values[:, ::2, 5:]), whole[:, ::2, 5:])
    long = RNG.normal(size=100_001).astype(np.float32)
    np.testing.assert_array_equal(to_half(long)[70_000:], to_half(long[70_000:]))
    assert to_half(np.zeros((0, 4), dtype=np.float32)).shape == (0, 4)


# ------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("float16", [False, True])
@pytest.mark.parametrize("n", [1, 5])
def test_stacks_are_valid_image_stacks(tmp_path, n, float16):
    images = RNG.normal(3, 2, size=(n, 6, 8)).astype(np.float32)
    path = tmp_path / "s.mrcs"
    write_stack(path, images, 6.8, float16=float16)

    assert mrcfile.validate(path)
    with mrcfile.open(path) as mrc:
        assert mrc.is_image_stack() or n == 1
        expected = to_half(images) if float16 else images
        np.testing.assert_array_equal(np.atleast_3d(mrc.data).reshape(images.shape), expected)
        header = mrc.header
        assert (int(header.mode), int(header.ispg), int(header.mz)) == (12 if float16 else 2, 0, 1)
        assert [float(mrc.voxel_size[axis]) for axis in "xyz"] == pytest.approx([6.8, 6.8, 1.0])
        assert float(header.dmin) == expected.min()
        assert float(header.dmax) == expected.max()
        # of the values before any rounding to half precision
        assert float(header.dmean) == pytest.approx(images.mean(dtype=np.float64))
        assert float(header.rms) == pytest.approx(images.std(dtype=np.float64))


def test_volumes_are_valid_volumes(tmp_path):
    volume = RNG.normal(size=(4, 6, 8)).astype(np.float32)
    path = tmp_path / "v.mrc"
    write_mrc(path, volume, 2.5, kind="volume")
    assert mrcfile.validate(path)
    with mrcfile.open(path) as mrc:
        assert mrc.is_volume()
        np.testing.assert_array_equal(mrc.data, volume)
        assert [float(mrc.voxel_size[axis]) for axis in "xyz"] == [2.5, 2.5, 2.5]


@pytest.mark.shared
@pytest.mark.parametrize("name", ["stack_b32", "stack_float16", "stack_one_tilt"])
def test_headers_say_what_relions_say(name):
    files = sorted((SHARED / "relion5" / "basic" / "expected" / name).rglob("*.mrcs"))
    if not files:
        pytest.skip("the full reference data is not beside the checkout")
    for path in files:
        theirs = path.read_bytes()[:HEADER_BYTES]
        header = read_header(path)
        low, high, mean = struct.unpack_from("<3f", theirs, 76)
        (rms,) = struct.unpack_from("<f", theirs, 216)
        mode = struct.unpack_from("<i", theirs, 12)[0]
        ours = header_bytes(
            header.shape, mode, header.voxel_size_angst[0], Statistics(low, high, mean, rms), "stack"
        )
        differing = {byte // 4 for byte in range(HEADER_BYTES) if ours[byte] != theirs[byte]}
        # mz and the cell along z (1 instead of the number of images), version of the format, label; the
        # extremes where they are rounded with the voxels
        allowed = {9, 12, 27, *range(56, 76), *([19, 20] if mode == 12 else [])}
        assert differing <= allowed
        assert parse_header(ours, "ours") == header


def test_given_statistics_and_names_of_bytes_are_kept(tmp_path):
    images = np.ones((2, 3, 4), dtype=np.float32)
    write_stack(tmp_path / "a.mrcs", images, 1.0, Statistics(-1, 2, 0.5, 3))
    write_stack(tmp_path / "b.mrcs", images[:, :, ::-1], 1.0, Statistics(-1, 2, 0.5, 3))
    assert (tmp_path / "a.mrcs").read_bytes() == (tmp_path / "b.mrcs").read_bytes()
    assert struct.unpack_from("<3f", (tmp_path / "a.mrcs").read_bytes(), 76) == (-1, 2, 0.5)


def test_statistics_equal_those_in_double_precision():
    values = (RNG.normal(size=(5, 97, 101)) + 1e4).astype(np.float32)
    found, exact = statistics(values), values.astype(np.float64)
    assert (found.minimum, found.maximum) == (exact.min(), exact.max())
    assert found.mean == pytest.approx(exact.mean(), rel=1e-12)
    assert found.rms == pytest.approx(exact.std(), rel=1e-6)


def test_a_refused_write_leaves_nothing(tmp_path):
    with pytest.raises(OutputError, match=r"none/s.mrcs cannot be written: No such file"):
        write_stack(tmp_path / "none" / "s.mrcs", np.zeros((1, 2, 2), dtype=np.float32), 1.0)
    (tmp_path / "s.mrcs").mkdir()
    with pytest.raises(OutputError):
        write_stack(tmp_path / "s.mrcs", np.zeros((1, 2, 2), dtype=np.float32), 1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["s.mrcs"]


def test_many_writers_of_one_file_leave_one_whole_file(tmp_path):
    path = tmp_path / "s.mrcs"
    stacks = [np.full((3, 64, 64), value, dtype=np.float32) for value in range(8)]
    threads = [threading.Thread(target=write_stack, args=(path, stack, 1.0)) for stack in stacks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.listdir(tmp_path) == ["s.mrcs"]
    with mrcfile.open(path) as mrc:
        assert len(np.unique(mrc.data)) == 1


def test_partial_writes_are_completed(tmp_path, monkeypatch):
    real = os.writev

    def write_a_little(descriptor, buffers):
        return real(descriptor, [bytes(buffers[0][:700])])

    monkeypatch.setattr(os, "writev", write_a_little)
    images = RNG.normal(size=(2, 20, 30)).astype(np.float32)
    write_stack(tmp_path / "s.mrcs", images, 1.0)
    monkeypatch.undo()
    with mrcfile.open(tmp_path / "s.mrcs") as mrc:
        np.testing.assert_array_equal(mrc.data, images)


# ------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("mode", "dtype"), [(0, "i1"), (1, "i2"), (2, "f4"), (6, "u2"), (12, "f2")])
@pytest.mark.parametrize("extended", [0, 2048])
def test_headers_of_all_modes_and_byte_orders(tmp_path, mode, dtype, order, extended):
    data = RNG.integers(0, 100, size=(3, 4, 5)).astype(np.dtype(dtype).newbyteorder(order))
    path = tmp_path / "x.mrc"
    with mrcfile.new(path) as mrc:
        mrc.set_data(data.astype(data.dtype.newbyteorder("=")))
        mrc.set_extended_header(np.zeros(extended, dtype="u1").view("V1"))
        mrc.voxel_size = (1.5, 2.0, 2.5)
        header = mrc.header.copy()
    stored = bytearray(header.astype(header.dtype.newbyteorder(order)).tobytes())
    stored[212:214] = b"\x44\x44" if order == "<" else b"\x11\x11"
    path.write_bytes(bytes(stored) + bytes(extended) + data.tobytes())

    found = read_header(path)
    assert found.shape == (3, 4, 5)
    assert found.dtype == data.dtype
    assert found.data_offset == HEADER_BYTES + extended
    assert found.section_bytes == 20 * data.dtype.itemsize
    assert found.voxel_size_angst == pytest.approx((1.5, 2.0, 2.5))
    read = np.fromfile(path, dtype=found.dtype, offset=found.data_offset).reshape(found.shape)
    np.testing.assert_array_equal(read, data)


def plain_header(**words: int) -> bytes:
    raw = bytearray(header_bytes((3, 4, 5), 2, 1.0, Statistics(0, 0, 0, 0), "stack"))
    for word, value in words.items():
        struct.pack_into("<i", raw, 4 * int(word[1:]), value)
    return bytes(raw)


def test_bytes_of_imod_may_be_unsigned():
    imod = {"w3": 0, "w38": 1146047817}
    assert parse_header(plain_header(**imod, w39=0), "x").dtype == np.uint8
    assert parse_header(plain_header(**imod, w39=1), "x").dtype == np.int8
    assert parse_header(plain_header(w3=0), "x").dtype == np.int8


def test_headers_without_axes_or_stamp_are_little_endian():
    raw = bytearray(plain_header(w16=0, w17=0, w18=0))
    raw[208:216] = bytes(8)
    assert parse_header(bytes(raw), "x").shape == (3, 4, 5)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"short", "no MRC file: 5 bytes"),
        (bytes(HEADER_BYTES), "no MRC file: it claims 0 sections"),
        (b"\x93NUMPY" * 200, "no MRC file|mode"),
        (plain_header(w3=4), "mode 4, which is not supported"),
        (plain_header(w3=101), "mode 101"),
        (plain_header(w16=2, w17=1), r"axes in the order \(2, 1, 3\)"),
        (plain_header(w23=-4), "no MRC file"),
    ],
)
def test_what_is_no_mrc_file_is_refused(raw, message):
    with pytest.raises(ImageFormatError, match=message) as error:
        parse_header(raw, "some/file.mrc")
    assert "some/file.mrc" in str(error.value)


def test_truncated_files_tell_both_sizes(tmp_path):
    path = tmp_path / "t.mrcs"
    write_stack(path, np.zeros((3, 4, 5), dtype=np.float32), 1.0)
    os.truncate(path, 1200)
    with pytest.raises(ImageFormatError, match=r"t.mrcs is truncated: 1200 bytes, .* need 1264"):
        read_header(path)
    with pytest.raises(ImageFormatError, match="does not exist"):
        read_header(tmp_path / "none.mrc")
    with pytest.raises(ImageFormatError, match="cannot be read"):
        read_header(tmp_path)


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_arbitrary_bytes_are_read_or_refused(raw):
    try:
        header = parse_header(raw, "x", 1 << 20)
    except ImageFormatError:
        return
    assert header.file_bytes <= 1 << 20
