"""The spider. It does not know where its requests are queued."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scrapy import FormRequest, Request, Spider
from scrapy.crawler import Crawler
from scrapy.http import Response

from shop_example.extension import shop_url
from shop_example.items import Product


class ShopSpider(Spider):
    """Crawls every category, every product and every search of the shop."""

    name = "shop"
    allowed_domains = ("127.0.0.1",)

    @classmethod
    def from_crawler(cls, crawler: Crawler, *args: Any, **kwargs: Any) -> ShopSpider:
        """Start at the home page of the shop that the settings name."""
        spider = super().from_crawler(crawler, *args, **kwargs)
        spider.start_urls = [f"{shop_url(crawler.settings)}/"]
        return spider

    def parse(self, response: Response) -> Iterator[Request]:
        """Follow the categories of the home page, and submit its search form."""
        for link in response.css("nav a"):
            category = link.css("::text").get()
            yield response.follow(link, self.parse_category, cb_kwargs={"category": category})
        url = response.urljoin(response.css("form::attr(action)").get(""))
        for query in response.css("form option::text").getall():
            yield FormRequest(
                url, self.parse_search, formdata={"q": query}, cb_kwargs={"query": query}
            )

    def parse_category(self, response: Response, category: str) -> Iterator[Request]:
        """Follow the products of one category page, and the links to the other pages."""
        yield from self.follow_products(response, category)
        for link in response.css(".pages a"):
            yield response.follow(link, self.parse_category, cb_kwargs={"category": category})

    def parse_search(self, response: Response, query: str) -> Iterator[Request]:
        """Follow the products that a search has found."""
        yield from self.follow_products(response, f"search: {query}")

    def parse_product(self, response: Response, found_in: str) -> Iterator[Product | Request]:
        """Read a product, and follow the link to a related one."""
        yield Product(
            sku=response.css(".sku::text").get(""),
            name=response.css("h1::text").get(""),
            price=float(response.css(".price::text").get("")),
            category=response.css(".category::text").get(""),
            url=response.url.partition("#")[0],
            found_in=found_in,
            position=response.meta.get("position"),
        )
        yield from response.follow_all(
            css="a.related", callback=self.parse_product, cb_kwargs={"found_in": found_in}
        )

    def follow_products(self, response: Response, found_in: str) -> Iterator[Request]:
        """Request each product that a page lists."""
        for position, link in enumerate(response.css("a.product"), 1):
            yield response.follow(
                link,
                self.parse_product,
                cb_kwargs={"found_in": found_in},
                meta={"position": position},
            )
