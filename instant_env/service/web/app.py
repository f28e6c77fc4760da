"""The ASGI application."""

from __future__ import annotations

import json
import sys
from typing import Any

from fastapi import FastAPI
from starlette.responses import Response

from instant_env import __version__
from instant_env.service.logs import Logger, make_logger
from instant_env.service.operations import Operations
from instant_env.service.web import admin_routes, health_routes, lease_routes, problems
from instant_env.service.web.buckets import Buckets
from instant_env.service.web.context import Web
from instant_env.service.web.envelope import BODY_TIMEOUT_S, Envelope
from instant_env.service.web.page import routes as page_routes
from instant_env.service_settings import ServiceSettings

#: Requests without a valid token from one address. Health checks and the page's files are among them.
PEER_REQUESTS_PER_MINUTE = 300

_DESCRIPTION = """\
An SSH public key in, a machine that lets it in out. Refusals are RFC 9457 problem documents with a closed
list of codes; `retryable` says whether the same request may succeed later."""


def make_app(
    operations: Operations,
    settings: ServiceSettings | None = None,
    *,
    log: Logger | None = None,
    peer_requests_per_minute: int = PEER_REQUESTS_PER_MINUTE,
    body_timeout_s: float = BODY_TIMEOUT_S,
) -> FastAPI:
    """The application. ``app.state.web.stopping`` ends what waits; the listener sets it."""
    settings = settings or ServiceSettings()
    web = Web(
        operations,
        log or make_logger(sys.stderr),
        callers=Buckets(settings.requests_per_minute),
        peers=Buckets(peer_requests_per_minute),
        most_streams=settings.event_streams,
    )
    app = _Application(
        title="instant-env", version=__version__, description=_DESCRIPTION, docs_url=None, redoc_url=None,
        openapi_url=None, redirect_slashes=False,
    )  # fmt: skip
    app.state.web = web
    problems.install(app)
    lease_routes.install(app)
    app.include_router(admin_routes.router)
    app.include_router(health_routes.router)
    app.include_router(page_routes.router)
    app.add_api_route("/openapi.json", _Description(app), include_in_schema=False)
    app.add_middleware(Envelope, web=web, body_timeout_s=body_timeout_s)
    return app


class _Application(FastAPI):
    """With our problems in place of FastAPI's own 422 in the description."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            schema = super().openapi()
            parts = schema["components"]["schemas"]
            for name in ("HTTPValidationError", "ValidationError"):
                parts.pop(name, None)
            own = problems.Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            parts.update(own.pop("$defs", {}))
            parts["Problem"] = own
            _without_item_schema(schema["paths"])
            self.openapi_schema = schema
        return self.openapi_schema


def _without_item_schema(paths: dict[str, Any]) -> None:
    """FastAPI describes events by a word of OpenAPI 3.2 in a document of 3.1, which validators refuse."""
    for operations in paths.values():
        for operation in operations.values():
            for answer in operation["responses"].values():
                if "text/event-stream" in answer.get("content", {}):
                    answer["content"]["text/event-stream"] = {"schema": {"type": "string"}}


class _Description:
    """OpenAPI, rendered once."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._text = b""

    async def __call__(self) -> Response:
        self._text = self._text or json.dumps(self._app.openapi()).encode()
        return Response(self._text, media_type="application/json")
