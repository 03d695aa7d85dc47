"""The application: routes, error answers, and the control plane's life around them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from lattice_server.api import (
    connectors,
    enrollment,
    events,
    gateway,
    health,
    latticepeers,
    management,
    policy,
    reach,
    trusts,
)
from lattice_server.api.common import PROBLEM_SCHEMA
from lattice_server.api.direct import Direct
from lattice_server.bootstrap import prepare_directory
from lattice_server.control import ControlPlane
from lattice_server.holding import Holding
from lattice_server.middleware import Edge
from lattice_server.problems import ApiProblem
from lattice_server.settings import ServerSettings
from lattice_server.validation import problem_of

VERSION = "0.1.0"


class _Application(FastAPI):
    """The routes, and before them what is served without looking for its route."""

    direct: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or connection."""
        if Direct.takes(scope):
            await self.direct(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(settings: ServerSettings) -> FastAPI:
    """The control plane as an ASGI application; ``app.state.control`` is its inside.

    Its lifespan migrates the database and starts the background tasks, and ends them.
    """
    control = ControlPlane(settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        prepare_directory(settings.data_dir)
        await control.start()
        try:
            yield
        finally:
            await control.stop()

    holding = Holding()
    app = _Application(
        title="Lattice control plane",
        version=VERSION,
        summary="Identities with a policy and an end for AI agents",
        description=(
            "Every answer carries `Lattice-Time`, the server's time as RFC 3339 with milliseconds: "
            "`expiresAt` minus `Lattice-Time` is what is left, whatever the client's clock says. "
            "Errors are RFC 9457 problem documents with a stable `code`."
        ),
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        separate_input_output_schemas=False,
    )
    app.state.control = control
    for module in (
        enrollment,
        reach,
        connectors,
        management,
        trusts,
        policy,
        events,
        latticepeers,
        health,
        gateway,
    ):
        app.include_router(module.router)
    app.add_middleware(Edge, metrics=control.metrics, holding=holding)
    direct = Direct(control, super(_Application, app).__call__)
    app.direct = Edge(direct, metrics=control.metrics, holding=holding)
    app.add_exception_handler(ApiProblem, _answer_problem)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    _document(app)
    return app


async def _answer_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiProblem)  # noqa: S101 - registered for it alone
    request.app.state.control.metrics.refusals.labels(error.code).inc()
    return error.response()


async def _answer_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it alone
    return await _answer_problem(request, problem_of(error, request.headers.get("content-type")))


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it alone
    code, detail = {
        400: ("invalid_json", "the body is not valid JSON"),
        404: ("not_found", "there is nothing at this path; /openapi.json lists what there is"),
        405: ("method_not_allowed", "this path does not take this method"),
    }.get(error.status_code, ("internal_error", "the server failed; its log says why"))
    return await _answer_problem(request, ApiProblem(code, detail, headers=error.headers))


def _document(app: FastAPI) -> None:
    """Have ``/openapi.json`` say how callers authenticate and what problems look like."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                summary=app.summary,
                description=app.description,
                routes=app.routes,
            )
            components = schema.setdefault("components", {})
            components.setdefault("schemas", {})["Problem"] = PROBLEM_SCHEMA
            components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
            answer = components["schemas"].get("EnrollResponse", {}).get("properties", {})
            for secret in answer.values():
                # The answer is where these are read: the schema of a secret says the opposite.
                secret.pop("writeOnly", None)
            for path, operations in schema["paths"].items():
                for operation in operations.values():
                    if path.startswith("/api"):
                        operation["security"] = [{"bearer": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
