"""From filters to the runs, depositions and tomograms that they name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from portal_extract.errors import NotFoundError
from portal_extract.sources.portal.api import Condition, In, Like, PortalApi
from portal_extract.sources.portal.filters import PortalFilters
from portal_extract.sources.portal.rows import (
    AlignmentRow,
    DatasetRow,
    DepositionRow,
    RowType,
    RunRow,
    TiltSeriesRow,
    TomogramRow,
)


def by_id(rows: Iterable[RowType]) -> dict[int, RowType]:
    """Rows by their id."""
    return {row.id: row for row in rows}


def group(rows: Iterable[RowType], key: Callable[[RowType], int | None]) -> dict[int, list[RowType]]:
    """Rows by a key, in order; those without key are left out."""
    found: defaultdict[int, list[RowType]] = defaultdict(list)
    for row in rows:
        value = key(row)
        if value is not None:
            found[value].append(row)
    return dict(found)


@dataclass(frozen=True)
class Scope:
    """What the filters restrict before any annotation is looked for; None for no restriction.

    Attributes
    ----------
    runs
        Runs, by id.
    deposition_ids
        Depositions of the annotations.
    chosen_tomograms
        Tomograms that the filters name, by id.
    """

    runs: Mapping[int, RunRow] | None = None
    deposition_ids: frozenset[int] | None = None
    chosen_tomograms: Mapping[int, TomogramRow] | None = None


def require_all(what: str, wanted: Sequence[int], found: Iterable[int]) -> None:
    """Refuse ids that were not found, by number.

    Raises
    ------
    NotFoundError
        At least one of the ids wanted is not among those found.
    """
    missing = sorted(set(wanted) - set(found))
    if missing:
        ids = ", ".join(map(str, missing))
        several = "s" if len(missing) > 1 else ""
        also = " that meets the other filters" if what == "annotation" else ""
        raise NotFoundError(
            f"the portal has no {what}{several} {ids}{also}: check the number "
            "(ids change when data are ingested again)"
        )


def _require_names(what: str, filters: PortalFilters, wanted: Sequence[str], found: Iterable[str]) -> None:
    known = list(found)
    missing = [name for name in wanted if not any(filters.matches_name(other, (name,)) for other in known)]
    if missing:
        names = ", ".join(repr(name) for name in missing)
        hint = "" if filters.inexact_match else ": give the whole name, or --inexact-match"
        raise NotFoundError(f"the portal has no {what} named {names} that meets the other filters{hint}")


def name_conditions(filters: PortalFilters, field_name: str, wanted: Sequence[str]) -> list[Condition]:
    """Conditions on a name as the filters want names to match; none for no names."""
    if not wanted:
        return []
    return [Like(field_name, wanted) if filters.inexact_match else In(field_name, wanted)]


def find_scope(api: PortalApi, filters: PortalFilters) -> Scope:
    """Turn everything but the filters on annotations into runs, depositions and tomograms.

    Raises
    ------
    NotFoundError
        An id or a name does not exist, or no run meets all filters.
    PortalError
        The API did not answer.
    """
    depositions = _find_depositions(api, filters)
    run_ids: set[int] | None = None

    def restrict(ids: Iterable[int | None]) -> None:
        nonlocal run_ids
        known = {value for value in ids if value is not None}
        run_ids = known if run_ids is None else run_ids & known

    if filters.tilt_series_ids:
        series = api.find_by("TiltSeries", TiltSeriesRow, "id", filters.tilt_series_ids)
        require_all("tilt series", filters.tilt_series_ids, by_id(series))
        restrict(row.run_id for row in series)
    if filters.alignment_ids:
        alignments = api.find_by("Alignment", AlignmentRow, "id", filters.alignment_ids)
        require_all("alignment", filters.alignment_ids, by_id(alignments))
        restrict(row.run_id for row in alignments)
    tomograms = _find_chosen_tomograms(api, filters)
    if tomograms is not None:
        restrict(row.run_id for row in tomograms.values())
    runs = _find_runs(api, filters, run_ids)
    return Scope(runs, depositions, tomograms)


def _find_depositions(api: PortalApi, filters: PortalFilters) -> frozenset[int] | None:
    if not filters.deposition_ids and not filters.deposition_names:
        return None
    conditions = name_conditions(filters, "title", filters.deposition_names)
    if filters.deposition_ids:
        conditions.append(In("id", filters.deposition_ids))
    rows = [
        row
        for row in api.find("Deposition", DepositionRow, conditions)
        if filters.matches_name(row.title, filters.deposition_names)
    ]
    require_all("deposition", filters.deposition_ids, by_id(rows))
    _require_names("deposition", filters, filters.deposition_names, (row.title for row in rows))
    return frozenset(by_id(rows))


def _find_chosen_tomograms(api: PortalApi, filters: PortalFilters) -> dict[int, TomogramRow] | None:
    if not filters.tomogram_ids and not filters.tomogram_names:
        return None
    conditions = name_conditions(filters, "name", filters.tomogram_names)
    if filters.tomogram_ids:
        conditions.append(In("id", filters.tomogram_ids))
    rows = [
        row
        for row in api.find("Tomogram", TomogramRow, conditions)
        if filters.matches_name(row.name, filters.tomogram_names)
    ]
    require_all("tomogram", filters.tomogram_ids, by_id(rows))
    _require_names("tomogram", filters, filters.tomogram_names, (row.name or "" for row in rows))
    return by_id(rows)


def _find_datasets(api: PortalApi, filters: PortalFilters) -> dict[int, DatasetRow] | None:
    if not (filters.dataset_ids or filters.dataset_names or filters.organism_names):
        return None
    conditions = name_conditions(filters, "title", filters.dataset_names)
    conditions += name_conditions(filters, "organism_name", filters.organism_names)
    if filters.dataset_ids:
        conditions.append(In("id", filters.dataset_ids))
    rows = [
        row
        for row in api.find("Dataset", DatasetRow, conditions)
        if filters.matches_name(row.title, filters.dataset_names)
        and filters.matches_name(row.organism_name, filters.organism_names)
    ]
    require_all("dataset", filters.dataset_ids, by_id(rows))
    _require_names("dataset", filters, filters.dataset_names, (row.title for row in rows))
    _require_names("organism", filters, filters.organism_names, (row.organism_name or "" for row in rows))
    return by_id(rows)


def _find_runs(api: PortalApi, filters: PortalFilters, run_ids: set[int] | None) -> dict[int, RunRow] | None:
    """Find the runs that meet the filters on runs; None if there are no such filters."""
    datasets = _find_datasets(api, filters)
    conditions = name_conditions(filters, "name", filters.run_names)
    if datasets is not None:
        conditions.append(In("dataset_id", sorted(datasets)))
    if filters.run_ids:
        # by number alone, so that "no such run" can be told from "not in that data set"
        conditions = [In("id", filters.run_ids)]
    elif run_ids is not None:
        conditions.append(In("id", sorted(run_ids)))
    if not conditions:
        return None
    rows = by_id(api.find("Run", RunRow, conditions))
    require_all("run", filters.run_ids, rows)
    kept = {
        row.id: row
        for row in rows.values()
        if (not filters.run_ids or row.id in filters.run_ids)
        and (run_ids is None or row.id in run_ids)
        and (datasets is None or row.dataset_id in datasets)
        and filters.matches_name(row.name, filters.run_names)
    }
    _require_names("run", filters, filters.run_names, (row.name for row in kept.values()))
    if not kept:
        raise NotFoundError(f"no run on the portal meets {filters.describe()} all together")
    return kept
