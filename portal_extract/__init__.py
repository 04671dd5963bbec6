"""RELION-ready particles and averages, streamed from the CryoET Data Portal.

The public API; each name is imported when it is first used::

    import portal_extract as pe

    found = pe.resolve_portal(pe.PortalFilters(run_ids=(16463,), annotation_names=("cytosolic ribosome",)))
    pe.extract(found.project, pe.ExtractOptions(box_size=64, binning=4), "ribosomes")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from portal_extract._version import __version__

if TYPE_CHECKING:
    from portal_extract.errors import PortalExtractError
    from portal_extract.extraction.forecast import Forecast, forecast
    from portal_extract.extraction.job import extract
    from portal_extract.extraction.summary import ExtractionSummary
    from portal_extract.model import (
        Deformation,
        ImageStack,
        OpticsGroup,
        ParticleSet,
        Project,
        TiltSeries,
    )
    from portal_extract.options import ExtractOptions, RunOptions, VolumeOptions
    from portal_extract.reconstruction.job import reconstruct
    from portal_extract.reconstruction.options import ReconstructOptions
    from portal_extract.reconstruction.summary import ReconstructSummary
    from portal_extract.sources.portal import PortalAssumptions, PortalConnection, PortalFilters
    from portal_extract.sources.portal.build import PortalResolution, resolve_portal
    from portal_extract.sources.relion import ProjectFiles, read_project

_HOMES = {
    "PortalExtractError": "errors",
    "Forecast": "extraction.forecast",
    "forecast": "extraction.forecast",
    "extract": "extraction.job",
    "ExtractionSummary": "extraction.summary",
    "Deformation": "model",
    "ImageStack": "model",
    "OpticsGroup": "model",
    "ParticleSet": "model",
    "Project": "model",
    "TiltSeries": "model",
    "ExtractOptions": "options",
    "RunOptions": "options",
    "VolumeOptions": "options",
    "reconstruct": "reconstruction.job",
    "ReconstructOptions": "reconstruction.options",
    "ReconstructSummary": "reconstruction.summary",
    "PortalAssumptions": "sources.portal",
    "PortalConnection": "sources.portal",
    "PortalFilters": "sources.portal",
    "PortalResolution": "sources.portal.build",
    "resolve_portal": "sources.portal.build",
    "ProjectFiles": "sources.relion",
    "read_project": "sources.relion",
}

__all__ = [
    "Deformation",
    "ExtractOptions",
    "ExtractionSummary",
    "Forecast",
    "ImageStack",
    "OpticsGroup",
    "ParticleSet",
    "PortalAssumptions",
    "PortalConnection",
    "PortalExtractError",
    "PortalFilters",
    "PortalResolution",
    "Project",
    "ProjectFiles",
    "ReconstructOptions",
    "ReconstructSummary",
    "RunOptions",
    "TiltSeries",
    "VolumeOptions",
    "__version__",
    "extract",
    "forecast",
    "read_project",
    "reconstruct",
    "resolve_portal",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
