"""Entries as the API takes and gives them: as JSON, without the id when we send them."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any, Final

from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.limits import MAX_BODY

# The rest of a body is for brackets and commas.
PAYLOAD_LIMIT: Final = MAX_BODY - 1024
# Refusals that are about what we sent. All others are about the queue, or the dataset.
ABOUT_CONTENT: Final = frozenset(
    (
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    )
)
# The closing reason and the cure where nobody pays for more.
SPENT: Final = (
    "apify_rq_charge_limit",
    "The run or its account may spend no more. What is left stays pending: raise the limit, and run"
    " the crawl again.",
)


def to_send(entry: Entry) -> bytes:
    """The JSON that we send. Without the id, which the API makes itself and refuses to take."""
    return entry.to_json(with_id=False).encode()


def as_stored(id: str, sent: bytes) -> bytes:
    """The JSON as it is stored, from what was sent."""
    return b'{"id":"%s",%s' % (id.encode(), sent[1:])


def content(entry: Entry) -> Any:
    """What is stored of an entry, to compare it with another."""
    return json.loads(to_send(entry))


def too_long(text: bytes) -> str:
    """Say why this JSON is too long to be sent. Return an empty string if it is not."""
    if len(text) <= PAYLOAD_LIMIT:
        return ""
    return f"its {len(text):,} bytes are more than the API takes"
