"""Projects out of the CryoET Data Portal.

The way of the data: ``filters`` (what is asked) -> ``query`` over ``api`` (rows of the portal's tables, in a
bounded number of requests) -> ``select`` (which file of picks counts) -> ``sections`` (tilt series with
alignment, CTF and dose) -> ``picks`` -> ``tables`` (RELION's tables) -> ``build``, which does it all and
keeps the report of ``eligibility``.
"""

from __future__ import annotations

from portal_extract.sources.portal.filters import PortalFilters
from portal_extract.sources.portal.settings import PortalAssumptions, PortalConnection

__all__ = ["PortalAssumptions", "PortalConnection", "PortalFilters"]
