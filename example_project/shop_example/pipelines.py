"""Store the items before their page counts as handled: in a file, or in an Actor run's dataset."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from itemadapter import ItemAdapter
from scrapy.crawler import Crawler
from scrapy.exceptions import NotConfigured

# In bytes; longer than any item of this project.
_LONGEST_LINE = 100_000


class JsonLinesPipeline:
    """Appends each item to the file that ``SHOP_ITEMS`` names, and flushes it.

    A page is marked as handled after its items have passed the pipelines. So whatever a pipeline
    has written outside this process by then survives a kill. The files of Scrapy's FEEDS do not:
    they are buffered, and ``kill -9`` loses the items in the buffer, although their pages are
    handled and will not be fetched again.

    The process can also be killed after an item was written and before its page is marked as
    handled. Then the page is fetched again and the item is in the file twice, but never missing
    ("at least once"). To survive a power cut as well, each item would need an ``os.fsync()``, and
    the queue would need ``synchronous=FULL``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> JsonLinesPipeline:
        """Write to the file that the settings name."""
        return cls(Path(crawler.settings["SHOP_ITEMS"]))

    def open_spider(self) -> None:
        """Open the file to append to what earlier runs wrote."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+b")
        self._drop_unfinished_line()

    def _drop_unfinished_line(self) -> None:
        """Remove half a line that a killed process left, because the next item would follow it."""
        start = max(0, self._file.seek(0, os.SEEK_END) - _LONGEST_LINE)
        self._file.seek(start)
        self._file.truncate(start + self._file.read().rfind(b"\n") + 1)

    def process_item(self, item: Any) -> Any:
        """Write one line, and pass it to the operating system before the page is handled."""
        line = json.dumps(ItemAdapter(item).asdict()) + "\n"
        self._file.write(line.encode())
        self._file.flush()
        return item

    def close_spider(self) -> None:
        """Close the file."""
        self._file.close()


class DatasetPipeline:
    """Stores each item in the default dataset of the Actor run. Elsewhere it does nothing.

    A run's disk disappears with its container, even when the run is migrated. The client repeats
    calls that the API does not accept at once.
    """

    def __init__(self, dataset_id: str) -> None:
        # Imported here, because only an Actor needs this package.
        from apify_client import ApifyClientAsync

        url = os.environ.get("APIFY_API_BASE_URL") or "https://api.apify.com"
        client = ApifyClientAsync(os.environ["APIFY_TOKEN"], api_url=url)
        self._dataset = client.dataset(dataset_id)

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> DatasetPipeline:
        """Write to the run's default dataset."""
        if not (dataset_id := os.environ.get("ACTOR_DEFAULT_DATASET_ID")):
            raise NotConfigured
        return cls(dataset_id)

    async def process_item(self, item: Any) -> Any:
        """Return when the platform has stored the item."""
        await self._dataset.push_items(ItemAdapter(item).asdict())
        return item
