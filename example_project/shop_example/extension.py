"""Run the shop during the crawl, so that the example needs no network."""

from __future__ import annotations

from scrapy import signals
from scrapy.crawler import Crawler
from scrapy.exceptions import NotConfigured
from scrapy.settings import BaseSettings

from shop_example.site import ShopServer


def shop_url(settings: BaseSettings) -> str:
    """The shop's URL, without a slash at the end."""
    url = settings.get("SHOP_URL") or f"http://127.0.0.1:{settings.getint('SHOP_PORT')}"
    return str(url).rstrip("/")


class ShopExtension:
    """Serves the shop on ``SHOP_PORT``, unless ``SHOP_URL`` names a shop that runs elsewhere.

    The port is fixed, because the queue stores URLs and they must work in a resumed crawl.
    """

    def __init__(self, shop: ShopServer) -> None:
        self.shop = shop

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> ShopExtension:
        """Start the shop here, because an error in a signal handler would not stop the crawl."""
        if crawler.settings.get("SHOP_URL"):
            raise NotConfigured
        extension = cls(_start(crawler.settings.getint("SHOP_PORT")))
        crawler.signals.connect(extension.spider_closed, signals.spider_closed)
        return extension

    def spider_closed(self) -> None:
        """Stop the shop."""
        self.shop.stop()


def _start(port: int) -> ShopServer:
    shop = ShopServer(port=port)
    try:
        shop.start()
    except OSError as error:
        raise RuntimeError(
            f"The example's shop cannot listen on 127.0.0.1:{port} ({error.strerror}). Choose"
            " another port (-s SHOP_PORT=...), or use a shop that is running (-s SHOP_URL=...)."
        ) from error
    return shop
