"""Works with a request queue by the Apify SDK and prints what it saw as JSON.

The access is the argument, the rest comes from the environment as in an Actor's run.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from apify import Configuration, Request
from apify.storage_clients import ApifyStorageClient
from apify.storages import RequestQueue


async def taken(queue: RequestQueue) -> Request:
    """The next request. In shared access a change may show a moment later."""
    while True:
        if (request := await queue.fetch_next_request()) is not None:
            return request
        await asyncio.sleep(0.05)


async def finished(queue: RequestQueue) -> bool:
    for _ in range(100):
        if await queue.is_finished():
            return True
        await asyncio.sleep(0.05)
    return False


def as_json(request: Request) -> dict[str, Any]:
    return json.loads(request.model_dump_json(by_alias=True))


async def opened(access: Any, name: str) -> RequestQueue:
    client = ApifyStorageClient(request_queue_access=access)
    return await RequestQueue.open(
        name=name, storage_client=client, configuration=Configuration.get_global_configuration()
    )


async def statistics(access: Any) -> dict[str, Any]:
    """Ten requests from first to last, with nothing else."""
    queue = await opened(access, f"statistics-{access}")
    await queue.add_requests([f"https://example.com/{n}" for n in range(10)])
    handled = []
    while not await queue.is_finished():
        if (request := await queue.fetch_next_request()) is not None:
            handled.append(request.url)
            await queue.mark_request_as_handled(request)
    metadata = await queue.get_metadata()
    return {
        "handled": handled,
        "stats": metadata.stats.model_dump(by_alias=True),
        "several": metadata.had_multiple_clients,
    }


async def everything(access: Any) -> dict[str, Any]:
    queue = await opened(access, f"everything-{access}")
    seen: dict[str, Any] = {}
    request = Request.from_url(
        "https://example.com/complex",
        method="POST",
        payload='{"a": 1}',
        headers={"x-own": "value"},
        label="DETAIL",
        user_data={"deep": {"list": [1, None]}},
        use_extended_unique_key=True,
    )
    first = await queue.add_request(request)
    again = await queue.add_request(request)
    long = "https://example.com/" + "long/" * 100
    batch = await queue.add_requests([long, *(f"https://example.com/{n}" for n in range(30))])
    seen["batch"] = batch
    seen["added"] = [first.was_already_present, again.was_already_present, first.id]
    seen["empty"] = [await queue.is_empty(), await queue.is_finished()]
    complex_request = await taken(queue)
    seen["complex"] = as_json(complex_request)
    await queue.reclaim_request(complex_request, forefront=True)
    seen["first again"] = [(again := await taken(queue)).url]
    await queue.mark_request_as_handled(again)
    await queue.add_request("https://example.com/urgent", forefront=True)
    urls = []
    while len(urls) < 32:
        request = await taken(queue)
        urls.append(request.url)
        await queue.mark_request_as_handled(request)
    seen["urls"] = urls
    seen["finished"] = [await queue.is_empty(), await finished(queue)]
    handled = await queue.get_request(again.unique_key)
    seen["handled"] = handled is not None and handled.handled_at is not None
    # A request that was handled and is reclaimed is pending again.
    await queue.reclaim_request(again)
    seen["pending again"] = [await queue.is_finished(), (await taken(queue)).url]
    await queue.mark_request_as_handled(again)
    metadata = await queue.get_metadata()
    seen["counts"] = [
        metadata.total_request_count,
        metadata.handled_request_count,
        metadata.pending_request_count,
    ]
    seen["id"] = queue.id
    dropped = await opened(access, f"dropped-{access}")
    await dropped.add_request("https://example.com/")
    await dropped.drop()
    return seen


async def main(access: str) -> None:
    everything_, statistics_ = await asyncio.gather(everything(access), statistics(access))
    print(json.dumps({"everything": everything_, "statistics": statistics_}, default=str))


asyncio.run(main(sys.argv[1]))
