"""Where the items go before their page counts as done: to a file, or to an Actor run's dataset."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from itemadapter import ItemAdapter
from scrapy.crawler import Crawler
from scrapy.exceptions import NotConfigured

# In bytes, more than any item of this project takes.
_LONGEST_LINE = 100_000


class JsonLinesPipeline:
    """Appends each item to the file that ``SHOP_ITEMS`` names, and flushes it.

    A page is marked handled in the queue after its items have been through the pipelines, so what
    a pipeline has put out of this process by then survives its being killed. The file of Scrapy's
    FEEDS does not do for that: it is buffered, and ``kill -9`` loses the items in the buffer, whose
    pages are handled and not fetched again.

    The other way round, a page whose items are written can be killed before it is handled. It is
    fetched again, so that an item can be in the file twice, but never not at all ("at least once").
    Against a power cut, instead of a kill, an ``os.fsync()`` for each item would be needed, and
    ``synchronous=FULL`` in the queue.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> JsonLinesPipeline:
        """Write where the settings say."""
        return cls(Path(crawler.settings["SHOP_ITEMS"]))

    def open_spider(self) -> None:
        """Go on at the end of the file; what an earlier run wrote stays."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+b")
        self._drop_unfinished_line()

    def _drop_unfinished_line(self) -> None:
        """Cut off what a killed process left of a line, or the next item would be joined to it."""
        start = max(0, self._file.seek(0, os.SEEK_END) - _LONGEST_LINE)
        self._file.seek(start)
        self._file.truncate(start + self._file.read().rfind(b"\n") + 1)

    def process_item(self, item: Any) -> Any:
        """Write one line, and hand it to the operating system before the page is done."""
        line = json.dumps(ItemAdapter(item).asdict()) + "\n"
        self._file.write(line.encode())
        self._file.flush()
        return item

    def close_spider(self) -> None:
        """Close the file."""
        self._file.close()


class DatasetPipeline:
    """Puts each item into the default dataset of the Actor run; elsewhere it does nothing.

    The disk of a run is gone with its container, also when the run is migrated. The client repeats
    what the API does not take at once.
    """

    def __init__(self, dataset_id: str) -> None:
        # Imported here, because only an Actor needs it installed.
        from apify_client import ApifyClientAsync

        url = os.environ.get("APIFY_API_BASE_URL") or "https://api.apify.com"
        client = ApifyClientAsync(os.environ["APIFY_TOKEN"], api_url=url)
        self._dataset = client.dataset(dataset_id)

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> DatasetPipeline:
        """Write to the dataset that the platform has made for this run."""
        if not (dataset_id := os.environ.get("ACTOR_DEFAULT_DATASET_ID")):
            raise NotConfigured
        return cls(dataset_id)

    async def process_item(self, item: Any) -> Any:
        """Return when the platform has the item."""
        await self._dataset.push_items(ItemAdapter(item).asdict())
        return item
