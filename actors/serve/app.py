"""The OpenAI API over an engine, as an ASGI app.

Runs under uvicorn, on an `Engine` of the same process or on the replicas of a deployment.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException
from starlette.responses import Response

from hotcold.actors.serve.bodies import ChatBody, CompletionBody, EmbeddingsBody
from hotcold.actors.serve.describing import describe, said
from hotcold.actors.serve.errors import ApiError, answer
from hotcold.actors.serve.generations import Generates
from hotcold.actors.serve.guard import Guard
from hotcold.actors.serve.page import add_page
from hotcold.actors.serve.service import Service
from hotcold.actors.serve.settings import ServeConfig
from hotcold.runtime.text.chat import ChatTemplate

EMBEDDED = "hotcold"


def create_app(
    engine: Generates,
    settings: ServeConfig,
    *,
    key: str | None = None,
    name: str = EMBEDDED,
    template: ChatTemplate | None = None,
    is_ready: Callable[[], Awaitable[bool]] | None = None,
) -> FastAPI:
    """The app; `app.state.service` is its `Service`.

    `key` is what clients must show; `name` what they call the model; `template` makes prompts of
    chats. `is_ready` says whether generations can begin; None: as long as the engine is whole.
    """

    async def whole() -> bool:
        return bool(getattr(engine, "is_whole", True))

    service = Service(engine, settings, name, template, is_ready or whole)
    app = FastAPI(title="hotcold", docs_url=None, redoc_url=None)
    app.state.service = service
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    _add_routes(app, service)
    _add_errors(app)
    add_page(app, engine)
    app.add_middleware(Guard, settings=settings, key=key)
    if settings.cors_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origin),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.get("/health", responses=said())
    async def health() -> Response:
        """Whether the server answers."""
        return answer({"status": "ok"})

    @app.get("/ready", responses=said(503))
    async def ready() -> Response:
        """Whether generations can begin."""
        if service.draining or not await service.is_ready():
            raise ApiError(503, "the server is not ready", headers={"Retry-After": "1"})
        return answer({"status": "ready"})

    @app.get("/v1/models", responses=said())
    async def models() -> Response:
        """The one model."""
        return answer({"object": "list", "data": [_model(service)]})

    @app.get("/v1/models/{model:path}", responses=said(404))
    async def model(model: str) -> Response:
        """What is known of it."""
        service.check_model(model)
        return answer(_model(service))

    @app.post("/v1/completions", responses=said(400, 404, 408, 413, 415, 429, 503))
    async def completions(body: CompletionBody) -> Response:
        """Continue texts."""
        return await service.completion(body)

    @app.post("/v1/chat/completions", responses=said(400, 404, 408, 413, 415, 429, 503))
    async def chat(body: ChatBody) -> Response:
        """Say the next message of a chat."""
        return await service.chat(body)

    @app.post("/v1/embeddings", responses=said(400, 413, 415, ok=False))
    async def embeddings(body: EmbeddingsBody) -> Response:
        """Refused: the model makes text."""
        raise ApiError(400, "this server makes no embeddings", code="unsupported_endpoint")


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "hotcold",
        "max_model_len": service.engine.context,
    }


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(HTTPException)
    async def no_such(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path[:200]}: {error.detail}"
        return ApiError(error.status_code, message, headers=dict(error.headers or {})).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:] if isinstance(part, (str, int)))
        if first["type"] == "json_invalid":
            return ApiError(400, f"the body is no JSON: {first['ctx']['error']}").response()
        return ApiError(400, f"{where or 'the body'}: {first['msg']}", where or None).response()
