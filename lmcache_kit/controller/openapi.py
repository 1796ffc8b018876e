"""The OpenAPI 3.1 document, made from the table of routes and the types of their bodies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from lmcache_kit import __version__
from lmcache_kit.controller.routes import Route
from lmcache_kit.controller.schemas import FLAGS, ErrorResponse, WorkerInfo

__all__ = ["openapi_document"]

_REASONS = {
    400: "The request cannot be understood or asks for something impossible",
    401: "The bearer token is missing or wrong",
    404: "Unknown instance, location, method or event; the text names the known ones",
    409: "The state of an object forbids it",
    413: "The body is too large",
    500: "A worker failed",
    502: "A worker sent an answer that cannot be read",
    503: "A worker did not answer within its deadline; see Retry-After",
    507: "It does not fit into the location",
}
_QUERY: dict[str, dict[str, Any]] = {
    "flag": {"type": "string", "enum": list(FLAGS)},
    "string": {"type": "string"},
    "integer": {"type": "integer"},
}


def openapi_document(routes: Sequence[Route], *, token: bool) -> dict[str, Any]:
    """The document; ``token`` says whether a bearer token is asked for."""
    types: list[Any] = [ErrorResponse, WorkerInfo]
    types += [kind for route in routes for kind in (route.request, route.response) if kind is not None]
    _, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    # Instances stand beside the named keys of a lookup's answer.
    components["LookupResponse"]["additionalProperties"] = {
        "description": "an instance's best location and the tokens it holds there",
        "type": "array",
        "prefixItems": [{"type": "string"}, {"type": "integer"}],
        "items": False,
        "minItems": 2,
        "maxItems": 2,
    }
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, token)
    paths["/metrics"] = {"get": _plain("Metrics in the Prometheus text format", "metrics", "text/plain", token)}
    paths["/openapi.json"] = {"get": _plain("This document", "openapi", "application/json", token)}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "lmcache-kit controller", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {"schemas": components},
    }
    if token:
        document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    return document


def _operation(route: Route, token: bool) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": f"{route.method.lower()}_{route.path.strip('/').replace('/', '_').replace('-', '_')}",
        "summary": route.summary,
        "responses": {"200": {"description": "Done", "content": _json(_reference(route.response))}},
    }
    if route.path == "/controller/workers":
        both = {"anyOf": [_reference(route.response), _reference(WorkerInfo)]}
        operation["responses"]["200"]["content"] = _json(both)
    if route.request is not None:
        operation["requestBody"] = {"required": True, "content": _json(_reference(route.request))}
    if route.query:
        operation["parameters"] = [
            {"name": name, "in": "query", "required": False, "description": text, "schema": _QUERY[kind]}
            for name, kind, text in route.query
        ]
    secured = token and not route.open
    _add_errors(operation, (*route.errors, *((401,) if secured else ())))
    if secured:
        operation["security"] = [{"bearer": []}]
    return operation


def _plain(summary: str, name: str, media_type: str, token: bool) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": f"get_{name}",
        "summary": summary,
        "responses": {"200": {"description": "Done", "content": {media_type: {"schema": {}}}}},
    }
    if token:
        _add_errors(operation, (401,))
        operation["security"] = [{"bearer": []}]
    return operation


def _add_errors(operation: dict[str, Any], errors: Sequence[int]) -> None:
    for status in sorted(errors):
        response = {"description": _REASONS[status], "content": _json(_reference(ErrorResponse))}
        if status == 503:
            response["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
        operation["responses"][str(status)] = response


def _reference(kind: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
