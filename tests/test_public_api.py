"""The public names are there, and importing the package imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

import portal_extract


def test_every_public_name_is_there():
    for name in portal_extract.__all__:
        assert getattr(portal_extract, name) is not None
    assert dir(portal_extract) == portal_extract.__all__
    with pytest.raises(AttributeError, match="nonsense"):
        _ = portal_extract.nonsense


def test_import_is_light():
    code = (
        "import sys, portal_extract; "
        "print([m for m in ('numpy', 'numba', 'dask', 'pandas', 'zarr') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert out.stdout.strip() == "[]"
