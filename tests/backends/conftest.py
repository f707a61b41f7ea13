"""Queues of every kind of backend, and clients of the API."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scrapy_apify_rq.backends.apify import http
from tests.support.api_calls import Api
from tests.support.backends import Apify, Handy, Queues
from tests.support.queues import NAME, ServedQueue
from tests.support.waiting import run_async

# Read here, since a test itself runs without them.
LIVE_URL = os.environ.get("APIFY_API_BASE_URL") or "https://api.apify.com"
LIVE_TOKEN = os.environ.get("APIFY_TOKEN")
IF_LIVE = pytest.mark.skipif(not LIVE_TOKEN, reason="APIFY_TOKEN is not set")


@pytest.fixture
def api(served: ServedQueue) -> Api:
    """The calls of our server."""
    return served.api


@pytest.fixture
def server(served: ServedQueue) -> Queues:
    """The queues on it."""
    return Queues("server", served.folder, served.api.url)


@pytest.fixture(
    params=["sqlite", "server", pytest.param("live", marks=[pytest.mark.live, IF_LIVE])]
)
def queues(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Queues]:
    if request.param == "sqlite":
        yield Queues("sqlite", tmp_path)
    elif request.param == "server":
        yield request.getfixturevalue("server")
    else:
        prefix = f"scrapy-apify-rq-test-{uuid.uuid4().hex[:12]}-"
        queues = Queues("live", tmp_path, LIVE_URL, LIVE_TOKEN, prefix)
        yield queues
        for name in (NAME, "one", "two"):
            run_async(delete(queues, name))


async def delete(queues: Queues, name: str) -> None:
    async with queues.open(name) as backend:
        await backend._api.delete_queue()


def entered(context: Any) -> Iterator[Any]:
    yield run_async(context.__aenter__())
    run_async(context.__aexit__(None, None, None))


@pytest.fixture
def backend(queues: Queues) -> Iterator[Handy]:
    """Of the queue, opened in single access."""
    yield from entered(queues.open())


@pytest.fixture
def client(server: Queues) -> Iterator[Apify]:
    """Of the queue on our server, in single access."""
    yield from entered(server.open())


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come at once."""
    monkeypatch.setattr(http, "_FIRST_BACKOFF", 0.005)
