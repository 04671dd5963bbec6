"""How the portal is reached, and what is assumed where it is silent."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from portal_extract.errors import UnsupportedError, UsageError

MissingCtf = Literal["error", "skip", "no-ctf"]

DEFAULT_PORTAL_URL = "https://graphql.cryoetdataportal.czscience.com/graphql"
BUCKET_REGION = "us-west-2"


@dataclass(frozen=True, slots=True)
class PortalConnection:
    """Where the portal is, and how long to be patient with it.

    Attributes
    ----------
    portal_url
        Address of the GraphQL API; None for the real portal.
    s3_endpoint_url
        Address of the S3 endpoint; None for Amazon's, anonymous, in us-west-2.
    deadline_s
        Longest time for all the metadata of a request together, API and files of picks.
    request_timeout_s
        Longest time for one answer of the API, or one round of files.
    attempts
        Attempts for each request before giving up.
    backoff_s
        Mean pause before the second attempt; it doubles with each further one.
    requests_in_flight
        Files of picks read at a time.
    """

    portal_url: str | None = None
    s3_endpoint_url: str | None = None
    deadline_s: float = 600.0
    request_timeout_s: float = 120.0
    attempts: int = 5
    backoff_s: float = 0.5
    requests_in_flight: int = 32

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str] = os.environ, **settings: Any
    ) -> PortalConnection:
        """Take the addresses from the environment where they are not given.

        Parameters
        ----------
        environment
            ``CRYOET_PORTAL_URL``; ``AWS_ENDPOINT_URL_S3``, else ``AWS_ENDPOINT_URL``.
        **settings
            Fields of the class; an address that is None counts as not given.
        """
        if settings.get("portal_url") is None:
            settings["portal_url"] = environment.get("CRYOET_PORTAL_URL") or None
        if settings.get("s3_endpoint_url") is None:
            settings["s3_endpoint_url"] = (
                environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or None
            )
        return cls(**settings)

    @property
    def storage(self) -> dict[str, Any]:
        """Options of the object store, for :class:`portal_extract.model.ImageStack`."""
        options: dict[str, Any] = {"anon": True}
        if self.s3_endpoint_url:
            options["endpoint_url"] = self.s3_endpoint_url
        return options


@dataclass(frozen=True, slots=True)
class PortalAssumptions:
    """What the portal does not say, or may be told to say otherwise.

    Attributes
    ----------
    handedness
        ``rlnTomoHand``; the portal has no such field.
    amplitude_contrast
        ``rlnAmplitudeContrast``; the portal has no such field.
    pixel_size_angst
        Pixel size of the tilt images in place of the portal's, for all tilt series; None for the portal's.
        Shifts of the alignment are pixels and follow it; voxel spacings of tomograms, and with them the
        coordinates of the picks in Angstrom, do not.
    on_missing_ctf
        ``error``: a tilt series that lacks the CTF of a tilt image is ineligible. ``skip``: tilt images
        without CTF are left out, and counted. ``no-ctf``: they are kept with defocus 0, which is right only
        where extraction does not multiply by the CTF.
    allow_aligned
        Take tilt series that are stored already aligned (``is_aligned``), and apply their alignment anyway.
    """

    handedness: float = -1.0
    amplitude_contrast: float = 0.07
    pixel_size_angst: float | None = None
    on_missing_ctf: MissingCtf = "error"
    allow_aligned: bool = False

    def check(self) -> None:
        """Refuse what cannot be honoured, all of it at once.

        Raises
        ------
        UnsupportedError
            Values that make no sense.
        """
        problems = []
        if not math.isfinite(self.handedness) or self.handedness == 0:
            problems.append(
                f"--handedness {self.handedness:g}: must be a number other than 0, -1 or 1 as a rule"
            )
        if not 0 <= self.amplitude_contrast <= 1:
            problems.append(f"--amplitude-contrast {self.amplitude_contrast:g}: must be from 0 to 1")
        size = self.pixel_size_angst
        if size is not None and not (math.isfinite(size) and size > 0):
            problems.append(f"--pixel-size {size:g}: must be a positive number of Angstrom")
        if self.on_missing_ctf not in ("error", "skip", "no-ctf"):
            problems.append(f"--on-missing-ctf {self.on_missing_ctf}: must be error, skip or no-ctf")
        if problems:
            raise UnsupportedError(problems)

    def check_ctf(self, multiplied: bool) -> None:
        """Refuse to multiply by a CTF that may not be there.

        Raises
        ------
        UsageError
            ``multiplied``, and missing CTFs are let through.
        """
        if multiplied and self.on_missing_ctf == "no-ctf":
            raise UsageError("--on-missing-ctf no-ctf lets through tilt images without CTF: add --no-ctf")

    def sentences(self) -> tuple[str, ...]:
        """Name every assumption in words, for summaries and reports."""
        said = [
            f"handedness {self.handedness:g} (the portal does not record it; a wrong sign lowers the "
            "resolution without moving a particle)",
            f"amplitude contrast {self.amplitude_contrast:g} (the portal does not record it)",
        ]
        if self.pixel_size_angst is not None:
            said.append(
                f"pixel size {self.pixel_size_angst:g} A of every tilt series in place of the portal's; "
                "voxel spacings are the portal's"
            )
        if self.on_missing_ctf == "no-ctf":
            said.append("defocus 0 where the portal has no CTF: extract with --no-ctf only")
        if self.allow_aligned:
            said.append("alignments are applied to tilt series that are stored already aligned")
        return tuple(said)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "handedness": self.handedness,
            "amplitude_contrast": self.amplitude_contrast,
            "pixel_size_angst": self.pixel_size_angst,
            "on_missing_ctf": self.on_missing_ctf,
            "allow_aligned": self.allow_aligned,
        }
