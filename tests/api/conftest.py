from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import npm_packages
from tests.support.official_clients import (
    COMPRESSION,
    Client,
    Node,
    javascript_client,
    python_client,
)
from tests.support.queues import TOKEN, ServedQueue
from tests.support.raw_calls import Caller, called


@pytest.fixture
def api(served: ServedQueue) -> Iterator[Caller]:
    """Calls what concerns all queues."""
    with called(served) as api:
        yield api


@pytest.fixture
def remote(api: Caller) -> Caller:
    """Calls a new queue."""
    return Caller(api.http, f"{api.path}/{api('POST').data['id']}")


@pytest.fixture(scope="session")
def node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    names = ("javascript", "apify-client@2")
    with Node(npm_packages.installed(request.config, tmp_path_factory, *names)) as node:
        yield node


@pytest.fixture(params=COMPRESSION)
def kind(request: pytest.FixtureRequest) -> str:
    """The test runs with each of the official clients."""
    return str(request.param)


@pytest.fixture
def client(request: pytest.FixtureRequest, kind: str, served: ServedQueue) -> Client:
    if kind == "JavaScript":
        return javascript_client(request.getfixturevalue("node"), served.api.url, TOKEN)
    options = {"compression": "brotli"} if kind == "ApifyClient" else {}
    return python_client(kind, served.api.url, TOKEN, **options)
