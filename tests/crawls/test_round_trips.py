"""What a crawl over the API waits for before its first page, and after its last ack.

Round trips are counted rather than seconds, so that a slow machine does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from scrapy.http import Response

from scrapy_apify_rq.backends.apify.queue import ApifyBackend
from scrapy_apify_rq.crawl import state
from scrapy_apify_rq.frontier import idle
from tests.support.api_calls import Call
from tests.support.crawling import Crawls
from tests.support.faults import Faults
from tests.support.queues import ServedQueue
from tests.support.spiders import SiteSpider
from tests.support.website import Site, links

LATENCY = 0.2


class Items(SiteSpider):
    def parse(self, response: Response) -> Any:
        yield {"url": response.url}
        yield from response.follow_all(css="a")


def round_trips(calls: Iterable[Call]) -> int:
    """The most of these calls that were made one after the other."""
    count, answered_at = 0, 0.0
    for call in sorted(calls, key=lambda call: call.at):
        if call.at >= answered_at:
            count, answered_at = count + 1, call.at + LATENCY
    return count


@pytest.mark.parametrize(("has_feed", "has_title"), [(False, True), (True, False)])
async def test_round_trips(
    site: Site,
    served: ServedQueue,
    crawls: Crawls,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    has_feed: bool,
    has_title: bool,
) -> None:
    """A page is crawled when its add is confirmed, and the queue is opened before. At the end the
    queue is asked whether anything is left, and once more for its counts, while the totals are
    saved. The third one notes that the feed is stored; without a feed, this short crawl has to make
    the store for its totals before.
    """
    # As in a real crawl: longer than this crawl, and than a round trip.
    monkeypatch.setattr(ApifyBackend, "consistency_delay", 3)
    monkeypatch.setattr(idle, "_FIRST_PAUSE", 0.25)
    monkeypatch.setattr(state, "_SHORT_PAUSE", 60)  # the regular saving may come at any time
    site.serve({"/": links("/1", "/2"), "/1": "page", "/2": "page"})
    served.faults(Faults(latency=LATENCY))
    settings: dict[str, Any] = {}
    if has_feed:
        settings["FEEDS"] = {str(tmp_path / "items.jl"): {"format": "jsonlines"}}
    if has_title:  # which says whose queue it is
        settings["APIFY_RQ_NAME"] = None
    crawl = await crawls.run(Items, settings, queue=served, site=site.url)
    assert crawl.reason == "finished"
    calls = served.api.calls
    add = served.api.of("POST", "/requests/batch")[0]
    assert round_trips(call for call in calls if call.at <= add.at) == 2
    assert len(served.api.of("PUT")) == has_title
    acks = [call.at for call in calls if call.method == "PUT" and "/requests/" in call.path]
    assert round_trips(call for call in calls if call.at > max(acks) + LATENCY) == 3
    notes = [call.at for call in calls if "scrapy-rq.feeds" in call.path]
    assert all(note + LATENCY <= min(acks) for note in notes[:1])
    assert bool(notes) == has_feed
