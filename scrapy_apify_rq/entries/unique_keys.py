"""Unique keys and the ids that follow from them.

A request queue holds one entry for each unique key. ``Keys`` decides which requests of a crawl
share one: those with the same fingerprint, or those to which Crawlee gives the same key (see
``crawlee_keys``). ``request_id`` is the platform's rule for the id of an entry, which is not
specified anywhere; tests/unit/test_unique_keys.py replays executed vectors.
"""

from __future__ import annotations

import secrets
from binascii import b2a_base64
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from typing import TYPE_CHECKING, Final, Protocol

from scrapy.dupefilters import BaseDupeFilter
from scrapy.utils.misc import load_object

from scrapy_apify_rq.entries.crawlee_keys import extended_key, url_key, url_key_of_javascript
from scrapy_apify_rq.entries.mending import well_formed
from scrapy_apify_rq.entries.wire_fields import write_headers

if TYPE_CHECKING:
    from scrapy import Request
    from scrapy.crawler import Crawler

    from scrapy_apify_rq.setting_readers import KeyKind

_ID_LENGTH: Final = 15
_OF_CRAWLEE: Final = {
    "url": url_key,
    "url-js": url_key_of_javascript,
    "extended": extended_key,
}


def request_id(unique_key: str) -> str:
    """Return the id that the platform gives to a unique key; verified against executed vectors."""
    data = well_formed(unique_key).encode()
    encoded = b2a_base64(sha256(data).digest(), newline=False)
    return encoded.translate(None, b"+/=")[:_ID_LENGTH].decode()


def start_key(key: str, number: int, content: str = "") -> str:
    """Return the key of the n-th start request with this key and content that must not be filtered.

    Numbers begin with 1. ``content`` is "" for what ``start_urls`` makes.
    """
    return f"{key}:start{number}" + (f":{content}" if content else "")


class Parent(Protocol):
    """A request on whose behalf others are made."""

    @property
    def identity(self) -> str:
        """The same in each run that tries it, and another one for each retry."""

    @property
    def made(self) -> Counter[str]:
        """How many requests of each kind it has led to so far that must not be filtered."""


class Keys:
    """Gives the requests of one crawl their unique keys; ``kind`` is ``APIFY_RQ_UNIQUE_KEY``.

    ``fingerprint`` takes the place of the crawl's own fingerprints.
    """

    def __init__(
        self,
        crawler: Crawler,
        kind: KeyKind,
        fingerprint: Callable[[Request], str] | None = None,
    ) -> None:
        self._fingerprint = fingerprint
        self._fingerprinter = crawler.request_fingerprinter
        self._of_crawlee = _OF_CRAWLEE.get(kind)
        dupefilter = load_object(crawler.settings["DUPEFILTER_CLASS"])
        self._filters_nothing = dupefilter is BaseDupeFilter
        self._starts: Counter[str] = Counter()
        """How many repeatable start requests of each kind there have been so far."""
        self._run = secrets.token_hex(8)

    def plain(self, request: Request) -> str:
        """Return the key that this request shares with all that Scrapy filters as the same."""
        if self._of_crawlee is not None:
            headers = write_headers(request.headers, {})  # as others will see them
            return self._of_crawlee(request.url, request.method, request.body, headers.items())
        if self._fingerprint is not None:
            return self._fingerprint(request)
        return self._fingerprinter.fingerprint(request).hex()

    def is_repeatable(self, request: Request) -> bool:
        """Return True if Scrapy crawls it even if it has crawled the same before."""
        return request.dont_filter or self._filters_nothing

    # Of one request alone. ``plain`` is what it shares with others, and ``content`` says in which
    # other ways it differs from these: see RequestConverter.content().

    def of_start(self, plain: str, content: str, *, each_run: bool = False) -> str:
        """Return the key of a start request.

        The n-th of a kind has the same key in every run and every worker, so nobody repeats it,
        in whatever order ``start()`` yields them. ``each_run``: it is repeated by each.
        """
        kind = f"{plain}:{content}"
        self._starts[kind] += 1
        number = self._starts[kind]
        key = f"{plain}:run{self._run}" if each_run else plain
        return start_key(key, number, content)

    def of_child(self, plain: str, content: str, parent: Parent) -> str:
        """Return the key of a request that another one has led to.

        It is the same if a later run has to repeat the parent.
        """
        kind = f"{plain}:{content}"
        parent.made[kind] += 1
        source = f"{parent.identity}:{content}:{parent.made[kind]}"
        return f"{plain}:{sha256(source.encode()).hexdigest()[:16]}"

    def of_none(self, plain: str) -> str:
        """Return the key of a request that nothing in the crawl has led to, as far as we know."""
        return f"{plain}:{secrets.token_hex(8)}"
