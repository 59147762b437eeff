"""The API's own OpenAPI description: FastAPI's, with the errors that this server gives."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

WORDS = {
    400: "The request cannot be answered.",
    401: "The key is missing or wrong.",
    404: "There is no such model.",
    408: "The request took too long.",
    413: "The request is too large.",
    415: "The request is not JSON.",
    429: "The queue is full; Retry-After says when to come again.",
    503: "The engine cannot generate now.",
}


class ErrorObject(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An error."""

    error: ErrorObject


def said(*statuses: int, ok: bool = True) -> dict[int | str, dict[str, Any]]:
    """What a path may answer: 200 if `ok`, 401, and these."""
    made: dict[int | str, dict[str, Any]] = {200: {"description": "The answer."}} if ok else {}
    for status in (401, *statuses):
        made[status] = {"model": ErrorBody, "description": WORDS[status]}
    return made


def describe(app: FastAPI) -> dict[str, Any]:
    """The description; a body that is not as described is answered by 400, not 422."""
    if app.openapi_schema is None:
        made = get_openapi(title="hotcold", version="1", routes=app.routes)
        made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        made["security"] = [{}, {"key": []}]
        for path in made["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for unused in ("HTTPValidationError", "ValidationError"):
            made["components"]["schemas"].pop(unused, None)
        app.openapi_schema = made
    return app.openapi_schema
