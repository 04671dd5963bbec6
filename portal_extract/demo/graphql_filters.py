"""Tables in memory, and the portal's ``where`` and ``orderBy`` clauses over them.

What a clause means follows the portal's API: comparisons with null never match (except ``_is_null`` and
``_eq: null``), an empty comparator matches everything, a filter through a to-many relation asks for one
related row that matches all of it, and only a few relations may be chained.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from graphql import GraphQLObjectType, GraphQLSchema, get_named_type

Row = Mapping[str, Any]
Predicate = Callable[[Row], bool]

MAX_FILTER_DEPTH = 4
MAX_BIND_PARAMETERS = 32767


class PublicError(Exception):
    """An error whose text the API tells its client; all others are masked."""


@dataclass(frozen=True)
class Relation:
    """A relation of a type to another one.

    Attributes
    ----------
    target
        Name of the related type.
    key, target_key
        Fields that are equal in related rows.
    to_many
        Whether several rows can be related.
    """

    target: str
    key: str
    target_key: str
    to_many: bool


class Tables:
    """Rows of every type, with the relations that the schema declares.

    Parameters
    ----------
    schema
        The portal's schema.
    rows
        Rows by type name; a type without rows may be missing, and so may the columns of a row.
    """

    def __init__(self, schema: GraphQLSchema, rows: Mapping[str, Sequence[Row]]) -> None:
        self.schema = schema
        self.types = {
            name: kind
            for name, kind in schema.type_map.items()
            if isinstance(kind, GraphQLObjectType)
            and any(i.name == "EntityInterface" for i in kind.interfaces)
        }
        unknown = sorted(rows.keys() - self.types.keys())
        if unknown:
            raise ValueError(
                f"tables of unknown types {', '.join(unknown)}: known are {', '.join(self.types)}"
            )
        self._rows = {name: list(rows.get(name, ())) for name in self.types}

    def rows(self, type_name: str) -> list[Row]:
        """All rows of a type."""
        return self._rows[type_name]

    @cached_property
    def relations(self) -> dict[str, dict[str, Relation]]:
        """Relations by type and field."""
        return {name: dict(self._relations_of(name)) for name in self.types}

    def is_date(self, type_name: str, field: str) -> bool:
        """Whether a column holds dates."""
        return bool(get_named_type(self.types[type_name].fields[field].type).name == "DateTime")

    def related(self, relation: Relation, row: Row) -> list[Row]:
        """Rows that a relation of a row leads to."""
        value = row.get(relation.key)
        return [] if value is None else self._index(relation.target, relation.target_key).get(value, [])

    @cached_property
    def _indices(self) -> dict[tuple[str, str], dict[Any, list[Row]]]:
        return {}

    def _index(self, type_name: str, key: str) -> dict[Any, list[Row]]:
        index = self._indices.get((type_name, key))
        if index is None:
            index = defaultdict(list)
            for row in self._rows[type_name]:
                index[row.get(key)].append(row)
            self._indices[type_name, key] = index
        return index

    def _relations_of(self, name: str) -> Iterable[tuple[str, Relation]]:
        for field, definition in self.types[name].fields.items():
            target = get_named_type(definition.type).name
            if target in self.types:
                yield field, Relation(target, f"{field}Id", "id", False)
            elif target.removesuffix("Connection") in self.types:
                target = target.removesuffix("Connection")
                back = next(
                    other
                    for other, back_definition in self.types[target].fields.items()
                    if get_named_type(back_definition.type).name == name
                )
                yield field, Relation(target, "id", f"{back}Id", True)


def select(tables: Tables, type_name: str, rows: Iterable[Row], where: Mapping[str, Any] | None) -> list[Row]:
    """Rows that match a ``where`` clause.

    Parameters
    ----------
    tables
        For the relations.
    type_name
        Type of the rows.
    rows
        Rows to choose from.
    where
        The clause as the schema coerces it, or None.

    Raises
    ------
    PublicError
        Too many relations are chained.
    OverflowError
        More values than a database takes in one statement.
    """
    where = where or {}
    if _count_values(where) > MAX_BIND_PARAMETERS:
        raise OverflowError("too many bind parameters")
    matches = _compile(tables, type_name, where, 0)
    return [row for row in rows if matches(row)]


def order(
    tables: Tables, rows: Sequence[Row], clauses: Sequence[Mapping[str, Any]], type_name: str
) -> list[Row]:
    """Sort rows by ``orderBy`` clauses; nulls are the largest values unless the clause says otherwise."""
    ordered = list(rows)
    for clause in reversed(clauses):
        for field, direction in reversed(clause.items()):
            getter, way = _order_getter(tables, type_name, field, direction)
            descending = way.startswith("desc")
            nulls_first = way.endswith("nulls_first") or way == "desc"
            known = sorted(
                (row for row in ordered if getter(row) is not None), key=getter, reverse=descending
            )
            nulls = [row for row in ordered if getter(row) is None]
            ordered = nulls + known if nulls_first else known + nulls
    return ordered


def _order_getter(
    tables: Tables, type_name: str, field: str, direction: Any
) -> tuple[Callable[[Row], Any], str]:
    relation = tables.relations[type_name].get(field)
    if relation is None:
        return (lambda row: row.get(field)), str(direction)
    (inner_field, inner_direction), *more = direction.items()
    if more:
        raise PublicError("order by one field of a relation at a time")
    inner, way = _order_getter(tables, relation.target, inner_field, inner_direction)

    def getter(row: Row) -> Any:
        found = tables.related(relation, row)
        return inner(found[0]) if found else None

    return getter, way


def _count_values(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(_count_values(part) for part in value.values())
    return sum(_count_values(part) for part in value) if isinstance(value, list) else 1


def _compile(tables: Tables, type_name: str, where: Mapping[str, Any], depth: int) -> Predicate:
    if depth > MAX_FILTER_DEPTH:
        raise PublicError("Max filter depth exceeded")
    relations = tables.relations[type_name]
    parts: list[Predicate] = []
    for field, clause in where.items():
        if clause is None:
            continue
        if field in relations:
            parts.append(_related_predicate(tables, relations[field], clause, depth))
        elif field.removesuffix("Aggregate") in relations:
            parts.append(_count_predicate(tables, relations[field.removesuffix("Aggregate")], clause, depth))
        else:
            parts.append(_column_predicate(field, clause, tables.is_date(type_name, field)))
    return lambda row: all(part(row) for part in parts)


def _related_predicate(
    tables: Tables, relation: Relation, clause: Mapping[str, Any], depth: int
) -> Predicate:
    matches = _compile(tables, relation.target, clause, depth + 1)
    keys = {row.get(relation.target_key) for row in tables.rows(relation.target) if matches(row)} - {None}
    return lambda row: row.get(relation.key) in keys


def _count_predicate(tables: Tables, relation: Relation, clause: Mapping[str, Any], depth: int) -> Predicate:
    count = clause["count"]
    matches = _compile(tables, relation.target, count.get("filter") or {}, depth + 1)
    compare = _column_predicate("count", count.get("predicate") or {})
    column, distinct = count.get("arguments"), count.get("distinct")

    def predicate(row: Row) -> bool:
        related: list[Any] = [other for other in tables.related(relation, row) if matches(other)]
        if column is not None:
            related = [other[column] for other in related if other.get(column) is not None]
            related = list(set(related)) if distinct else related
        return compare({"count": len(related)})

    return predicate


def _column_predicate(field: str, comparator: Mapping[str, Any], is_date: bool = False) -> Predicate:
    comparable = _moment if is_date else _same
    tests = [_test(operator, value, comparable) for operator, value in comparator.items()]
    return lambda row: all(test(row.get(field)) for test in tests)


def _test(operator: str, value: Any, comparable: Callable[[Any], Any]) -> Callable[[Any], bool]:
    if operator == "_is_null":
        return lambda cell: (cell is None) == value
    if value is None:
        return lambda cell: cell is None and operator == "_eq"
    if operator in ("_in", "_nin"):
        wanted, inside = {comparable(item) for item in value}, operator == "_in"
        return lambda cell: cell is not None and (comparable(cell) in wanted) == inside
    if operator in _PATTERNS:
        as_regex, flags, positive = _PATTERNS[operator]
        pattern = re.compile(as_regex(value), flags)
        return lambda cell: cell is not None and (pattern.search(cell) is not None) == positive
    compare, reference = _COMPARISONS[operator], comparable(value)
    return lambda cell: cell is not None and compare(comparable(cell), reference)


def _same(value: Any) -> Any:
    return value


def _moment(value: str) -> datetime:
    """Read a date; without a time zone it is in UTC."""
    moment = datetime.fromisoformat(value)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _like_regex(pattern: str) -> str:
    wild = {"%": ".*", "_": "."}
    return r"(?s)\A" + "".join(wild.get(char, re.escape(char)) for char in pattern) + r"\Z"


_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "_eq": lambda a, b: a == b,
    "_neq": lambda a, b: a != b,
    "_gt": lambda a, b: a > b,
    "_gte": lambda a, b: a >= b,
    "_lt": lambda a, b: a < b,
    "_lte": lambda a, b: a <= b,
}
_PATTERNS: dict[str, tuple[Callable[[str], str], int, bool]] = {
    "_like": (_like_regex, 0, True),
    "_nlike": (_like_regex, 0, False),
    "_ilike": (_like_regex, re.IGNORECASE, True),
    "_nilike": (_like_regex, re.IGNORECASE, False),
    "_regex": (str, 0, True),
    "_nregex": (str, 0, False),
    "_iregex": (str, re.IGNORECASE, True),
    "_niregex": (str, re.IGNORECASE, False),
}
