"""What downloader middlewares add to a request on its way to the site.

Proxy credentials, cookies and a user agent belong to one attempt. A retry, a redirect or a link
inherits them when it is made from the request that was sent, and the queue must not store them:
they are secrets, and out of date when the crawl is resumed. The live request keeps them.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple
from weakref import ref

from scrapy import Request
from scrapy.http import Headers

# Scrapy's downloader and its handlers write these after the last middleware.
_BY_DOWNLOADER: Final = frozenset(("download_latency", "download_slot"))


class Stored(NamedTuple):
    """What to store of a request in place of its own headers, meta and cookies."""

    headers: Headers
    meta: dict[str, Any]
    cookies: Any


class Outgoing:
    """One request, from the moment when it is handed to the engine. Whoever asks holds the request.

    Values are compared by identity, because a copy of ``meta`` holds the same objects and a value
    need not know whether it is equal to another.
    """

    __slots__ = ("_cookies", "_headers", "_inherited", "_live", "_meta", "_sent", "_touched")

    def __init__(self, request: Request, stored: Stored | None = None) -> None:
        """``stored`` is what the queue holds of it, if it has inherited more than that."""
        self._live = ref(request)
        own = stored or Stored(request.headers, request.meta, request.cookies)
        # Lists are copied, because appendlist() changes them in place.
        self._headers = {name: list(values) for name, values in dict.items(own.headers)}
        self._meta = dict(own.meta)
        self._cookies = _copied(own.cookies)
        self._inherited = dict(request.meta) if stored else {}
        self._sent: dict[str, Any] | None = None
        """``meta`` as the downloader got it; None if it has not got it."""
        self._touched: frozenset[str] | None = None

    @property
    def _request(self) -> Request:
        request = self._live()
        assert request is not None
        return request

    def note_sent(self) -> None:
        """Call this when all other downloader middlewares have had the request."""
        self._sent = dict(self._request.meta)
        self._touched = None

    def touched(self) -> frozenset[str]:
        """The keys of ``meta`` that changed on the way to the downloader."""
        if self._touched is None:
            sent = {**self._inherited, **(self._sent or {})}
            changed = {name for name, value in sent.items() if _is_other(self._meta, name, value)}
            self._touched = frozenset(changed | (_BY_DOWNLOADER - self._meta.keys()))
        return self._touched

    def stored_successor(self, request: Request) -> Stored:
        """What to store of a retry or a redirect, which is made from the request that was sent."""
        headers = Headers(request.headers)
        for name in {*headers, *self._request.headers, *self._headers}:
            if self._is_inherited(request, name):
                _set(headers, name, self._headers.get(name))
        same_cookies = request.cookies == self._request.cookies
        cookies = self._cookies if same_cookies else request.cookies
        return Stored(headers, self._stored_meta(request), cookies)

    def stored_link(self, request: Request) -> Stored | None:
        """What to store of a link; None if it has inherited nothing, as most links have not."""
        inherited = [name for name in request.headers if self._is_inherited(request, name)]
        if not inherited and self.touched().isdisjoint(request.meta):
            return None
        headers = Headers(request.headers)
        for name in inherited:
            _set(headers, name, self._headers.get(name))
        return Stored(headers, self._stored_meta(request), request.cookies)

    def _is_inherited(self, request: Request, name: bytes) -> bool:
        """Whether a header has its value from the way to the downloader, or lacks one from there.

        Of ``dict``, because the methods of ``Headers`` write each name in their way again. An empty
        list is not a missing header: it says that none may be sent.
        """
        values: Any = dict.get(request.headers, name)
        sent: Any = dict.get(self._request.headers, name)
        return bool(values != self._headers.get(name) and values == sent)

    def _stored_meta(self, request: Request) -> dict[str, Any]:
        """The request's meta, but for values that it has from the way to the downloader."""
        meta = dict(request.meta)
        for name in self.touched() & meta.keys():
            if _is_other(self._request.meta, name, meta[name]):
                continue  # it was changed on purpose since
            if name in self._meta:
                meta[name] = self._meta[name]
            else:
                del meta[name]
        return meta


def _is_other(meta: dict[str, Any], name: str, value: object) -> bool:
    return name not in meta or meta[name] is not value


def _copied(cookies: Any) -> Any:
    return cookies.copy() if isinstance(cookies, (dict, list)) else cookies


def _set(headers: Headers, name: bytes, values: list[bytes] | None) -> None:
    if values is not None:
        headers[name] = values
    else:
        headers.pop(name, None)
