"""Stock Scrapy with ``gc.freeze()``, to show what APIFY_RQ_GC_FREEZE alone contributes."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from scrapy import signals

if TYPE_CHECKING:
    from typing import Self

    from scrapy.crawler import Crawler


class Freeze:
    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        crawler.signals.connect(lambda: gc.freeze(), signals.spider_opened, weak=False)
        return cls()
