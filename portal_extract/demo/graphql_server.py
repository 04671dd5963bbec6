"""The portal's GraphQL API on 127.0.0.1, for the unchanged client."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from portal_extract.demo.graphql_filters import Row
from portal_extract.demo.graphql_schema import PortalSchema
from portal_extract.demo.instruments import Request
from portal_extract.demo.loopback import LoopbackHandler, LoopbackServer

JSON_TYPE = "application/json"


class _GraphQLHandler(LoopbackHandler):
    schema: PortalSchema

    def respond(self, request: Request) -> None:
        """Answer a POST of ``{"query": ...}`` at ``/graphql``."""
        if request.path.rstrip("/") != "graphql":
            self._send(404, {"errors": [{"message": "Not Found"}]})
        elif request.method != "POST":
            self._send(405, {"errors": [{"message": "POST a query"}]})
        else:
            self._send(*self._answer_query(request.body))

    def error_body(self, request: Request, status: int) -> tuple[bytes, str]:
        """Body of an injected error: as a gateway before the API would write it."""
        return f"<html><body>{status}</body></html>".encode(), "text/html"

    def _answer_query(self, body: bytes) -> tuple[int, dict[str, Any]]:
        try:
            posted = json.loads(body)
            query, variables = posted["query"], posted.get("variables")
        except (ValueError, KeyError, TypeError):
            return 400, {"errors": [{"message": "the body must be JSON with a query"}]}
        return 200, self.schema.answer(query, variables)

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        self.send_body(status, json.dumps(answer).encode(), {"Content-Type": JSON_TYPE})


class GraphQLServer(LoopbackServer):
    """API on 127.0.0.1; one request in its log is one query.

    Parameters
    ----------
    tables
        Rows by type name, see :class:`~portal_extract.demo.graphql_schema.PortalSchema`.
    **settings
        ``port`` and ``latency_s`` of :class:`~portal_extract.demo.loopback.LoopbackServer`.
    """

    def __init__(self, tables: Mapping[str, Sequence[Row]], **settings: Any) -> None:
        self.schema = PortalSchema(tables)
        super().__init__(type("Handler", (_GraphQLHandler,), {"schema": self.schema}), **settings)

    @property
    def graphql_url(self) -> str:
        """What to hand to ``cryoet_data_portal.Client``."""
        return f"{self.url}/graphql"
