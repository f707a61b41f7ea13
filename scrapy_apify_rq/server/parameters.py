"""The parameters in the query of a call, as pydantic models. Each operation has its own beside it.

As in ``application``, "Choice:" marks what Apify's reference leaves open.
"""

from __future__ import annotations

import base64
import json
from typing import Annotated, Final, Self

from aiohttp import web
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails, from_json

from scrapy_apify_rq.limits import CLIENT_KEY_LENGTH
from scrapy_apify_rq.server.errors import ApiError

_MAX_LOCK_SECS: Final = 365 * 24 * 3600
_ERRORS: Final = {"missing": "parameter-required", "literal_error": "param-not-one-of"}


class Parameters(BaseModel):
    """The parameters of an operation. Others are ignored."""

    model_config = ConfigDict(alias_generator=to_camel)

    @classmethod
    def read(cls, request: web.Request) -> Self:
        query = request.query
        # Choice: without a value a parameter counts as absent, but a client key is wrong.
        given = {name: query[name] for name in query if query[name] or name == "clientKey"}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise _refusal(error.errors(include_url=False, include_input=False)[0]) from None


def _refusal(problem: ErrorDetails) -> ApiError:
    name = problem["loc"][0] if problem["loc"] else ""
    kind = _ERRORS.get(problem["type"], "invalid-parameter")
    if name == "clientKey":
        kind = "invalid-client-key"
    return ApiError(400, kind, f'Parameter "{name}": {problem["msg"]}')


class ClientParameters(Parameters):
    client_key: Annotated[str, Field(min_length=1, max_length=CLIENT_KEY_LENGTH)] | None = None


class Forefront(Parameters):
    forefront: bool = False


def up_to(maximum: int) -> AfterValidator:
    """Choice: more than the maximum means the maximum, and so does 0."""
    return AfterValidator(lambda number: min(number or maximum, maximum))


Count = Annotated[int, Field(ge=0, lt=2**53)]
# Choice: the platform's bounds are unknown, and whether it keeps fractions. We do.
LockSecs = Annotated[float, Field(gt=0, le=_MAX_LOCK_SECS)]


def write_cursor(after: str | int | None) -> str:
    """Choice: what is known is that the form depends on whether there is a filter."""
    name = "requestId" if isinstance(after, str) else "orderNo"
    text = json.dumps({name: after}, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> str | int:
    padding = "=" * (-len(cursor) % 4)
    match from_json(base64.urlsafe_b64decode(cursor + padding)):
        case {"requestId": str(id)}:
            return id
        case {"orderNo": int(position)} if abs(position) < 2**63:
            return position
    raise ValueError("must be the nextCursor of an answer")


Cursor = Annotated[str | int, BeforeValidator(_read_cursor)]
"""The id after which a page starts, or, with a filter, the position."""
