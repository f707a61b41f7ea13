"""Runs the shop for as long as the crawl lasts, so that the example needs no network."""

from __future__ import annotations

from scrapy import signals
from scrapy.crawler import Crawler
from scrapy.exceptions import NotConfigured
from scrapy.settings import BaseSettings

from shop_example.site import ShopServer


def shop_url(settings: BaseSettings) -> str:
    """Where the shop is, with no slash at the end."""
    url = settings.get("SHOP_URL") or f"http://127.0.0.1:{settings.getint('SHOP_PORT')}"
    return str(url).rstrip("/")


class ShopExtension:
    """Opens the shop on ``SHOP_PORT``, unless ``SHOP_URL`` says that it runs elsewhere.

    The port is fixed because the queue holds URLs: a resumed crawl must find them again.
    """

    def __init__(self, shop: ShopServer) -> None:
        self.shop = shop

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> ShopExtension:
        """Start the shop here, before any request: an error in a signal handler stops no crawl."""
        if crawler.settings.get("SHOP_URL"):
            raise NotConfigured
        extension = cls(_start(crawler.settings.getint("SHOP_PORT")))
        crawler.signals.connect(extension.spider_closed, signals.spider_closed)
        return extension

    def spider_closed(self) -> None:
        """Close the shop."""
        self.shop.stop()


def _start(port: int) -> ShopServer:
    shop = ShopServer(port=port)
    try:
        shop.start()
    except OSError as error:
        raise RuntimeError(
            f"The example's shop cannot listen on 127.0.0.1:{port} ({error.strerror})."
            " Choose another port (-s SHOP_PORT=...), or name a shop that runs (-s SHOP_URL=...)."
        ) from error
    return shop
