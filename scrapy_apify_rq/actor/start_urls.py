"""The input field ``startUrls`` in all the forms that Apify's editor ``requestListSources`` gives.

"https://example.com/"                                      a URL alone
{"url": ..., "method", "headers", "payload", "userData"}    a request; all but the URL may lack
{"requestsFromUrl": "https://...", ...}                     the URLs in the text at this address
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from scrapy import Request

from scrapy_apify_rq.actor.input_fields import START_URLS
from scrapy_apify_rq.errors import BackendError, ConfigError
from scrapy_apify_rq.limits import METHODS

# A URL in a text: to the first character that Apify's own crawlers do not take as part of one.
_URL: Final = re.compile(r"https?://[\w-]+(?:\.[\w-]+)*(?::\d{1,5})?(?:[/?#][-\w@:%+.~#?&/=()]*)?")
# A sheet is a page for people; this is its text.
_SHEET: Final = re.compile(r"(https://docs\.google\.com/spreadsheets/d/[\w-]+)")


class StartUrl(NamedTuple):
    url: str
    method: str
    headers: Mapping[str, str]
    payload: str | None
    user_data: Mapping[str, Any]

    @property
    def is_plain(self) -> bool:
        return (self.method, self.payload) == ("GET", None) and not (self.headers or self.user_data)


def read_start_urls(value: Any) -> list[StartUrl]:
    """Raises ConfigError, which names what is wrong. Lists of URLs are fetched, which blocks."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise ConfigError(f'{START_URLS}: write a list such as [{{"url": "https://example.com"}}]')
    return [
        start
        for number, source in enumerate(value)
        for start in _read_source(source, f"{START_URLS}[{number}]")
    ]


def _read_source(source: Any, name: str) -> Iterator[StartUrl]:
    if isinstance(source, str):
        source = {"url": source}
    if not isinstance(source, dict):
        raise ConfigError(f'{name}: write an object such as {{"url": "https://example.com"}}')
    method = source.get("method") or "GET"
    if not isinstance(method, str) or method not in METHODS:
        raise ConfigError(f"{name}.method: write one of {', '.join(sorted(METHODS))}")
    headers = source.get("headers") or {}
    if not isinstance(headers, dict) or not all(isinstance(one, str) for one in headers.values()):
        raise ConfigError(f"{name}.headers: write an object of texts")
    payload = source.get("payload") or None
    if payload is not None and not isinstance(payload, str):
        raise ConfigError(f"{name}.payload: write a text")
    user_data = source.get("userData") or {}
    if not isinstance(user_data, dict):
        raise ConfigError(f"{name}.userData: write an object")
    if "requestsFromUrl" in source:
        urls: Iterable[str] = _fetch(source["requestsFromUrl"], f"{name}.requestsFromUrl")
    else:
        urls = [_checked(source.get("url"), f"{name}.url")]
    for url in urls:
        yield StartUrl(url, method, headers, payload, user_data)


def _checked(url: Any, name: str) -> str:
    text = url.strip() if isinstance(url, str) else ""
    try:
        Request(text)
    except ValueError:
        raise ConfigError(f"{name}: write a URL such as https://example.com") from None
    return text


def _fetch(url: Any, name: str) -> list[str]:
    # Imported late: few inputs have a list elsewhere.
    from scrapy_apify_rq.backends.apify import blocking

    address = _checked(url, name)
    if not address.startswith(("http://", "https://")):
        raise ConfigError(f"{name}: write a URL such as https://example.com/urls.txt")
    if sheet := _SHEET.match(address):
        address = f"{sheet[1]}/gviz/tq?tqx=out:csv"
    try:
        body = blocking.get(address, what="the list")
    except BackendError as error:
        raise ConfigError(f"{name}: {error}") from None
    if body is None:
        raise ConfigError(f"{name}: there is nothing at this address (404)")
    found = dict.fromkeys(_URL.findall(body.decode(errors="replace")))
    return [_checked(one, f"{name}: {one}") for one in found]


class StartRequests:
    """Completes the requests that a spider makes of its ``start_urls``.

    Scrapy's ``start_urls`` are texts; what else the input says of one is added to the first request
    for it that the spider yields.
    """

    def __init__(self, starts: Iterable[StartUrl], callbacks: Mapping[str, str]) -> None:
        """``callbacks`` names the spider's method for each label."""
        self._callbacks = callbacks
        self._by_url: defaultdict[str, deque[StartUrl]] = defaultdict(deque)
        for start in starts:
            self._by_url[Request(start.url).url].append(start)

    def completed(self, request: Request, spider: Any) -> Request:
        waiting = self._by_url.get(request.url)
        if not waiting:
            return request
        start = waiting.popleft()
        if start.is_plain:
            return request
        changes: dict[str, Any] = {}
        if start.user_data:
            changes["meta"] = {**request.meta, "userData": dict(start.user_data)}
            name = self._callbacks.get(str(start.user_data.get("label")))
            if name is not None and request.callback is None:
                changes["callback"] = getattr(spider, name)
        if start.payload is not None:
            changes["body"] = start.payload
        if start.headers:
            changes["headers"] = {**request.headers, **start.headers}
        if start.method != "GET":
            changes["method"] = start.method
        changed: Request = request.replace(**changes)
        return changed
