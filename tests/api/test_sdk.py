"""The API server, driven by Apify's SDK: its queue in both kinds of access, and its scheduler."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from scrapy_apify_rq.entries.unique_keys import request_id
from tests.support.crawling import Crawls
from tests.support.optional import needs
from tests.support.queues import NAME, TOKEN, ServedQueue
from tests.support.raw_calls import Caller
from tests.support.spiders import Links
from tests.support.waiting import PATIENCE
from tests.support.website import Site, links

pytestmark = needs("apify")

ACCESSES = ["single", "shared"]
SITE = "https://example.com"


def configuration(served: ServedQueue, **values: Any) -> Any:
    import apify

    url = served.api.url
    addresses = {"api_base_url": url, "api_public_base_url": url}  # it knows queues by the latter
    return apify.Configuration(token=TOKEN, is_at_home=True, **addresses, **values)


async def opened(served: ServedQueue, access: Any) -> Any:
    import apify

    client = apify.storage_clients.ApifyStorageClient(request_queue_access=access)
    return await apify.storages.RequestQueue.open(
        name=f"queue-{access}", storage_client=client, configuration=configuration(served)
    )


async def eventually(ask: Callable[[], Awaitable[Any]]) -> Any:
    """In shared access, a change may show a moment later."""
    async with asyncio.timeout(PATIENCE):
        while not (answer := await ask()):  # noqa: ASYNC110 (nothing tells of it)
            await asyncio.sleep(0.01)
    return answer


@pytest.mark.parametrize("access", ACCESSES)
async def test_its_queue(served: ServedQueue, access: str) -> None:
    import apify

    queue = await opened(served, access)
    sent = apify.Request.from_url(
        f"{SITE}/complex",
        method="POST",
        payload='{"a": 1}',
        headers={"x-own": "value"},
        label="DETAIL",
        user_data={"deep": {"list": [1, None]}},
        use_extended_unique_key=True,
    )
    added = [await queue.add_request(sent) for _ in range(2)]
    assert [one.was_already_present for one in added] == [False, True]
    long, numbers = f"{SITE}/{'long/' * 100}", [f"{SITE}/{n}" for n in range(30)]
    await queue.add_requests([long, *numbers])
    assert not await queue.is_empty()
    assert not await queue.is_finished()

    first = await eventually(queue.fetch_next_request)
    assert added[0].id == request_id(first.unique_key)
    expected = {
        "url": sent.url,
        "method": "POST",
        "payload": '{"a": 1}',
        "headers": {"x-own": "value"},
        "userData": {"label": "DETAIL", "deep": {"list": [1, None]}},
    }
    assert json.loads(first.model_dump_json(by_alias=True)).items() >= expected.items()
    await queue.reclaim_request(first, forefront=True)
    again = await eventually(queue.fetch_next_request)
    assert again.url == sent.url
    await queue.mark_request_as_handled(again)

    await queue.add_request(f"{SITE}/urgent", forefront=True)
    urls = []
    for _ in range(32):
        request = await eventually(queue.fetch_next_request)
        urls.append(request.url)
        await queue.mark_request_as_handled(request)
    assert Counter(urls) == Counter([f"{SITE}/urgent", long, *numbers])
    if access == "single":  # in shared access it works on up to 25 that it has locked before
        assert urls == [f"{SITE}/urgent", long, *numbers]
    assert await queue.is_empty()
    await eventually(queue.is_finished)

    assert (await queue.get_request(again.unique_key)).handled_at
    await queue.reclaim_request(again)
    assert not await queue.is_finished()
    assert (await eventually(queue.fetch_next_request)).url == sent.url
    await queue.mark_request_as_handled(again)
    info = await queue.get_metadata()
    counts = (info.total_request_count, info.handled_request_count, info.pending_request_count)
    assert counts == (33, 33, 0)
    await queue.drop()


@pytest.mark.parametrize(("access", "writes"), [("single", 2), ("shared", 3)])
async def test_it_pays_its_writes(served: ServedQueue, access: str, writes: int) -> None:
    queue = await opened(served, access)
    urls = [f"{SITE}/{n}" for n in range(10)]
    await queue.add_requests(urls)
    handled = []
    while not await queue.is_finished():
        if (request := await queue.fetch_next_request()) is not None:
            handled.append(request.url)
            await queue.mark_request_as_handled(request)
    assert Counter(handled) == Counter(urls)
    info = await queue.get_metadata()
    assert info.stats.write_count == 10 * writes
    assert not info.had_multiple_clients


async def test_a_run(served: ServedQueue, api: Caller) -> None:
    """The SDK finds its input, stores what it scrapes and says how it goes."""
    import apify

    api = Caller(api.http, "/v2")
    run = api("GET", "/actor-runs/run-1").data
    store = f"/key-value-stores/{run['defaultKeyValueStoreId']}"
    api("PUT", f"{store}/records/INPUT", {"depth": 3})
    given = configuration(
        served,
        actor_run_id="run-1",
        default_dataset_id=run["defaultDatasetId"],
        default_key_value_store_id=run["defaultKeyValueStoreId"],
        default_request_queue_id=run["defaultRequestQueueId"],
    )
    async with apify.Actor(given, exit_process=False) as actor:
        assert await actor.get_input() == {"depth": 3}
        items = [{"n": n} for n in range(3)]
        await actor.push_data(items)
        await actor.set_value("OUTPUT", b"png", content_type="image/png")
        assert await actor.get_value("OUTPUT") == b"png"
        await actor.set_status_message("half of it")
        assert api("GET", "/actor-runs/run-1").data["statusMessage"] == "half of it"
        dataset = await actor.open_dataset()
        assert [item async for item in dataset.iterate_items()] == items
        kept = await actor.open_key_value_store()
        assert sorted([one.key async for one in kept.iterate_keys()])[:2] == ["INPUT", "OUTPUT"]
        named = await actor.open_dataset(name="more")
        await named.push_data(items)
        assert (await named.get_metadata()).item_count == 3
        await named.drop()
    assert api("GET", f"/datasets/{run['defaultDatasetId']}").data["itemCount"] == 3
    assert api("GET", "/datasets").data["total"] == 0


async def test_its_scheduler(
    served: ServedQueue, api: Caller, site: Site, crawls: Crawls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``apify.scrapy.ApifyScheduler`` in place of ours."""
    import apify

    id = api("POST", name=NAME).data["id"]
    ours = configuration(served, default_request_queue_id=id)
    monkeypatch.setattr(apify.Configuration, "get_global_configuration", lambda: ours)
    paths = [f"/{n}" for n in range(12)]
    more = [f"{path}/more" for path in paths]
    site.serve({"/": links(*paths), **dict.fromkeys(more, links())})
    site.serve({path: links(f"{path}/more", "/0") for path in paths})
    settings = {"SCHEDULER": "apify.scrapy.ApifyScheduler", "ADDONS": {}}
    crawl = await crawls.run(Links, settings, queue=served, site=site.url)
    assert crawl.reason == "finished"
    assert sorted(site.paths) == sorted(["/", *paths, *more])
    info = await served.info()
    assert (info.total, info.handled, info.pending) == (25, 25, 0)
    assert [call.method for call in served.api.calls].count("PUT") == 25
    assert all("scrapy_request" in entry.user_data for entry in await served.entries())
