"""URL, body and headers, between what Scrapy takes and the texts of the API.

Where the API's field cannot hold them exactly, the bytes go into ``userData.scrapy`` as well.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Final
from urllib.parse import urlsplit

from scrapy.http import Headers

from scrapy_apify_rq.entries.mending import without_words
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.value_reader import decode
from scrapy_apify_rq.entries.values import encode
from scrapy_apify_rq.errors import CodecError

# Characters. Names of hosts end at 253.
_LONGEST_HOST: Final = 1000


def read_url(url: str) -> str:
    """Refuse a host that Request would take many seconds to write in ASCII."""
    if len(url) <= _LONGEST_HOST or url.isascii():
        return url
    try:
        host = urlsplit(url).netloc
    except ValueError:  # Request refuses it at once, or leaves it as it is (verbatim_url)
        return url
    if len(host) > _LONGEST_HOST and not host.isascii():
        raise CodecError(f"its URL has a host of {len(host)} characters")
    return url


def write_body(body: bytes, blob: dict[str, Any]) -> str | None:
    """Return the ``payload``; a body that is not UTF-8 text goes into the blob instead."""
    if not body:
        return None
    try:
        return body.decode()
    except UnicodeDecodeError:
        blob["body"] = base64.b64encode(body).decode()
        return None


def read_body(entry: Entry, blob: dict[str, Any]) -> bytes:
    if "body" in blob:
        return base64.b64decode(blob["body"], validate=True)
    if isinstance(entry.payload, dict):  # Crawlee for JavaScript may store an object
        buffer = _read_buffer(entry.payload)
        return without_words(json.dumps(entry.payload)).encode() if buffer is None else buffer
    return (entry.payload or "").encode()


def _read_buffer(payload: dict[str, Any]) -> bytes | None:
    """Read a Buffer of Node.js, as its JSON.stringify() writes it. None if it is not one."""
    data = payload.get("data")
    if payload != {"type": "Buffer", "data": data} or not isinstance(data, list):
        return None
    try:
        return bytes(data)
    except (TypeError, ValueError):
        return None


def write_headers(headers: Headers, blob: dict[str, Any]) -> dict[str, str]:
    """Return the ``headers`` for others to read; the blob gets them too if these are inexact."""
    wire: dict[str, str] = {}
    exact = True
    for name, values in headers.items():
        if not values:  # None: no middleware may set it, and it is not sent
            exact = False
            continue
        joined = b", ".join(values)
        try:
            wire[name.decode("ascii")] = joined.decode()
        except UnicodeDecodeError:
            wire[name.decode("latin-1")] = joined.decode("latin-1")
            exact = False
        exact = exact and len(values) == 1
    if not exact:
        blob["headers"] = [
            [encode(name), [encode(value) for value in values]] for name, values in headers.items()
        ]
    return wire


def read_headers(entry: Entry, blob: dict[str, Any]) -> list[tuple[bytes, list[bytes]]]:
    if "headers" in blob:
        return [(decode(name), [decode(v) for v in values]) for name, values in blob["headers"]]
    return [(name.encode(), [value.encode()]) for name, value in (entry.headers or {}).items()]
