"""Labels of RELION's STAR files that come in threes."""

from __future__ import annotations

CENTRED_LABELS = tuple(f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ")
PIXEL_LABELS = tuple(f"rlnCoordinate{axis}" for axis in "XYZ")
ORIGIN_LABELS = tuple(f"rlnOrigin{axis}Angst" for axis in "XYZ")
SUBTOMOGRAM_LABELS = tuple(f"rlnTomoSubtomogram{angle}" for angle in ("Rot", "Tilt", "Psi"))
ANGLE_LABELS = tuple(f"rlnAngle{angle}" for angle in ("Rot", "Tilt", "Psi"))
