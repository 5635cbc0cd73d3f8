"""The HTTP interface: OpenAI's image routes over an engine client.

Owns the routes and their documentation. ``validate.py`` checks generation requests, ``images.py``
answers them, ``errors.py`` formats errors, and ``middleware.py`` runs before any route. Imports
neither torch nor ray: the engine is behind ``EngineClient``.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from importlib import resources
from pathlib import PurePath
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request
from fastapi.openapi.utils import get_openapi
from fastapi.security import HTTPBearer
from starlette.responses import JSONResponse, Response

from farm.errors import AdapterNotFound, NotAuthorized, ServingError
from farm.schedulers import SCHEDULERS
from farm.serving.access.api_keys import Tenant
from farm.serving.access.catalog import AdapterFacts, unix_seconds
from farm.serving.access.limits import Limits
from farm.serving.client import ServedBase
from farm.serving.http.errors import error_body, install_error_handlers
from farm.serving.http.idempotency import KEY_PATTERN
from farm.serving.http.images import answer_images, answer_once, stream_images
from farm.serving.http.middleware import Guard
from farm.serving.http.schemas import (
    ErrorAnswer,
    GenerateRequest,
    ImagesAnswer,
    ModelAnswer,
    ModelPage,
)
from farm.serving.http.services import Services
from farm.serving.request import MAX_WEIGHT
from farm.version import __version__

__all__ = ["create_app"]

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "Invalid request; the error names the field."},
    401: {"model": ErrorAnswer, "description": "No key, or an invalid one."},
    403: {"model": ErrorAnswer, "description": "Access denied."},
    404: {"model": ErrorAnswer, "description": "Not found, or not visible to this key."},
    503: {"model": ErrorAnswer, "description": "Starting or restarting; try again."},
}
GENERATE_ERRORS: dict[int | str, dict[str, Any]] = {
    **ERRORS,
    408: {"model": ErrorAnswer, "description": "The body did not arrive in time."},
    409: {"model": ErrorAnswer, "description": "The idempotency key belongs to another request."},
    413: {"model": ErrorAnswer, "description": "The body is too large."},
    415: {"model": ErrorAnswer, "description": "The body is not declared as JSON."},
    422: {"model": ErrorAnswer, "description": "The adapter's files cannot be used."},
    429: {"model": ErrorAnswer, "description": "Too many requests; see Retry-After."},
    504: {"model": ErrorAnswer, "description": "Not finished by its deadline."},
}
PNG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {}, "image/jpeg": {}, "image/webp": {}}}
}
NO_SAMPLES = "no samples were generated for this name's prompts; generate them from this endpoint"
"""Also shown to a tenant whose job was already committed; it does not say by whom."""
_bearer = HTTPBearer(auto_error=False, description="A key from `farm keys create`.")


def create_app(services: Services, *, names_requests: bool = True) -> FastAPI:
    """The ASGI app over given services; ready to run under uvicorn or Ray Serve.

    Args:
        names_requests: whether to add request ids to responses; False behind a proxy that adds
            them.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with services.running():
            yield

    app = FastAPI(
        title="Farm endpoint",
        summary="One base model, thousands of adapters, a different one in every request.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # that page loads scripts from a CDN; /openapi.json is complete
        redoc_url=None,
        redirect_slashes=False,  # the guard reads both spellings
    )
    app.state.services = services
    install_error_handlers(app, services.limits.by_field)
    _add_generation(app, services)
    _add_models(app, services)
    _add_pictures(app, services)
    _add_health(app, services)
    _add_page(app, services.limits)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    app.add_middleware(
        Guard,
        gate=services.gate,
        limits=services.limits,
        observe=_observer(services),
        names_requests=names_requests,
        has_engine=names_requests,  # Ray Serve's ingresses have none
    )
    return app


def _observer(services: Services) -> Any:
    def observe(_: str, route: str, status: int, took_s: float) -> None:
        services.metrics.count("farm_http_requests", route=route, status=str(status))
        services.metrics.observe("farm_http_seconds", took_s, route=route)

    return observe


async def _tenant(request: Request, _: Annotated[object, Depends(_bearer)] = None) -> Tenant:
    """The caller; the guard has already checked the key. Asynchronous to need no thread."""
    tenant = getattr(request.state, "tenant", None)
    if not isinstance(tenant, Tenant):  # a protected route outside the guard's reach
        raise NotAuthorized("no key was sent")
    return tenant


TenantOf = Annotated[Tenant, Depends(_tenant)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        pattern=KEY_PATTERN,
        description="Identifies this request for some minutes: repeating it unchanged with the "
        "same key returns the same response without generating again. Not with `stream`.",
    ),
]


# -- generating --------------------------------------------------------------------------------


def _add_generation(app: FastAPI, services: Services) -> None:
    @app.post(
        "/v1/images/generations",
        tags=["images"],
        summary="Generate images",
        response_model=ImagesAnswer,
        responses={
            **GENERATE_ERRORS,
            200: {
                "model": ImagesAnswer,
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            },
        },
    )
    async def generate(
        asked: GenerateRequest,
        request: Request,
        tenant: TenantOf,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Generate with an adapter, several, or the bare base.

        With ``stream`` the answer is server-sent events: ``image_generation.partial_image``,
        ``image_generation.completed`` and, if requested, ``image_generation.progress``.

        With ``Idempotency-Key`` a repeated request gets the response of the first, and nothing is
        generated again; generation continues if the caller disconnects.
        """
        if idempotency_key is not None:
            return await answer_once(services, tenant, asked, request, idempotency_key)
        if asked.stream:
            return await stream_images(services, tenant, asked, request)
        return await answer_images(services, tenant, asked, request)


# -- models ------------------------------------------------------------------------------------


def _add_models(app: FastAPI, services: Services) -> None:
    @app.get(
        "/v1/models",
        tags=["models"],
        summary="List adapters",
        response_model=ModelPage,
        responses={**ERRORS},
    )
    async def list_models(
        tenant: TenantOf,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        after: Annotated[str, Query(max_length=200)] = "",
        search: Annotated[str, Query(max_length=200)] = "",
    ) -> ModelPage:
        """The base, then this key's adapters by name, in pages."""
        return await _model_page(services, tenant, limit, after, search)

    @app.get(
        "/v1/models/{model_id}",
        tags=["models"],
        summary="One adapter",
        response_model=ModelAnswer,
        responses={**ERRORS},
    )
    async def get_model(model_id: str, tenant: TenantOf) -> ModelAnswer:
        """Details of an adapter, ``name`` or ``name@key``, or of the base."""
        base = await services.client.facts()
        if model_id in (base.id, "base"):
            return _base_model(base)
        named, facts = await services.catalog.resolve(tenant.namespace, model_id)
        return _model(named.name, named.namespace, facts)

    @app.get(
        "/v1/models/{model_id}/samples/{index}",
        tags=["models"],
        summary="A sample image of an adapter",
        response_class=Response,
        responses={**ERRORS, **PNG},
    )
    async def get_sample(model_id: str, index: int, tenant: TenantOf) -> Response:
        """An image generated when the adapter was trained."""
        _, facts = await services.catalog.resolve(tenant.namespace, model_id)
        data = await services.catalog.sample(facts, index)
        kind = facts.samples[index].rsplit(".", 1)[-1].replace("jpg", "jpeg")
        headers = {"cache-control": "private, max-age=3600"}
        return Response(data, media_type=f"image/{kind}", headers=headers)


async def _model_page(
    services: Services, tenant: Tenant, limit: int, after: str, search: str
) -> ModelPage:
    base = await services.client.facts()
    page = await services.catalog.page(
        tenant.namespace, search=search, after="" if after == base.id else after, limit=limit
    )
    data = [
        ModelAnswer(
            id=named.name,
            created=unix_seconds(named.created),
            owned_by=named.namespace,
            job_key=named.job_key,
        )
        for named in page.adapters
    ]
    if not after and search.casefold() in base.id.casefold():
        data.insert(0, _base_model(base))
    return ModelPage(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=page.has_more,
        total=page.total,
    )


def _base_model(base: ServedBase) -> ModelAnswer:
    return ModelAnswer(id=base.id, created=0, owned_by="farm")


def _model(name: str, namespace: str, facts: AdapterFacts) -> ModelAnswer:
    return ModelAnswer(
        id=name,
        created=unix_seconds(facts.created),
        owned_by=namespace,
        job_key=facts.job_key,
        class_noun=facts.class_noun,
        identifier=facts.identifier,
        instance_prompt=facts.instance_prompt,
        num_samples=len(facts.samples),
        note=None if facts.samples else NO_SAMPLES,
    )


# -- images behind links ---------------------------------------------------------------------


def _add_pictures(app: FastAPI, services: Services) -> None:
    @app.get(
        "/v1/pictures/{file}",
        tags=["images"],
        summary="An image behind a signed link",
        response_class=Response,
        responses={**PNG, 400: ERRORS[400], 404: ERRORS[404], 503: ERRORS[503]},
    )
    async def get_picture(
        file: str,
        expires: Annotated[str, Query(max_length=20)] = "",
        signature: Annotated[str, Query(max_length=200)] = "",
    ) -> Response:
        """The target of a ``response_format: url`` link; its signature replaces a key."""
        loop = asyncio.get_running_loop()
        data = await loop.run_in_executor(
            services.executor, services.shelf.get, file, expires, signature
        )
        if data is None:
            raise AdapterNotFound("the link is invalid or has expired")
        kind = file.rsplit(".", 1)[-1]
        return Response(data, media_type=f"image/{kind}")


# -- health ------------------------------------------------------------------------------------


def _add_health(app: FastAPI, services: Services) -> None:
    @app.get("/health", tags=["health"], summary="Whether the process is alive")
    async def health() -> dict[str, str]:
        """200 as long as the process answers requests."""
        return {"status": "ok"}

    @app.get(
        "/ready",
        tags=["health"],
        summary="Whether images can be generated",
        responses={503: {"description": "Still loading, or draining."}},
    )
    async def ready() -> Response:
        """503 while the base loads or the endpoint drains."""
        try:
            load = await services.client.load()
        except ServingError:
            return JSONResponse({"status": "waiting"}, 503, {"retry-after": "1"})
        if not load.ready:
            return JSONResponse({"status": "waiting"}, 503, {"retry-after": "1"})
        return JSONResponse({"status": "ready", "wait_s": round(load.wait_s, 3)})

    @app.get("/metrics", tags=["health"], summary="Numbers for Prometheus", include_in_schema=False)
    async def metrics(tenant: TenantOf) -> Response:
        """Totals over all tenants, so an operator's key is required; under Ray they are served by
        the cluster's own metrics port instead."""
        if not (tenant.operator or services.gate.is_open):
            raise HTTPException(403, "an operator's key is needed: farm keys create --operator")
        text = services.metrics.text()
        if text is None:
            return JSONResponse(
                error_body(404, "the cluster's metrics port has them", "not_found", None), 404
            )
        return Response(text, media_type="text/plain; version=0.0.4")


# -- the page ----------------------------------------------------------------------------------

PAGE_KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}


def _add_page(app: FastAPI, limits: Limits) -> None:
    """Serve the files of ``page/``, the page itself at the root."""
    for file in (resources.files("farm.serving.http") / "page").iterdir():
        kind = PAGE_KINDS.get(PurePath(file.name).suffix)
        if kind is None:
            continue
        content = file.read_bytes()
        if file.name == "index.html":
            _add_file(app, "/", _with_limits(content, limits), kind)
        else:
            _add_file(app, f"/{file.name}", content, kind)


def _with_limits(page: bytes, limits: Limits) -> bytes:
    """The page with this endpoint's limits and schedulers filled in."""
    shown: dict[str, object] = {
        **limits.model_dump(),
        "max_weight": f"{MAX_WEIGHT:g}",
        "schedulers": "".join(f"<option>{name}</option>" for name in SCHEDULERS if name != "base"),
    }
    return re.sub(r"\{(\w+)\}", lambda match: str(shown[match[1]]), page.decode()).encode()


def _add_file(app: FastAPI, path: str, content: bytes, kind: str) -> None:
    @app.get(path, include_in_schema=False)
    async def page_file() -> Response:
        return Response(content, media_type=f"{kind}; charset=utf-8")


# -- documentation -----------------------------------------------------------------------------


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document, without the default 422 schema, which this endpoint never returns."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, summary=app.summary, version=app.version, routes=app.routes
        )
        for methods in schema["paths"].values():
            for operation in methods.values():
                answer = operation["responses"].get("422", {})
                if "HTTPValidationError" in str(answer):
                    del operation["responses"]["422"]
        for unused in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(unused, None)
        app.openapi_schema = schema
    return app.openapi_schema
