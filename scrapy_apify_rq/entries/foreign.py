"""Entries that other programs wrote: the Apify SDK, Crawlee, and the Scrapy integration of Apify.

``apify.scrapy`` 4.x puts ``Request.to_dict()`` into ``userData.scrapy_request`` as JSON text, with
base64 for bytes. Earlier versions put a pickle there, which is refused. All other programs describe
a request by the fields of the schema, and its page by ``userData.label``.

Crawlee keeps data of its own in ``userData.__crawlee``. We read what Scrapy has a counterpart of:

    maxRetries       meta["max_retry_times"]
    crawlDepth       meta["depth"]
    skipNavigation   the callback gets an empty page, and nothing is downloaded, as in Crawlee

The user data as a whole, but for what we keep in it, is ``meta["userData"]``, and stays in the
entry.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Final

from scrapy import Request

from scrapy_apify_rq.entries.callbacks import SpiderMethods
from scrapy_apify_rq.entries.mending import well_formed_json
from scrapy_apify_rq.entries.models import TURNS, UNREADABLE, Entry
from scrapy_apify_rq.entries.names import Names
from scrapy_apify_rq.entries.request_classes import find_request_class
from scrapy_apify_rq.entries.wire_fields import read_body, read_url
from scrapy_apify_rq.errors import CodecError

_CRAWLEE: Final = "__crawlee"
_NUMBERS: Final = {"maxRetries": "max_retry_times", "crawlDepth": "depth"}


def read_plain(entry: Entry, methods: SpiderMethods, callbacks: Mapping[str, str]) -> Request:
    """Read an entry of the schema's fields alone; ``callbacks`` names the method for each label."""
    label = entry.user_data.get("label")
    name = callbacks.get(label) if isinstance(label, str) else None
    return Request(
        url=read_url(entry.url),
        method=entry.method,
        headers=entry.headers,
        body=read_body(entry, {}),
        callback=None if name is None else methods.get(name),
        meta=_meta(entry, {}),
    )


def read_apify(entry: Entry, methods: SpiderMethods, names: Names) -> Request:
    """Read what ``apify.scrapy`` 4.x wrote."""
    text = entry.user_data["scrapy_request"]
    if not isinstance(text, str) or not text.startswith("{"):
        raise CodecError(
            "userData.scrapy_request is not a JSON object; pickles, which apify.scrapy wrote"
            " before version 4, are refused because reading one can run any code"
        )
    stored = json.loads(well_formed_json(text))
    cls = Request
    if path := stored.get("_class"):
        module, _, name = path.rpartition(".")
        cls = find_request_class(f"{module}:{name}", names)
    values = {name: stored[name] for name in cls.attributes if name in stored}
    values["url"] = read_url(stored["url"])
    values["headers"] = {
        name: [base64.b64decode(value) for value in stored_values]
        for name, stored_values in stored.get("headers", {}).items()
    }
    values["body"] = base64.b64decode(stored.get("body", ""))
    for name in ("callback", "errback"):
        values[name] = methods.get(stored[name]) if stored.get(name) else None
    values["meta"] = _meta(entry, values.get("meta", {}))
    return cls(**values)


def _meta(entry: Entry, meta: dict[str, Any]) -> dict[str, Any]:
    """Add to this ``meta`` what Crawlee and others have written beside the request."""
    others = {
        name: value
        for name, value in entry.user_data.items()
        if name not in ("scrapy_request", UNREADABLE, TURNS)
    }
    counts = {name: _crawlee(entry).get(theirs) for theirs, name in _NUMBERS.items()}
    known = {name: count for name, count in counts.items() if type(count) is int and count >= 0}
    return {**known, **meta, **({"userData": others} if others else {})}


def _crawlee(entry: Entry) -> dict[str, Any]:
    data = entry.user_data.get(_CRAWLEE)
    return data if isinstance(data, dict) else {}


def skips_navigation(entry: Entry) -> bool:
    """Whether Crawlee was told not to fetch this page, only to call its handler."""
    return _crawlee(entry).get("skipNavigation") is True


def apify_start_key(entry: Entry) -> str | None:
    """Return the key of a start request of ``apify.scrapy`` 4.x, without its random prefix.

    ``apify.scrapy`` puts a random text before the key of a request with ``dont_filter``. None for
    all other entries.
    """
    try:
        stored = json.loads(entry.user_data["scrapy_request"])
        meta = stored.get("meta", {})
        is_start = meta.get("is_start_request") and stored.get("dont_filter")
        # A retry or a redirect of a start request is an entry of its own and inherits its meta.
        is_first = not (meta.get("retry_times") or meta.get("redirect_times"))
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return None  # written by others, or broken
    return entry.unique_key.partition("|")[2] if is_start and is_first else None
