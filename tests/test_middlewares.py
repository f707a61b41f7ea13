"""The middlewares by themselves; what becomes of their notes is in ``test_life``."""

from __future__ import annotations

from scrapy import Request
from scrapy.http import Response

from scrapy_apify_rq.crawl.flight import Flight
from scrapy_apify_rq.crawl.middlewares import SpiderMiddleware
from scrapy_apify_rq.frontier.visit import Visit


def test_the_response_to_a_copy_belongs_to_the_request_with_the_same_body() -> None:
    """A downloader middleware may put in the response to a request of its own."""
    middleware = SpiderMiddleware()
    requests = [Request("http://x/", method="POST", body=body) for body in ("a", "b")]
    middleware.running = {request: Flight(Visit(None, request)) for request in requests}
    copy = requests[1].copy()
    middleware.process_spider_input(Response("http://x/", request=copy))
    assert [visit.reached_callback for visit in middleware.running.values()] == [False, True]
