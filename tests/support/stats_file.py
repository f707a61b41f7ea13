"""An extension for crawls in processes of their own."""

from __future__ import annotations

import json
import os
from pathlib import Path

from scrapy import signals
from scrapy.crawler import Crawler


class StatsFile:
    """Writes the stats where the test can read them, when all is over."""

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> StatsFile:
        self = cls(crawler)
        crawler.signals.connect(self._write, signals.engine_stopped)
        return self

    def _write(self) -> None:
        assert self._crawler.stats is not None
        stats = self._crawler.stats.get_stats()
        Path(f"stats-{os.getpid()}.json").write_text(json.dumps(stats, default=str))
