from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.queues import ServedQueue
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
