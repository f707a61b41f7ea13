"""A crawl through a proxy: all requests have its password, and nothing else keeps it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import scrapy
from scrapy.http import Response

from tests.support.crawling import Crawls
from tests.support.queues import Queue
from tests.support.spiders import SiteSpider
from tests.support.website import Page, Site, links

HOST = "http://shop.example"
PASSWORD = "apify_proxy_SECRET"
SECRETS = ("SECRET", "Basic ")  # as it is, and in base64


class Visitors(SiteSpider):
    """Comes as two visitors, and makes requests of the ones it has sent, as plugins do."""

    async def start(self) -> AsyncIterator[Any]:
        for jar in "AB":
            yield scrapy.Request(f"{HOST}/{jar}", meta={"cookiejar": jar})

    def parse(self, response: Response) -> Iterator[Any]:
        self.note(response)
        meta = dict(response.meta)
        for href in response.css("a::attr(href)").getall():
            headers = response.request.headers  # type: ignore[union-attr]
            yield response.follow(href, meta=meta, headers=headers)


async def test_password_is_sent_and_nowhere_stored(
    site: Site, any_queue: Queue, crawls: Crawls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APIFY_PROXY_PASSWORD", PASSWORD)
    host, _, port = site.url.removeprefix("http://").partition(":")
    monkeypatch.setenv("APIFY_PROXY_HOSTNAME", host)
    monkeypatch.setenv("APIFY_PROXY_PORT", port)
    moved = Page(status=302, headers={"Location": f"{HOST}/3"})
    pages = {
        "/A": [503, 503, links("/1")],
        "/B": links("/2"),
        "/1": moved,
        "/2": [407, "x"],
        "/3": [503, 503, "x"],
    }
    site.serve({f"{HOST}{path}": page for path, page in pages.items()})
    settings = {
        "APIFY_RQ_PROXY": '{"useApifyProxy": true}',
        "RETRY_HTTP_CODES": [503, 407],
        "RETRY_TIMES": 9,
    }
    crawl = await crawls.run(Visitors, settings, queue=any_queue)
    assert sorted(crawl.spider.handled) == ["/2", "/3", "/A", "/B"]
    sent = {(hit.path[-2:], dict(hit.headers).get("Proxy-Authorization")) for hit in site.hits}
    assert len(site.hits) == 10
    assert len({header for _, header in sent}) == 2  # a session for each visitor
    assert None not in {header for _, header in sent}
    stored = b"".join(file.read_bytes() for file in any_queue.folder.glob("request_queues.sqlite*"))
    for secret in SECRETS:
        assert secret not in crawl.log_text
        assert secret.encode() not in stored
    for entry in await any_queue.entries():
        assert not {name.lower() for name in entry.headers or {}} & {"proxy-authorization"}
        assert "proxy" not in entry.user_data["scrapy"].get("meta", {})


async def test_without_a_password(site: Site, crawls: Crawls) -> None:
    """It must not crawl under its own address."""
    with pytest.raises(Exception, match="Apify Proxy needs a password"):
        await crawls.run(Visitors, {"APIFY_RQ_PROXY": True})
    assert site.hits == []
