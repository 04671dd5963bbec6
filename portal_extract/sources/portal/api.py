"""The portal's API through its own client, with deadlines, retries and honest filters.

The client (``cryoet-data-portal``) has no timeout, merges two filters on one field wrongly, and drops
operators that a field does not have, so that the filter matches everything. Here each request has a
deadline, ids go in batches, and an operator is looked up in the schema before it is sent.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import cryoet_data_portal as cdp
import requests
from gql.transport.exceptions import (
    TransportConnectionFailed,
    TransportProtocolError,
    TransportQueryError,
    TransportServerError,
)
from graphql import GraphQLError, GraphQLInputObjectType

from portal_extract.errors import PortalError
from portal_extract.running.events import Note, Observer, StageAdvanced, ignore
from portal_extract.sources.portal.patience import call_within, pause_s
from portal_extract.sources.portal.rows import RowType, from_models
from portal_extract.sources.portal.settings import DEFAULT_PORTAL_URL, PortalConnection

Result = TypeVar("Result")

#: ids in one request; the portal breaks at about 32,000
BATCH = 1000
#: requests at a time: few, each is one large answer
API_REQUESTS_IN_FLIGHT = 4
#: the portal masks its own failures by this message, passing ones and lasting ones
MASKED_ERROR = "Unexpected error"
_MASKED_ATTEMPTS = 2
_RETRIED_STATUS = {408, 429, 500, 502, 503, 504}

STAGE = "Asking the portal"


class _Client(cdp.Client):  # type: ignore[misc]
    """The portal's client with socket timeouts, and without its own hasty retries."""

    def __init__(self, url: str, timeout_s: float) -> None:
        super().__init__(url)
        self._timeout_s = timeout_s

    def get_client(self) -> Any:
        client = super().get_client()
        client.transport.retries = 0
        client.transport.default_timeout = self._timeout_s
        return client


class MaskedError(PortalError):
    """The portal failed on a query and does not tell why."""


@dataclass(frozen=True, slots=True)
class In:
    """A field has one of these values; several of these on one field must all hold."""

    field: str
    values: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Like:
    """A text field contains one of these texts, upper or lower case."""

    field: str
    texts: Sequence[str]


Condition = In | Like


class PortalApi:
    """Finds rows; one object serves one resolution.

    Parameters
    ----------
    connection
        Address and patience.
    observer
        Is told of requests and retries.
    sleep
        Waits between attempts; for tests.
    """

    def __init__(
        self,
        connection: PortalConnection,
        observer: Observer = ignore,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = connection.portal_url or DEFAULT_PORTAL_URL
        self._connection = connection
        self._observer = observer
        self._sleep = sleep
        self._client = _Client(self.url, connection.request_timeout_s)
        self._ends_s = time.monotonic() + connection.deadline_s

    def find(
        self, model: str, row_type: type[RowType], conditions: Sequence[Condition] = ()
    ) -> list[RowType]:
        """Rows that meet all conditions, by id.

        A list of ids is sent in batches of 1000; texts are sent one by one.

        Parameters
        ----------
        model
            Name of the class in the portal's client.
        row_type
            What to make of each row.
        conditions
            On fields of the class itself.

        Raises
        ------
        PortalError
            The API did not answer in time, or answered an error.
        """
        parts = _batches(conditions)
        if len(parts) == 1:
            rows = self._find_once(model, row_type, parts[0])
        else:
            with self.pool() as pool:
                found = list(pool.map(partial(self._find_once, model, row_type), parts))
            rows = list({row.id: row for rows in found for row in rows}.values())
        return sorted(rows, key=lambda row: row.id)

    def find_by(
        self, model: str, row_type: type[RowType], field: str, values: Iterable[int]
    ) -> list[RowType]:
        """Rows whose field has one of these values; none, without a request, for no values."""
        wanted = sorted(set(values))
        return self.find(model, row_type, [In(field, wanted)]) if wanted else []

    def find_isolating(
        self, model: str, row_type: type[RowType], field: str, values: Iterable[int]
    ) -> tuple[list[RowType], frozenset[int]]:
        """Rows like :meth:`find_by`, and the values whose rows the portal cannot deliver.

        One row that the portal cannot put into its answer spoils the answers for all others: the list is
        halved until the values at fault are found.
        """
        wanted = sorted(set(values))
        bad: set[int] = set()
        rows: list[RowType] = []
        waiting = [wanted[i : i + BATCH] for i in range(0, len(wanted), BATCH)]
        while waiting:
            part = waiting.pop(0)
            try:
                rows += self.find(model, row_type, [In(field, part)])
            except MaskedError:
                if len(part) == 1:
                    bad.update(part)
                else:
                    middle = len(part) // 2
                    waiting += [part[:middle], part[middle:]]
        return sorted(rows, key=lambda row: row.id), frozenset(bad)

    def pool(self) -> ThreadPoolExecutor:
        """Return threads for requests that do not depend on each other."""
        return ThreadPoolExecutor(API_REQUESTS_IN_FLIGHT, "portal-api")

    def _find_once(
        self, model: str, row_type: type[RowType], part: Mapping[tuple[str, str], Any]
    ) -> list[RowType]:
        cls = _model_class(model)
        filters = [self._expression(cls, field, operator, value) for (field, operator), value in part.items()]
        if any(operator == "_in" and not value for (_, operator), value in part.items()):
            return []
        found = self._attempt(f"find {model}", lambda: cls.find(self._client, filters))
        self._observer(StageAdvanced(STAGE, 1))
        return from_models(row_type, found)

    def _expression(self, cls: Any, field: str, operator: str, value: Any) -> Any:
        """Filter of the client, if the field has the operator: the client would drop it silently."""
        clause = self._client.schema.type_map[f"{cls._get_gql_type()}WhereClause"]
        expression = getattr(cls, field)
        comparators = clause.fields[expression.to_gql()].type
        if not isinstance(comparators, GraphQLInputObjectType) or operator not in comparators.fields:
            raise PortalError(f"the portal's API cannot compare {cls.__name__}.{field} by {operator}")
        return expression._in(value) if operator == "_in" else expression.ilike(value)

    def _attempt(self, what: str, call: Callable[[], Result]) -> Result:
        """Call with retries; each attempt and all together have a deadline."""
        connection = self._connection
        for attempt in itertools.count(1):
            left = self._ends_s - time.monotonic()
            if left <= 0:
                raise PortalError(
                    f"{self.url}: no time left to {what}: the portal's metadata took longer than "
                    f"{connection.deadline_s:g} s; ask for fewer runs, or later"
                )
            try:
                return call_within(min(left, connection.request_timeout_s), call)
            except _TRANSIENT as error:
                cause, limit = _cause(error, connection.request_timeout_s), connection.attempts
                masked = isinstance(error, TransportQueryError)
                if not _is_worth_retrying(error):
                    raise _portal_error(self.url, what, cause, masked and MASKED_ERROR in cause) from None
                if attempt >= (min(limit, _MASKED_ATTEMPTS) if masked else limit):
                    times = f" after {attempt} attempts" if attempt > 1 else ""
                    raise _portal_error(self.url, what, cause + times, masked) from None
            except GraphQLError as error:
                raise PortalError(
                    f"{self.url}: the installed client refuses to {what}: {error.message}"
                ) from None
            pause = pause_s(connection.backoff_s, attempt)
            self._observer(Note(f"portal: {what}: {cause}; attempt {attempt + 1} in {pause:.1f} s"))
            self._sleep(max(0.0, min(pause, self._ends_s - time.monotonic())))
        raise AssertionError("unreachable")  # pragma: no cover


_TRANSIENT = (
    TransportConnectionFailed,
    TransportProtocolError,
    TransportQueryError,
    TransportServerError,
    requests.RequestException,
    TimeoutError,
)


def _model_class(name: str) -> Any:
    """Find a class of the client; identified objects are reached through runs, as it does not export them."""
    return (
        cdp.Run.identified_objects.get_related_class() if name == "IdentifiedObject" else getattr(cdp, name)
    )


def _batches(conditions: Sequence[Condition]) -> list[dict[tuple[str, str], Any]]:
    """Turn conditions into requests: every combination of a batch of each list and one of the texts."""
    ids: dict[str, list[Any]] = {}
    texts: dict[str, list[str]] = {}
    for condition in conditions:
        if isinstance(condition, Like):
            # wildcards of the text stay in: the answer is then too long, and is sifted by the caller
            texts[condition.field] = [f"%{text.replace(chr(92), '_')}%" for text in condition.texts]
        else:
            known = ids.get(condition.field)
            wanted = list(dict.fromkeys(condition.values))
            ids[condition.field] = wanted if known is None else [value for value in wanted if value in known]
    choices: list[list[tuple[tuple[str, str], Any]]] = [
        [((field, "_in"), values[i : i + BATCH]) for i in range(0, max(1, len(values)), BATCH)]
        for field, values in ids.items()
    ]
    choices += [[((field, "_ilike"), pattern) for pattern in patterns] for field, patterns in texts.items()]
    return [dict(choice) for choice in itertools.product(*choices)]


def _is_worth_retrying(error: BaseException) -> bool:
    if isinstance(error, TransportServerError):
        return error.code is None or error.code in _RETRIED_STATUS
    if isinstance(error, TransportQueryError):
        return MASKED_ERROR in str(error)
    return True


def _cause(error: BaseException, timeout_s: float) -> str:
    """Say what went wrong, in a few words."""
    if isinstance(error, TimeoutError):
        return str(error)
    if isinstance(error, TransportServerError):
        return f"HTTP status {error.code}"
    if isinstance(error, TransportQueryError):
        parts = [part for part in error.errors or [] if isinstance(part, Mapping)]
        messages = [str(part.get("message", part)) for part in parts]
        return "the API answered: " + ("; ".join(messages) or str(error))
    if isinstance(error, TransportProtocolError):
        return "the answer is no GraphQL: is this the address of the portal's API?"
    if isinstance(error.__cause__, requests.Timeout):
        return f"no answer within {timeout_s:g} s"
    return f"no connection ({type(error.__cause__ or error).__name__})"


def _portal_error(url: str, what: str, cause: str, masked: bool) -> PortalError:
    kind = MaskedError if masked else PortalError
    return kind(f"{url}: could not {what}: {cause}")
