"""The project in whose folder ``serve`` runs, for the page: keys and callbacks of its spiders.

Its spiders are looked for, and their modules imported, when the page first shows or adds an entry.
"""

from __future__ import annotations

import argparse
from typing import Any

from scrapy.settings import Settings
from scrapy.spiderloader import get_spider_loader

from scrapy_apify_rq.commands import queues
from scrapy_apify_rq.commands.add import entry_of
from scrapy_apify_rq.commands.show import request_as_json
from scrapy_apify_rq.entries.converter import reset
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.errors import CodecError
from scrapy_apify_rq.identity import may_belong_to

# A queue without a name has that of no spider.
_NO_NAME = "unnamed"


class ServedProject:
    """``server.project.Project`` says what each method promises."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._spiders: dict[str, str | None] = {}
        """By the name of the queue."""
        self._queues: dict[str | None, queues.Queue] = {}
        """By spider."""

    def new_entry(self, queue: str | None, line: bytes) -> Entry:
        crawled = self._queue(queue)
        return entry_of(crawled, crawled.converter(), line)

    def as_request(self, queue: str | None, entry: Entry) -> dict[str, Any]:
        crawled = self._queue(queue)
        try:
            return request_as_json(crawled.converter().decode(entry))
        except CodecError as error:
            if crawled.has_spider:
                raise
            raise CodecError(
                f"{error}. No spider in this folder has a queue of this name: run the command in"
                " the folder of its project"
            ) from error

    def renew(self, queue: str | None, entry: Entry) -> None:
        reset(entry, self._settings.getint("RETRY_PRIORITY_ADJUST"))

    def _queue(self, name: str | None) -> queues.Queue:
        try:
            return self._found(name or _NO_NAME)
        except (Exception, SystemExit) as error:  # modules that are imported may raise anything
            raise CodecError(
                "The project in this folder cannot be loaded, see scrapy list:"
                f" {type(error).__name__}: {error}"
            ) from error

    def _found(self, name: str) -> queues.Queue:
        if name not in self._spiders:
            self._spiders[name] = self._spider_of(name)
        spider = self._spiders[name]
        if spider not in self._queues:
            options = argparse.Namespace(spider=spider, queue=_NO_NAME, arguments=[])
            self._queues[spider] = queues.unopened(self._settings, options)
        return self._queues[spider]

    def _spider_of(self, queue: str) -> str | None:
        """The spider that crawls the queue; None if none has its name, or several have."""
        bot = self._settings.get("BOT_NAME", "")
        spiders = get_spider_loader(self._settings).list()
        own = [spider for spider in spiders if may_belong_to(queue, bot, spider)]
        return own[0] if len(own) == 1 else None
