"""The text of a record: JSON data that a crawl keeps beside its entries."""

from __future__ import annotations

import json

from pydantic import JsonValue

from scrapy_apify_rq.errors import CodecError


def to_text(data: JsonValue) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()


def from_text(text: bytes) -> JsonValue:
    """Raises CodecError for what is not JSON."""
    try:
        return json.loads(text)  # type: ignore[no-any-return]
    except (ValueError, RecursionError) as error:
        raise CodecError(f"the record is not JSON: {error}") from None
