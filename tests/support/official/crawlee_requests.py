"""Crawlee for Python on a queue of the platform: ``add`` fills the queue with requests, ``read``
tells what became of them.

The queue is the run's default one; the address of the site is the last argument.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from apify import Configuration
from apify.storage_clients import ApifyStorageClient
from apify.storages import RequestQueue
from crawlee import Request


def requests(site: str) -> list[Request]:
    form = Request.from_url(
        f"{site}/form",
        method="POST",
        payload="name=Škoda",
        headers={"X-Own": "value", "Content-Type": "application/x-www-form-urlencoded"},
        label="DETAIL",
        user_data={"deep": {"list": [1, None, "ž"]}},
        max_retries=7,
        enqueue_strategy="same-domain",
        session_id="session1",
        use_extended_unique_key=True,
    )
    form.crawl_depth = 3
    return [form, Request.from_url(f"{site}/plain")]


async def main(action: str, site: str) -> Any:
    queue = await RequestQueue.open(
        storage_client=ApifyStorageClient(),
        configuration=Configuration.get_global_configuration(),
    )
    if action == "add":
        await queue.add_requests(requests(site))
        return None
    # Adding reads all that is in the queue first.
    added = await queue.add_request(requests(site)[0])
    found = [await queue.get_request(request.unique_key) for request in requests(site)]
    return {
        "wasAlreadyHandled": added.was_already_handled,
        "requests": [one and json.loads(one.model_dump_json(by_alias=True)) for one in found],
        "finished": await queue.is_finished(),
    }


print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
