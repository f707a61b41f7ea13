"""The text of a record: JSON data that a crawl keeps beside its entries."""

from __future__ import annotations

import hashlib
import json
from typing import Final
from urllib.parse import quote

from pydantic import JsonValue

from scrapy_apify_rq.errors import CodecError

# The names of records are not long everywhere.
_LONGEST_OWNER: Final = 64


def to_text(data: JsonValue) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()


def from_text(text: bytes) -> JsonValue:
    """Raises CodecError for what is not JSON."""
    try:
        return json.loads(text)  # type: ignore[no-any-return]
    except (ValueError, RecursionError) as error:
        raise CodecError(f"the record is not JSON: {error}") from None


def owner_of(client_key: str) -> str:
    """Name a worker in the name of a record."""
    text = quote(client_key, safe="", errors="surrogatepass")
    if len(text) <= _LONGEST_OWNER:
        return text
    return hashlib.sha256(client_key.encode(errors="surrogatepass")).hexdigest()[:32]
