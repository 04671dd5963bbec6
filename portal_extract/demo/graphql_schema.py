"""Answers GraphQL queries over the schema that the portal's client ships, from tables in memory."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from graphql import (
    ExecutionResult,
    FieldNode,
    GraphQLError,
    GraphQLResolveInfo,
    GraphQLSchema,
    build_schema,
    execute_sync,
    get_named_type,
    parse,
    validate,
)

from portal_extract.demo.graphql_filters import PublicError, Row, Tables, order, select

MASKED = "Unexpected error."


class PortalSchema:
    """The portal's API over tables.

    Parameters
    ----------
    rows
        Rows by type name, e.g. ``{"Run": [{"id": 1, "datasetId": 2, "name": "TS_1", ...}], ...}``; columns
        have the names of the schema's fields.
    """

    def __init__(self, rows: Mapping[str, Sequence[Row]]) -> None:
        self.schema: GraphQLSchema = build_schema(
            files("cryoet_data_portal").joinpath("data/schema.graphql").read_text()
        )
        self.tables = Tables(self.schema, rows)

    def answer(self, query: str, variables: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run a query; errors are part of the answer.

        Parameters
        ----------
        query
            GraphQL document with one operation.
        variables
            Values of its variables.

        Returns
        -------
        dict
            ``data`` and, if there are any, ``errors``.
        """
        try:
            document = parse(query)
            problems = validate(self.schema, document)
        except GraphQLError as error:
            problems = [error]
        if problems:
            return {"data": None, "errors": [problem.formatted for problem in problems]}
        result = execute_sync(
            self.schema, document, variable_values=variables, field_resolver=self._resolve, middleware=None
        )
        assert isinstance(result, ExecutionResult)
        answer: dict[str, Any] = {"data": result.data}
        if result.errors:
            answer["errors"] = [_masked(error) for error in result.errors]
        return answer

    def _resolve(self, source: Any, info: GraphQLResolveInfo[Any], **arguments: Any) -> Any:
        """Resolve any field: a root field, a relation, an aggregate, or a column."""
        name, parent = info.field_name, info.parent_type.name
        target = get_named_type(info.return_type).name
        if parent == "Query":
            return self._resolve_root(target, arguments)
        if isinstance(source, _Aggregated):
            return source.resolve(name, arguments)
        if parent in self.tables.types:
            if name == "_id":
                return base64.b64encode(f"{parent}:{source['id']}".encode()).decode()
            relation_name = name.removesuffix("Aggregate")
            relation = self.tables.relations[parent].get(relation_name)
            if relation is not None:
                rows = select(
                    self.tables,
                    relation.target,
                    self.tables.related(relation, source),
                    arguments.get("where"),
                )
                if relation_name != name:
                    return {"rows": rows, "type": relation.target}
                if not relation.to_many:
                    return rows[0] if rows else None
                ordered = order(self.tables, rows, arguments.get("orderBy") or [], relation.target)
                return _connection(ordered, arguments)
        if name == "aggregate" and "rows" in source:
            return self._aggregate(source["type"], source["rows"], info)
        return source.get(name)

    def _resolve_root(self, target: str, arguments: dict[str, Any]) -> Any:
        type_name = target.removesuffix("Aggregate")
        rows = select(self.tables, type_name, self.tables.rows(type_name), arguments.get("where"))
        if type_name != target:
            return {"rows": rows, "type": type_name}
        rows = order(self.tables, rows, arguments.get("orderBy") or [], type_name)
        page = arguments.get("limitOffset") or {}
        limit, offset = page.get("limit"), page.get("offset")
        if offset and limit is None:
            raise PublicError("Cannot use offset without limit")
        start = offset or 0
        return rows[start:] if limit is None else rows[start : start + limit]

    def _aggregate(
        self, type_name: str, rows: Sequence[Row], info: GraphQLResolveInfo[Any]
    ) -> list[_Aggregated]:
        paths = [path for node in info.field_nodes for path in _group_paths(node)]
        if not paths:
            return [_Aggregated(rows, {})]
        groups: dict[tuple[Any, ...], list[Row]] = {}
        for row in rows:
            groups.setdefault(tuple(self._value(type_name, row, path) for path in paths), []).append(row)
        return [
            _Aggregated(members, _nest(dict(zip(paths, values, strict=True))))
            for values, members in groups.items()
        ]

    def _value(self, type_name: str, row: Row, path: tuple[str, ...]) -> Any:
        if len(path) == 1:
            return row.get(path[0])
        relation = self.tables.relations[type_name][path[0]]
        found = self.tables.related(relation, row)
        return self._value(relation.target, found[0], path[1:]) if found else None


class _Aggregated:
    """Count and statistics of some rows: what the ``aggregate`` fields resolve on."""

    def __init__(self, rows: Sequence[Row], group: Mapping[str, Any]) -> None:
        self.rows, self.group = rows, group

    def resolve(self, name: str, arguments: Mapping[str, Any]) -> Any:
        if name == "groupBy":
            return self.group
        if name == "count":
            column = arguments.get("columns")
            if column is None:
                return len(self.rows)
            values = self._column(column)
            return len(set(values)) if arguments.get("distinct") else len(values)
        return _Statistics(name, self)

    def _column(self, column: str) -> list[Any]:
        return [row[column] for row in self.rows if row.get(column) is not None]


class _Statistics:
    """One statistic, by column."""

    def __init__(self, name: str, rows: _Aggregated) -> None:
        self.name, self.rows = name, rows

    def get(self, column: str) -> Any:
        values = self.rows._column(column)
        if not values or (self.name in ("stddev", "variance") and len(values) < 2):
            return None
        functions: dict[str, Any] = {
            "sum": sum,
            "avg": statistics.fmean,
            "stddev": statistics.stdev,
            "variance": statistics.variance,
            "min": min,
            "max": max,
        }
        return functions[self.name](values)


def _group_paths(node: FieldNode, inside: bool = False) -> list[tuple[str, ...]]:
    """Paths of the columns selected below ``groupBy``."""
    selections = node.selection_set.selections if node.selection_set else ()
    children = [child for child in selections if isinstance(child, FieldNode)]
    if not inside:
        return [
            path
            for child in children
            if child.name.value == "groupBy"
            for path in _group_paths(child, inside=True)
        ]
    paths: list[tuple[str, ...]] = []
    for child in children:
        below = _group_paths(child, inside=True)
        paths += [(child.name.value, *path) for path in below] or [(child.name.value,)]
    return paths


def _nest(values: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in values.items():
        level = nested
        for part in path[:-1]:
            level = level.setdefault(part, {})
        level[path[-1]] = value
    return nested


def _connection(rows: Sequence[Row], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Rows as a page of a connection, with their numbers as cursors."""
    start, stop = 0, len(rows)
    if arguments.get("after") is not None:
        start = int(base64.b64decode(arguments["after"])) + 1
    if arguments.get("before") is not None:
        stop = min(stop, int(base64.b64decode(arguments["before"])))
    if arguments.get("first") is not None:
        stop = min(stop, start + arguments["first"])
    if arguments.get("last") is not None:
        start = max(start, stop - arguments["last"])
    edges = [
        {"cursor": base64.b64encode(str(n).encode()).decode(), "node": rows[n]} for n in range(start, stop)
    ]
    page = {
        "hasNextPage": stop < len(rows),
        "hasPreviousPage": start > 0,
        "startCursor": edges[0]["cursor"] if edges else None,
        "endCursor": edges[-1]["cursor"] if edges else None,
    }
    return {"pageInfo": page, "edges": edges}


def _masked(error: GraphQLError) -> dict[str, Any]:
    """Tell the client an error, or hide its cause as the portal does."""
    formatted: dict[str, Any] = dict(error.formatted)
    if not isinstance(error.original_error, PublicError):
        formatted["message"] = MASKED
    return formatted
