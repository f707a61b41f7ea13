"""Wrong input stops the crawl before it starts, with a text that says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scrapy.dupefilters import RFPDupeFilter
from scrapy.statscollectors import MemoryStatsCollector

from scrapy_apify_rq.backends.sqlite.queue import FILE_NAME
from scrapy_apify_rq.errors import ConfigError
from tests.support.crawling import Crawls
from tests.support.queues import Queue
from tests.support.spiders import Links
from tests.support.website import Site


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("STORAGEDIR", "x", r"APIFY_RQ_STORAGEDIR: did you mean APIFY_RQ_STORAGE_DIR\?"),
        ("CALLBACKS", {"A": "parse_a"}, r"S\['A'\]: spider 'spider' has no method 'parse_a'"),
        ("ID", "~other", f"APIFY_RQ_ID is '~other', .*/{FILE_NAME} .* Set APIFY_RQ_NAME"),
    ],
)
async def test_wrong_settings(
    site: Site, crawls: Crawls, name: str, value: Any, message: str
) -> None:
    settings = {"APIFY_RQ_NAME": None, f"APIFY_RQ_{name}": value}
    crawl = crawls.begin(Links, settings, site=site.url)
    with pytest.raises(ConfigError, match=message):
        await crawl.end()
    assert not crawl.is_open
    assert site.paths == []


class Closes(RFPDupeFilter):
    """Keeps why it was closed."""

    reasons: list[str]

    def close(self, reason: str) -> None:
        self.reasons.append(reason)


async def test_dupefilter_is_closed_if_the_queue_cannot_be_opened(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    class Spoils(Closes):
        reasons: list[str] = []  # noqa: RUF012 (Scrapy makes the object)

        def open(self) -> None:
            # Later than the check of all settings, which would find it.
            queue.folder.mkdir(exist_ok=True)
            (queue.folder / FILE_NAME).write_text("no database" * 100)

    crawl = await crawls.run(Links, {"DUPEFILTER_CLASS": Spoils}, site=site.url)
    assert crawl.reason == "apify_rq_unavailable"
    assert Spoils.reasons == ["apify_rq_unavailable"]


class LosesItsDisk(MemoryStatsCollector):
    def get_value(self, key: str, default: Any = None) -> Any:
        if key == "apify_rq/handled":  # asked for by the summary, last of all
            raise OSError("the disk is gone")
        return super().get_value(key, default)


async def test_dupefilter_is_closed_if_closing_fails(site: Site, crawls: Crawls) -> None:
    class Ends(Closes):
        reasons: list[str] = []  # noqa: RUF012

    settings = {"DUPEFILTER_CLASS": Ends, "STATS_CLASS": LosesItsDisk}
    site.serve({"/": "page"})
    crawl = await crawls.run(Links, settings, site=site.url)
    assert "the disk is gone" in str([one.exc_info for one in crawl.log])
    assert Ends.reasons == ["finished"]


@pytest.mark.parametrize("is_pending", [True, False])
async def test_requests_pending_in_the_jobdir_are_pointed_out(
    tmp_path: Path, site: Site, crawls: Crawls, is_pending: bool
) -> None:
    site.serve({"/": "page"})
    folder = tmp_path / "job dir"
    (folder / "requests.queue").mkdir(parents=True)
    if is_pending:
        (folder / "requests.queue" / "active.json").touch()
    crawl = await crawls.run(Links, {"JOBDIR": str(folder)}, site=site.url)
    command = f"scrapy rq import-jobdir '{folder}' --spider {Links.name}"
    assert (command in crawl.log_text) is is_pending
