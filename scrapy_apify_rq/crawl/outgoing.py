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

    __slots__ = (
        "_answered",
        "_cookies",
        "_headers",
        "_inherited",
        "_live",
        "_meta",
        "_sent",
        "_sent_cookies",
        "_sent_headers",
        "_touched",
    )

    def __init__(self, request: Request, stored: Stored | None = None) -> None:
        """``stored`` is what the queue holds of it, if it has inherited more than that."""
        self._live = ref(request)
        own = stored or Stored(request.headers, request.meta, request.cookies)
        self._headers = _copied_headers(own.headers)
        self._meta = dict(own.meta)
        self._cookies = _copied(own.cookies)
        self._inherited = dict(request.meta) if stored else {}
        self._sent: dict[str, Any] | None = None
        """``meta`` as the downloader got it; None if it has not got it."""
        self._sent_headers: dict[bytes, Any] = {}
        self._sent_cookies: Any = None
        self._touched: frozenset[str] | None = None
        self._answered: tuple[dict[bytes, Any], dict[str, Any]] | None = None
        """Headers and ``meta`` as the callback got them; None if it has not got them."""

    @property
    def _request(self) -> Request:
        request = self._live()
        assert request is not None
        return request

    def note_sent(self) -> None:
        """Call this when all other downloader middlewares have had the request, or one of them has
        answered it. Only the first call counts: a callback may download its own request again.
        """
        if self._sent is None:
            self._sent = dict(self._request.meta)
            self._sent_headers = _copied_headers(self._request.headers)
            self._sent_cookies = _copied(self._request.cookies)

    def note_answered(self) -> None:
        """Call this when the callback begins, which may change this very request and yield it."""
        self._answered = _copied_headers(self._request.headers), dict(self._request.meta)

    @property
    def _now(self) -> tuple[dict[bytes, Any], dict[str, Any]]:
        """Headers and ``meta`` as whoever made another request of this one has found them."""
        return self._answered or (self._request.headers, self._request.meta)

    def touched(self) -> frozenset[str]:
        """The keys of ``meta`` that changed on the way to the downloader."""
        if self._sent is None:  # it is on its way
            return self._changed_in(self._request.meta)
        if self._touched is None:
            self._touched = self._changed_in(self._sent)
        return self._touched

    def _changed_in(self, meta: dict[str, Any]) -> frozenset[str]:
        now = {**self._inherited, **meta}
        changed = {name for name, value in now.items() if _is_other(self._meta, name, value)}
        return frozenset(changed | (_BY_DOWNLOADER - self._meta.keys()))

    def stored_successor(self, request: Request) -> Stored:
        """What to store of a retry or a redirect, which is made from the request that was sent."""
        headers = Headers(request.headers)
        for name in {*headers, *self._request.headers, *self._headers}:
            if self._is_inherited(request, name):
                _set(headers, name, self._headers.get(name))
        return Stored(headers, self._stored_meta(request), self._stored_cookies(request))

    def stored_link(self, request: Request) -> Stored | None:
        """What to store of a link; None if it has inherited nothing, as most links have not."""
        inherited = [name for name in request.headers if self._is_inherited(request, name)]
        cookies = request.cookies and self._stored_cookies(request)
        has_same = cookies == request.cookies and self.touched().isdisjoint(request.meta)
        if has_same and not inherited:
            return None
        headers = Headers(request.headers)
        for name in inherited:
            _set(headers, name, self._headers.get(name))
        return Stored(headers, self._stored_meta(request), cookies)

    def _stored_cookies(self, request: Request) -> Any:
        """The request's cookies, unless it has them from the way to the downloader."""
        sent = self._request.cookies if self._sent is None else self._sent_cookies
        return self._cookies if request.cookies == sent else request.cookies

    def _is_inherited(self, request: Request, name: bytes) -> bool:
        """Whether a header has its value from the way to the downloader, or lacks one from there.

        Of ``dict``, because the methods of ``Headers`` write each name in their way again. An empty
        list is not a missing header: it says that none may be sent.
        """
        values: Any = dict.get(request.headers, name)
        own = self._headers.get(name)
        if values == own:
            return False
        if self._sent is not None and self._answered is None:
            # A middleware or an errback has made it. What it adds to this very request is its own.
            sent = self._sent_headers.get(name)
            if sent == own or values == sent:
                return bool(sent != own)
        return bool(values == dict.get(self._now[0], name))

    def _stored_meta(self, request: Request) -> dict[str, Any]:
        """The request's meta, but for values that it has from the way to the downloader."""
        meta = dict(request.meta)
        for name in self.touched() & meta.keys():
            if _is_other(self._now[1], name, meta[name]):
                continue  # it was changed on purpose since
            if name in self._meta:
                meta[name] = self._meta[name]
            else:
                del meta[name]
        return meta


def _is_other(meta: dict[str, Any], name: str, value: object) -> bool:
    return name not in meta or meta[name] is not value


def _copied_headers(headers: Headers) -> dict[bytes, Any]:
    # Lists are copied, because appendlist() changes them in place.
    return {name: list(values) for name, values in dict.items(headers)}


def _copied(cookies: Any) -> Any:
    return cookies.copy() if isinstance(cookies, (dict, list)) else cookies


def _set(headers: Headers, name: bytes, values: list[bytes] | None) -> None:
    if values is not None:
        headers[name] = values
    else:
        headers.pop(name, None)
