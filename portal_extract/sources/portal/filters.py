"""What is asked of the portal."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from portal_extract.errors import UsageError

#: command-line option of each field that selects something
OPTIONS = {
    "deposition_ids": "--deposition-ids",
    "deposition_names": "--deposition-names",
    "dataset_ids": "--dataset-ids",
    "dataset_names": "--dataset-names",
    "organism_names": "--organism-names",
    "run_ids": "--run-ids",
    "run_names": "--run-names",
    "tilt_series_ids": "--tilt-series-ids",
    "alignment_ids": "--alignment-ids",
    "tomogram_ids": "--tomogram-ids",
    "tomogram_names": "--tomogram-names",
    "annotation_ids": "--annotation-ids",
    "annotation_names": "--annotation-names",
    "object_ids": "--object-ids",
}


@dataclass(frozen=True, slots=True)
class PortalFilters:
    """Which picks are wanted. Values of one field are alternatives; all fields given must hold.

    Attributes
    ----------
    deposition_ids, deposition_names
        Deposition of the annotation, by id or title.
    dataset_ids, dataset_names
        Data set of the run, by id or title.
    organism_names
        Organism of the data set.
    run_ids, run_names
        Runs.
    tilt_series_ids, alignment_ids, tomogram_ids, tomogram_names
        Tilt series, alignment or tomogram that the picks belong to. An alignment or tomogram given here also
        settles where the portal leaves it open (picks without alignment, tomograms of several sizes).
    annotation_ids, annotation_names, object_ids
        Annotations by id, by the name of the object, or by its ontology id (GO, UniProtKB).
    inexact_match
        Names match as a part of the name, upper or lower case; otherwise they match whole and exactly.
    ground_truth
        Only annotations whose authors endorse them as ground truth.
    automated_only
        Only annotations made by an automated method.
    no_orientations
        All angles are 0. Of an annotation that has Point and OrientedPoint files, the Point file is used.
    """

    deposition_ids: tuple[int, ...] = ()
    deposition_names: tuple[str, ...] = ()
    dataset_ids: tuple[int, ...] = ()
    dataset_names: tuple[str, ...] = ()
    organism_names: tuple[str, ...] = ()
    run_ids: tuple[int, ...] = ()
    run_names: tuple[str, ...] = ()
    tilt_series_ids: tuple[int, ...] = ()
    alignment_ids: tuple[int, ...] = ()
    tomogram_ids: tuple[int, ...] = ()
    tomogram_names: tuple[str, ...] = ()
    annotation_ids: tuple[int, ...] = ()
    annotation_names: tuple[str, ...] = ()
    object_ids: tuple[str, ...] = ()
    inexact_match: bool = False
    ground_truth: bool = False
    automated_only: bool = False
    no_orientations: bool = False

    def check(self) -> None:
        """Refuse a request that selects nothing in particular, or with values that cannot be.

        Raises
        ------
        UsageError
            No field that selects something is given, an id is below 1, or a name is empty.
        """
        if not any(getattr(self, name) for name in OPTIONS):
            raise UsageError(f"nothing selects particles: give at least one of {', '.join(OPTIONS.values())}")
        for name, option in OPTIONS.items():
            for value in getattr(self, name):
                if isinstance(value, str) and not value.strip():
                    raise UsageError(f"{option}: an empty name matches nothing; leave it out")
                if not isinstance(value, str) and value < 1:
                    raise UsageError(f"{option} {value}: ids of the portal are whole numbers from 1")

    def matches_name(self, name: str | None, wanted: tuple[str, ...]) -> bool:
        """Whether a name is one of those wanted; any name is if none is wanted."""
        if not wanted:
            return True
        if name is None:
            return False
        if self.inexact_match:
            return any(part.lower() in name.lower() for part in wanted)
        return name in wanted

    def describe(self) -> str:
        """Say the request in the words of the command line."""
        parts = [
            f"{option} {','.join(map(str, getattr(self, name)))}"
            for name, option in OPTIONS.items()
            if getattr(self, name)
        ]
        switches = ("inexact_match", "ground_truth", "automated_only", "no_orientations")
        parts += ["--" + name.replace("_", "-") for name in switches if getattr(self, name)]
        return " ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values of the fields that are given, for JSON."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in given.items() if v}
