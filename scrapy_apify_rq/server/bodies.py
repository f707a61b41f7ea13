"""Reads the bodies that callers send, within limits, and the entries in them.

As in ``application``, "Choice:" marks what Apify's reference leaves open.
"""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from typing import Annotated, Any, Final

from aiohttp import hdrs, web
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    field_validator,
)
from pydantic_core import from_json

from scrapy_apify_rq.entries.mending import header_texts, strict_json
from scrapy_apify_rq.entries.models import Entry, in_utc
from scrapy_apify_rq.entries.unique_keys import request_id
from scrapy_apify_rq.limits import MAX_BATCH, MAX_BODY, METHODS
from scrapy_apify_rq.server.errors import ApiError, invalid

try:
    import brotli  # type: ignore[import-untyped, unused-ignore]
except ImportError:  # callers cannot use it then
    brotli = None

# What reading a body costs grows with the values in it: 9 MB of "[]," would block the event loop
# for seconds, and so many for 0.05 s. A thread would not help, since it would hold Python's lock.
# Choice: the platform may take more. Of items, which are read one by one, a body may have more.
_MAX_VALUES: Final = 100_000
_MAX_VALUES_OF_ITEMS: Final = 1_000_000
_JSON_TEXT: Final = re.compile(rb'"[^"]*"')
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_skip_value: Final = json.JSONDecoder().raw_decode
_MAX_HEADERS: Final = 10_000
# Seconds in which a body has to arrive.
_BODY_PATIENCE: Final = 120
# Members of a gzip body, and the bytes that are unpacked at a time.
_MAX_MEMBERS: Final = 10_000
_SLICE: Final = 64 * 1024
_UNPACKING_ERRORS: Final[tuple[type[Exception], ...]] = (
    (zlib.error, EOFError, brotli.error) if brotli else (zlib.error, EOFError)
)


def _texts(values: object) -> object:
    """One problem for all of them: pydantic would list millions."""
    if isinstance(values, list) and not all(isinstance(value, str) for value in values):
        raise ValueError("must be texts")
    return values


def _headers(headers: object) -> object:
    if isinstance(headers, dict) and len(headers) > _MAX_HEADERS:
        raise ValueError(f"has more than {_MAX_HEADERS} headers")
    return header_texts(headers)


class _Incoming(Entry):
    """A request in a body. Unlike a stored entry, it must follow the schema exactly, but for the
    values of headers, about which the schema says nothing.

    Choice: these are stored as texts. Unknown fields are dropped; the platform may refuse them.
    """

    model_config = ConfigDict(strict=True, populate_by_name=False)

    headers: Annotated[dict[str, str] | None, BeforeValidator(_headers)] = None
    error_messages: Annotated[list[str], BeforeValidator(_texts)] = Field(default_factory=list)
    handled_at: Annotated[datetime, Strict(False), AfterValidator(in_utc)] | None = None

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        if method not in METHODS:
            raise ValueError(f"must be one of {', '.join(sorted(METHODS))}")
        return method

    @field_validator("handled_at", mode="before")
    @classmethod
    def _text(cls, date: object) -> object:
        if not isinstance(date, str):
            raise ValueError("must be a date in ISO 8601")
        return date


def read_entry(raw: object, where: str = "") -> Entry:
    if not isinstance(raw, dict):
        raise invalid(f"{where or 'the body'} must be an object")
    given = {name: value for name, value in raw.items() if value is not None}
    unique_key = given.get("uniqueKey")
    given["id"] = request_id(unique_key) if isinstance(unique_key, str) else ""
    try:
        entry = _Incoming.model_validate(given)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(str(part) for part in (where, *problem["loc"]) if part != "")
        raise invalid(f"{path}: {problem['msg']}") from None
    return Entry.model_construct(**dict(entry))


def read_new_entry(raw: object, where: str = "") -> Entry:
    if isinstance(raw, dict) and "id" in raw:
        raise invalid(f"{where or 'the request'} must not have an id, since the queue makes it")
    return read_entry(raw, where)


async def read_json(request: web.Request, kind: type) -> Any:
    """Read the body, which must be a JSON object or array as ``kind`` says."""
    body = await _read_text(request, _MAX_VALUES)
    error = _not_json(request, "object" if kind is dict else "array")
    try:
        value = _parsed(body)
    except (ValueError, RecursionError):
        raise error from None
    if not isinstance(value, kind):
        raise error
    return value


async def read_items(request: web.Request) -> AsyncIterator[dict[str, Any]]:
    """Read the items in the body: one JSON object, or an array of some.

    They are parsed one by one, so that together they may have more values than another body.
    """
    body = await _read_text(request, _MAX_VALUES_OF_ITEMS)
    try:
        for number, text in enumerate(_elements(body.decode())):
            piece = text.encode()
            _check_count(piece, _MAX_VALUES)
            item = _parsed(piece)
            if not isinstance(item, dict):
                raise invalid(f"items.{number} must be an object")
            yield item
    except (ValueError, RecursionError):
        raise _not_json(request, "object or array") from None


def _elements(json_text: str) -> Iterator[str]:
    """The JSON of each element of an array. Anything else is the one element."""
    at = _end_of_space(json_text, 0)
    if json_text[at : at + 1] != "[":
        yield json_text
        return
    sign, at = ",", _end_of_space(json_text, at + 1)
    if json_text[at : at + 1] == "]":
        sign, at = "]", _end_of_space(json_text, at + 1)
    while sign == ",":
        _, end = _skip_value(json_text, at)
        yield json_text[at:end]
        at = _end_of_space(json_text, end)
        sign = json_text[at : at + 1]
        at = _end_of_space(json_text, at + 1)
    if sign != "]" or at != len(json_text):
        raise ValueError


def _end_of_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


async def _read_text(request: web.Request, most: int) -> bytes:
    """Read a body that is JSON with up to so many values."""
    if request.content_type != "application/json":
        raise ApiError(
            400,
            "invalid-content-type-header",
            'The header Content-Type must be "application/json".',
        )
    body = await read_body(request)
    _check_count(body, most)
    return body


def _check_count(body: bytes, most: int) -> None:
    if _count_values(body, most) > most:
        raise ApiError(
            413, "request-too-large", f"The POST payload has more than {most:,} JSON values."
        )


def _not_json(request: web.Request, what: str) -> ApiError:
    return ApiError(400, "invalid-request", f"{request.method} data must be a JSON {what}")


def _count_values(body: bytes, most: int) -> int:
    """Guess how many values this JSON has; few enough are never guessed to be too many."""

    def count(text: bytes) -> int:
        return sum(text.count(sign) for sign in (b",", b"[", b"{"))

    values = count(body)
    if values <= most:
        return values
    # Texts may be full of commas. Without escapes, each quote begins or ends one.
    bare = body.replace(rb"\\", b"").replace(rb"\"", b"")
    texts = bare.count(b'"') // 2
    return texts if texts > most else count(_JSON_TEXT.sub(b"", bare))


def _parsed(body: bytes) -> Any:
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError:
        # Choice: lone surrogates become U+FFFD. The platform cannot store them, either.
        return from_json(strict_json(body))


async def read_batch(request: web.Request) -> list[Any]:
    raw: list[Any] = await read_json(request, list)
    # Choice: the platform's answer to too many requests, and to none, is unknown.
    if not 1 <= len(raw) <= MAX_BATCH:
        raise invalid(f"a batch has 1 to {MAX_BATCH} requests, not {len(raw)}")
    return raw


async def read_body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(_BODY_PATIENCE):
            body = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(request.content_length or MAX_BODY + 1) from None
    except TimeoutError:
        raise ApiError(408, "request-timeout", "The body did not arrive in time") from None
    except (ConnectionError, web.RequestPayloadError):
        raise ApiError(400, "invalid-request", "The body is not complete") from None
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower()
    try:
        body = _decoded(body, encoding)
    except _UNPACKING_ERRORS:
        raise ApiError(
            400, "invalid-request", f"The body is not {encoding}, as its Content-Encoding says"
        ) from None
    if len(body) > MAX_BODY:
        raise _too_large(len(body))
    return body


def _too_large(length: int) -> ApiError:
    # Choice: of a compressed body, the length that was unpacked so far.
    return ApiError(
        413,
        "request-too-large",
        f"The POST payload is too large (limit: {MAX_BODY} bytes, actual length: {length} bytes).",
    )


def _decoded(body: bytes, encoding: str) -> bytes:
    """Unpack the body, but stop once it is longer than allowed."""
    if encoding == "identity":
        return body
    if encoding in ("gzip", "deflate"):
        return _unzipped(body)
    if encoding == "br" and brotli:
        unbrotli = brotli.Decompressor()
        decoded = unbrotli.process(body, output_buffer_limit=MAX_BODY + 1)
        complete = unbrotli.is_finished()
    else:
        raise ApiError(
            415, "unsupported-content-encoding", f'Content-Encoding "{encoding}" is not supported.'
        )
    if not complete and len(decoded) <= MAX_BODY:
        raise EOFError
    return bytes(decoded)


def _unzipped(body: bytes) -> bytes:
    """Unpack gzip, of which several may follow each other, or deflate."""
    decoded = bytearray()
    at = 0
    for _ in range(_MAX_MEMBERS):
        unzip = zlib.decompressobj(wbits=47)  # gzip or deflate, as the first bytes say
        while not unzip.eof:
            if at >= len(body):
                raise EOFError
            packed = unzip.unconsumed_tail or body[at : at + _SLICE]
            decoded += unzip.decompress(packed, MAX_BODY + 1 - len(decoded))
            if len(decoded) > MAX_BODY:
                return bytes(decoded)
            at += len(packed) - len(unzip.unconsumed_tail) - len(unzip.unused_data)
        if at == len(body):
            return bytes(decoded)
    raise EOFError


def named_id(raw: Any, index: int) -> str:
    """The id of an entry in a batch to delete. The batch names it by id or uniqueKey."""
    id, unique_key = (raw.get("id"), raw.get("uniqueKey")) if isinstance(raw, dict) else (0, 0)
    if not isinstance(id, str | None) or not isinstance(unique_key, str | None):
        raise invalid(f"requests.{index}: must be an object with a text as id or uniqueKey")
    if id:
        return id
    if not unique_key:
        raise invalid(f"requests.{index}: id or uniqueKey is missing")
    return request_id(unique_key)
