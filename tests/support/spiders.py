"""Spiders that many crawls share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import scrapy
from scrapy.http import Response


class SiteSpider(scrapy.Spider):
    """Starts at ``site`` + "/" and keeps the path of each page that its callbacks have had."""

    name = "spider"

    def __init__(self, site: str = "", **arguments: Any) -> None:
        super().__init__(**arguments)
        self.site = site
        self.handled: list[str] = []

    async def start(self) -> AsyncIterator[Any]:
        yield scrapy.Request(f"{self.site}/")

    def note(self, response: Response) -> None:
        parts = urlsplit(response.url)
        self.handled.append(parts.path + (f"?{parts.query}" if parts.query else ""))


class Links(SiteSpider):
    """Follows all links, and scrapes each page's path."""

    def parse(self, response: Response) -> Iterator[Any]:
        self.note(response)
        yield {"path": self.handled[-1]}
        for href in response.css("a::attr(href)").getall():
            yield response.follow(href)


class Pages(SiteSpider):
    """Follows the links of its first page to ``parse_page``, which scrapes each page's path."""

    def parse(self, response: Response) -> Iterator[Any]:
        for href in response.css("a::attr(href)").getall():
            yield response.follow(href, callback=self.parse_page)

    def parse_page(self, response: Response) -> Any:
        self.note(response)
        yield {"path": self.handled[-1]}


class Twins(SiteSpider):
    """Asks for one page as "A", and once the site has been asked, as "B"."""

    def __init__(self, site: str, **arguments: Any) -> None:
        super().__init__(site, **arguments)
        self.second = asyncio.Event()

    async def start(self) -> AsyncIterator[Any]:
        for who in "AB":
            yield scrapy.Request(
                f"{self.site}/page", dont_filter=True, cb_kwargs={"who": who}, errback=self.failed
            )
            await self.second.wait()

    def parse(self, response: Response, who: str) -> Iterator[Any]:
        self.handled.append(who)
        yield {"who": who, "status": response.status}

    def failed(self, failure: Any) -> None:
        """Errors are no surprise here."""
