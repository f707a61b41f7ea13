"""Raw calls to the API: nothing is between the test and the wire but httpx."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from scrapy_apify_rq.entries.unique_keys import request_id
from tests.support.queues import TOKEN, ServedQueue

BEARER = {"Authorization": f"Bearer {TOKEN}"}
NOT_FOUND = (404, "record-not-found")
DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


class Answer:
    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self.json = response.json() if response.content else None

    @property
    def data(self) -> Any:
        assert self.status < 300, self.json
        return self.json["data"]

    @property
    def error(self) -> tuple[int, str]:
        """Status and type."""
        return self.status, self.json["error"]["type"]

    @property
    def message(self) -> str:
        return str(self.json["error"]["message"])


class Caller:
    """Calls what is below ``path``. Keyword arguments are the query's parameters."""

    def __init__(self, http: httpx.Client, path: str) -> None:
        self.http = http
        self.path = path

    def __call__(
        self,
        verb: str,
        path: str = "",
        body: Any = None,
        *,
        content: bytes | None = None,
        headers: dict[str, Any] | None = None,
        **query: Any,
    ) -> Answer:
        """``body`` is sent as JSON, ``content`` as it is."""
        if body is not None:
            content = json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **(headers or {})}
        url = self.path + path
        return Answer(self.http.request(verb, url, params=query, content=content, headers=sent))

    # What many tests do

    def add(self, *keys: str, **query: Any) -> Answer:
        return self("POST", "/requests/batch", [request(key) for key in keys], **query)

    def put(self, key: str, body: dict[str, Any] | None = None, **query: Any) -> Answer:
        return self("PUT", one(key), request(key) if body is None else body, **query)

    def get(self, key: str) -> Any:
        return self("GET", one(key)).data

    def head(self, **query: Any) -> list[str]:
        return keys(self("GET", "/head", **query))

    def lock(self, client: str = "me", secs: float = 60, **query: Any) -> list[str]:
        return keys(self("POST", "/head/lock", clientKey=client, lockSecs=secs, **query))

    def counts(self) -> tuple[int, int, int]:
        """All, handled, pending."""
        data = self("GET").data
        names = ("totalRequestCount", "handledRequestCount", "pendingRequestCount")
        return tuple(data[name] for name in names)  # type: ignore[return-value]


@contextmanager
def called(
    served: ServedQueue,
    path: str = "",
    headers: dict[str, str] = BEARER,
) -> Iterator[Caller]:
    """Calls what is below ``path`` of the queues."""
    # The certificates that httpx would load take 20 ms each time.
    options = {"base_url": served.api.url, "headers": headers, "timeout": 30, "verify": False}
    with httpx.Client(**options) as http:
        yield Caller(http, f"/v2/request-queues{path}")


def keys(answer: Answer) -> list[str]:
    return [item["uniqueKey"] for item in answer.data["items"]]


def request(key: str, **fields: Any) -> dict[str, Any]:
    return {"uniqueKey": key, "url": f"https://example.com/{key}", **fields}


def handled(key: str) -> dict[str, Any]:
    return request(key, handledAt="2026-01-02T03:04:05.678Z")


def one(key: str, suffix: str = "") -> str:
    return f"/requests/{request_id(key)}{suffix}"
