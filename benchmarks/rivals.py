"""``apify.scrapy.ApifyScheduler`` in both access modes, on the queue that the environment names.

Without these classes it would use a local queue outside an Actor run, and single access inside one.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from apify import Configuration
from apify.scrapy import ApifyScheduler
from apify.storage_clients import ApifyStorageClient
from crawlee import service_locator


class Single(ApifyScheduler):
    access: ClassVar[Literal["single", "shared"]] = "single"

    def open(self, spider: Any) -> Any:
        service_locator.set_configuration(Configuration())
        service_locator.set_storage_client(ApifyStorageClient(request_queue_access=self.access))
        return super().open(spider)


class Shared(Single):
    access = "shared"
