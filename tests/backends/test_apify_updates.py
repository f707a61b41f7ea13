"""Updates over the API, which takes them one by one, and those that it refuses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from scrapy_apify_rq.backends.base import Claim, Updated
from scrapy_apify_rq.errors import BackendError
from tests.support.api_calls import Api, error
from tests.support.backends import Apify, entry, handled, keys_of, numbered


async def test_a_refused_update_is_reported_and_not_claimed_again(
    api: Api, client: Apify, caplog: pytest.LogCaptureFixture
) -> None:
    a, b, c = entry("a"), handled("b", payload="x" * 9 * 1024 * 1024), handled("c")
    await client.fill("a", "b", "c")
    api.before = lambda call: (
        error(400, "invalid-value", "no good") if call.path.endswith(a.id) else None
    )
    assert await client.put(handled("a"), b, c) == [
        *(Updated(False, True), Updated(False, True), Updated(False))
    ]
    assert client.stats["refused"] == 2
    assert not api.of("PUT", f"/requests/{b.id}")
    messages = [r.message for r in caplog.records if r.levelno == logging.ERROR]
    assert len(messages) == 2
    assert a.id in "".join(messages)
    assert "no good" in "".join(messages)
    assert await client.take() == Claim([], False, alone=True)
    assert (await client.info()).pending == 2


def page(status: int) -> web.Response:
    """As a proxy answers."""
    return web.Response(status=status, text="<html>No</html>", content_type="text/html")


@pytest.mark.parametrize(
    ("status", "answer"),
    [*((status, error) for status in (400, 403, 404, 409, 413)), (400, page), (413, page)],
)
async def test_one_refused_update_of_many_leaves_nothing_waiting(
    api: Api, client: Apify, status: int, answer: Callable[[int], Any]
) -> None:
    entries = numbered(50)
    await client.fill(*entries)
    api.before = lambda call: answer(status) if call.path.endswith(entries[7].id) else None
    tasks = asyncio.all_tasks()
    async with asyncio.timeout(5):
        if status in (400, 413):
            updated = await client.ack(*keys_of(entries))
            assert [n for n, one in enumerate(updated) if one.refused] == [7]
            assert (await client.info()).handled == 49
        else:
            with pytest.raises(BackendError, match=str(status)):
                await client.ack(*keys_of(entries))
        assert asyncio.all_tasks() <= tasks
        await client.close()


async def test_an_update_of_one_entry_makes_no_task(client: Apify) -> None:
    made: list[str] = []

    def make(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        made.append(work.__qualname__)
        return asyncio.Task(work, loop=loop, **options)

    loop = asyncio.get_running_loop()
    loop.set_task_factory(make)
    try:
        await client.ack("a")
        assert "Updates.put" not in made
        await client.put("a", "b")
        assert made.count("Updates.put") == 2
    finally:
        loop.set_task_factory(None)


async def test_refused_updates_without_end_are_a_failure(api: Api, client: Apify) -> None:
    api.before = lambda call: error(400) if call.method == "PUT" else None
    with pytest.raises(BackendError, match="refused 501 updates"):
        await client.put(*numbered(600))
