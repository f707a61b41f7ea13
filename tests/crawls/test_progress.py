"""What the log says of the queue: at the start, on the way, and at the end."""

from __future__ import annotations

import re
from typing import Any

import pytest

from scrapy_apify_rq.backends.sqlite.queue import FILE_NAME
from scrapy_apify_rq.entries.arguments import arguments_of
from scrapy_apify_rq.identity import default_name
from tests.support.api_calls import Call, error
from tests.support.crawling import Crawl, Crawls
from tests.support.queues import Queue, ServedQueue
from tests.support.spiders import Pages
from tests.support.website import Page, Site, links

PATHS = [f"/{number}" for number in range(20)]
LINE = re.compile(
    r"INFO: Request queue: (\d+) handled, (\d+) pending; this run: (\d+) failed,"
    r" (\d+) pages/min; (?:about (\d+):(\d\d):(\d\d) left at this pace|none left|time left unknown)"
)
UNNAMED = {"APIFY_RQ_NAME": None, "BOT_NAME": "bot"}


def said(crawl: Crawl) -> list[str]:
    ours = [record for record in crawl.log if record.name.startswith("scrapy_apify_rq.")]
    return [f"{record.levelname}: {record.getMessage()}" for record in ours]


@pytest.mark.parametrize("naming", [{}, UNNAMED])
async def test_first_and_last_lines(
    site: Site, queue: Queue, crawls: Crawls, naming: dict[str, Any]
) -> None:
    """Of a crawl that is stopped, resumed, finished, and begun again."""
    site.serve({"/": links(*PATHS), **dict.fromkeys(PATHS, "page")})
    name = "test-queue"
    if naming:
        arguments = arguments_of((), {"site": site.url})
        name = default_name("bot", "spider", arguments.canonical)
    title = f"Request queue {name!r} in {queue.folder / FILE_NAME}"
    opening = f"{title}, of this spider with these values of site" if naming else title
    few = {**naming, "CONCURRENT_REQUESTS": 1, "CLOSESPIDER_PAGECOUNT": 2}
    stopped = await crawls.run(Pages, few, site=site.url)
    done = len(site.paths)
    left = 21 - done
    assert 2 <= done < 21
    assert said(stopped)[0] == f"INFO: {opening}: new"
    assert f"the queue holds {done} handled, {left} pending" in stopped.closing_line

    resumed = await crawls.run(Pages, naming, site=site.url)
    assert sorted(site.paths) == sorted(["/", *PATHS])
    assert said(resumed)[0] == f"INFO: {opening}: resuming, {left} pending, {done} handled"
    assert f"this run handled {left} (0 of them failed)" in resumed.closing_line
    assert "the queue holds 21 handled, 0 pending" in resumed.closing_line

    again, why = await crawls.run(Pages, naming, site=site.url), "its crawl was finished"
    if not naming:
        line = said(again)[0]
        assert line.startswith(f"WARNING: {title} is finished: 21 handled, none pending")
        assert "-s APIFY_RQ_PURGE_ON_START=True" in line
        assert "another APIFY_RQ_NAME" in line
        assert "handled 0 (0 of them failed)" in again.closing_line
        assert len(site.paths) == 21
        why = "0 of them pending, since APIFY_RQ_PURGE_ON_START is set"
        again = await crawls.run(Pages, {"APIFY_RQ_PURGE_ON_START": True}, site=site.url)
        assert (await queue.info()).handled == 21
    assert said(again)[0] == f"INFO: {opening}: emptied of 21 entries, {why}"
    assert "WARNING" not in "".join(said(again))
    assert len(site.paths) == 42


async def test_the_last_line_sums_up_below_the_stats(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    site.serve({"/": links("/a", "/gone", "/once"), "/a": "a", "/once": [503, "once"]})
    crawl = await crawls.run(Pages, site=site.url)
    assert crawl.log_text.splitlines()[-1] == (
        f"INFO: Request queue 'test-queue' in {queue.folder / FILE_NAME}:"
        " this run handled 4 (1 of them failed) and retried 1;"
        " the queue holds 4 handled, 0 pending; failed: 1 x 404 Not Found"
    )
    assert "Dumping Scrapy stats" in crawl.log_text


# On the way.


def serve_slowly(site: Site) -> None:
    """Twenty pages, two of which fail."""
    site.serve({"/": links(*PATHS), **dict.fromkeys(PATHS, Page(delay=0.05))})
    site.serve(dict.fromkeys(PATHS[5:7], Page(status=404, delay=0.05)))


async def test_lines_of_progress(site: Site, crawls: Crawls, any_queue: Queue) -> None:
    serve_slowly(site)
    settings = {"CONCURRENT_REQUESTS": 1, "LOGSTATS_INTERVAL": 0.15}
    # From the first line on, the queue knows all pages.
    few = {**settings, "CLOSESPIDER_PAGECOUNT": 1}
    await crawls.run(Pages, few, queue=any_queue, site=site.url)
    crawl = await crawls.run(Pages, settings, queue=any_queue, site=site.url)
    lines = list(LINE.finditer(crawl.log_text))
    assert len(lines) >= 3
    numbers = [[int(number) for number in line.groups()[:4]] for line in lines]
    handled = [line[0] for line in numbers]
    assert handled == sorted(handled)
    assert {line[0] + line[1] for line in numbers} == {21}
    assert numbers[-1][2] == 2
    # A twentieth of a second for each page, or more; but acks may come in bursts.
    assert 0 < max(line[3] for line in numbers) <= 4000
    for line, (_, pending, _, rate) in zip(lines, numbers, strict=True):
        if line[7] and rate:
            assert abs(int(line[6]) * 60 + int(line[7]) - 60 * pending / rate) <= 1
    # Scrapy tells its own counts as ever.
    assert "Crawled 0 pages (at 0 pages/min)" in crawl.log_text
    # The queue is asked once for each line, and at the start and the end.
    assert crawl.stats.get("apify_rq/api/calls/queue_get", 0) <= len(lines) + 3


@pytest.mark.parametrize("refused", [2, 1000])
async def test_progress_of_a_queue_that_does_not_answer(
    site: Site, served: ServedQueue, crawls: Crawls, refused: int
) -> None:
    """It costs the line, and no more."""
    serve_slowly(site)

    def before(call: Call) -> Any:
        nonlocal refused
        refused -= call.is_("GET", "")
        return error(500) if call.is_("GET", "") and refused >= 0 else None

    served.api.before = before
    settings = {"APIFY_RQ_UNAVAILABLE_TIMEOUT": 0.5, "LOGSTATS_INTERVAL": 0.1}
    settings["CONCURRENT_REQUESTS"] = 1
    crawl = await crawls.run(Pages, settings, queue=served, site=site.url)
    assert sorted(site.paths) == sorted(["/", *PATHS])
    assert crawl.reason == "finished"
    assert crawl.stats["apify_rq/handled"] == 21
    assert bool(LINE.search(crawl.log_text)) == (refused < 0)
