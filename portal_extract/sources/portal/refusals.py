"""Clear words where a request comes to nothing."""

from __future__ import annotations

from portal_extract.errors import IneligibleError, NotFoundError
from portal_extract.sources.portal.eligibility import EligibilityReport, UnmatchedRun
from portal_extract.sources.portal.filters import PortalFilters
from portal_extract.sources.portal.query import Catalogue, Unmatched

_SHOWN = 10


def unmatched_runs(catalogue: Catalogue, filters: PortalFilters) -> tuple[UnmatchedRun, ...]:
    """Say of each run without a matching annotation what it has instead.

    Parameters
    ----------
    catalogue
        What the portal has.
    filters
        The request.
    """
    return tuple(UnmatchedRun(one.run.id, one.run.name, _reason(one, filters)) for one in catalogue.unmatched)


def unmatched_names(catalogue: Catalogue, filters: PortalFilters) -> tuple[str, ...]:
    """Warn of names asked for that no annotation found has, while others were found.

    Parameters
    ----------
    catalogue
        What the portal has.
    filters
        The request.
    """
    found = {row.object_name for row in catalogue.annotations.values()}
    return tuple(
        f"no annotation that meets the request is named {name!r}: check the spelling"
        for name in filters.annotation_names
        if not any(filters.matches_name(other, (name,)) for other in found)
    )


def only_identified(one: Unmatched, filters: PortalFilters) -> list[str]:
    """Names that the request asks for and that are known to be in a run, but have no picks there."""
    if not filters.annotation_names and not filters.object_ids:
        return []
    picked = {row.object_name for row in one.annotations}
    return sorted(
        {
            row.object_name
            for row in one.identified
            if row.object_name not in picked
            and filters.matches_name(row.object_name, filters.annotation_names)
            and (not filters.object_ids or row.object_id in filters.object_ids)
        }
    )


def _reason(one: Unmatched, filters: PortalFilters) -> str:
    identified = only_identified(one, filters)
    if identified:
        names = ", ".join(map(repr, identified))
        return f"{names} is known to be in the run, but has no picks"
    has = _names({row.object_name for row in one.annotations})
    instead = f"it has {has}" if has else "it has no annotation at all"
    named = [
        row for row in one.annotations if filters.matches_name(row.object_name, filters.annotation_names)
    ]
    if filters.annotation_names and not named:
        wanted = " or ".join(map(repr, filters.annotation_names))
        how = "with a name like" if filters.inexact_match else "named"
        hint = "" if filters.inexact_match or not has else " (give the whole name, or --inexact-match)"
        return f"no annotation {how} {wanted}; {instead}{hint}"
    return f"no annotation meets {filters.describe()}; {instead}"


def _names(names: set[str]) -> str:
    shown = [repr(name) for name in sorted(names)]
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more


def raise_if_nothing(report: EligibilityReport, catalogue: Catalogue, filters: PortalFilters) -> None:
    """Refuse a request of which nothing can be extracted.

    Parameters
    ----------
    report
        What was found.
    catalogue
        What the portal has.
    filters
        The request.

    Raises
    ------
    NotFoundError
        No annotation meets the request.
    IneligibleError
        Something was found, but nothing of it can be extracted.
    """
    if report.n_picks:
        return
    empty = [
        f"{row.label}: the file of picks is empty" for row in report.of_status("extract") if not row.n_picks
    ]
    message = _listed([*empty, *report.sentences()])
    if report.rows or any(only_identified(one, filters) for one in catalogue.unmatched):
        raise IneligibleError(message, report)
    raise NotFoundError(message)


def _listed(sentences: list[str]) -> str:
    if len(sentences) == 1:
        return sentences[0]
    shown = sentences[: 2 * _SHOWN]
    more = [f"and {len(sentences) - len(shown)} more"] if len(sentences) > len(shown) else []
    return f"nothing can be extracted, for {len(sentences)} reasons:\n" + "\n".join(
        f"  - {sentence}" for sentence in [*shown, *more]
    )
