"""A crawl that finishes pages faster than the API takes their acks."""

from __future__ import annotations

import pytest

from scrapy_apify_rq.backends.apify import endpoints, queue
from scrapy_apify_rq.backends.apify.queue import ApifyBackend
from scrapy_apify_rq.frontier.notices import RateReached
from tests.support.frontier_driver import Driver
from tests.support.queues import NAME, TOKEN, ServedQueue


async def test_acks_wait_in_the_outbox_within_its_limits(
    served: ServedQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate is scaled down, so that a busy machine reaches it, too."""
    for module in (endpoints, queue):
        monkeypatch.setattr(module, "CRUD_RATE", 60)
    backend = ApifyBackend(served.api.url, TOKEN, name=NAME, inc_stat=lambda stat: None)
    paths = [f"/{n}" for n in range(150)]
    async with Driver(backend, *paths, outbox=120) as driver:
        assert sorted(await driver.crawl()) == sorted(paths)
    times = [call.at for call in served.api.calls if call.method == "PUT"]
    assert driver.stats["apify_rq/handled"] == len(times) == 150
    assert 30 < driver.stats["apify_rq/outbox_max"] < 40
    most = max(sum(at <= other < at + 1 for other in times) for at in times)
    assert most <= 60 * 1.2  # on their way calls may close up
    assert driver.notices == [RateReached("60 updates a second")]
