"""Spiders for Scrapy's own commands; the site's address is in the environment."""

import os
import warnings
from typing import Any

from scrapy import Spider
from scrapy.http import Response

from tests.support.spiders import SiteSpider

# Scrapy's parse command does what Scrapy warns of.
warnings.filterwarnings("ignore", ".*returned a Deferred")


class Checked(SiteSpider):
    name = "checked"

    def parse(self, response: Response) -> Any:
        for href in response.css("a::attr(href)").getall():
            yield response.follow(href, callback=self.parse_page)

    def parse_page(self, response: Response) -> Any:
        yield {"url": response.url}

    parse.__doc__ = f"@url {os.environ.get('SITE')}/\n@returns requests 1 1"


class Quiet(Spider):
    name = "quiet"
