"""A pipeline whose items survive a kill by themselves, where no feed does: over the API."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from itemadapter import ItemAdapter
from scrapy.crawler import Crawler

# In bytes; longer than any item of the example.
_LONGEST_LINE = 100_000


class JsonLinesPipeline:
    """Appends each item to the file that ``TEST_ITEMS`` names, and flushes it: at least once."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> JsonLinesPipeline:
        return cls(Path(crawler.settings["TEST_ITEMS"]))

    def open_spider(self) -> None:
        self._file = self._path.open("a+b")
        # Half a line that a killed process has left.
        start = max(0, self._file.seek(0, os.SEEK_END) - _LONGEST_LINE)
        self._file.seek(start)
        self._file.truncate(start + self._file.read().rfind(b"\n") + 1)

    def process_item(self, item: Any) -> Any:
        self._file.write((json.dumps(ItemAdapter(item).asdict()) + "\n").encode())
        self._file.flush()
        return item

    def close_spider(self) -> None:
        self._file.close()
