"""Which entries a site gets at the same time, as far as an entry shows it without being decoded.

Scrapy has a download slot for each host, or for what ``meta["download_slot"]`` names.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlsplit

from scrapy_apify_rq.entries.models import Entry

_SLOT: Final = "download_slot"


def host_of(entry: Entry) -> str:
    """The download slot that the entry names, or the host of its URL; "" if it has none."""
    return host(entry.url, entry.user_data)


def host(url: str, user_data: object) -> str:
    return named_slot(user_data) or _host_of_url(url)


def named_slot(user_data: object) -> str | None:
    """What ``meta["download_slot"]`` of the stored request names."""
    if not isinstance(user_data, dict):
        return None
    stored: Any = user_data.get("scrapy")
    if stored is None and _SLOT in (text := str(user_data.get("scrapy_request", ""))):
        try:
            stored = json.loads(text)
        except (ValueError, RecursionError):  # reported when it is decoded
            return None
    meta = stored.get("meta") if isinstance(stored, dict) else None
    if not isinstance(meta, dict):
        return None
    slot, pairs = meta.get(_SLOT), meta.get("$dict")
    if isinstance(pairs, list):  # how a dict with keys that JSON lacks is written
        slot = next((pair[1] for pair in pairs if _is_slot(pair)), None)
    return slot if isinstance(slot, str) else None


def _is_slot(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and bool(pair[0] == _SLOT)


def _host_of_url(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return _host(f"{scheme}://{rest.partition('/')[0]}")


@lru_cache(10_000)
def _host(origin: str) -> str:
    try:
        return urlsplit(origin).hostname or ""
    except ValueError:  # somebody's own entry; it is reported when it is decoded
        return ""
