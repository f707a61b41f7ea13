"""Store the items in an Actor run's dataset before their page counts as handled."""

from __future__ import annotations

import os
from typing import Any

from itemadapter import ItemAdapter
from scrapy.crawler import Crawler
from scrapy.exceptions import NotConfigured


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
