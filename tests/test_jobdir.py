"""``scrapy rq import-jobdir``: finish a crawl that stock Scrapy has paused."""

from __future__ import annotations

import pickle
import re
import shutil
import signal
import threading
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from scrapy import Request, Spider
from scrapy.core.scheduler import Scheduler
from scrapy.crawler import Crawler
from scrapy.utils.misc import load_object

from scrapy_apify_rq.commands.jobdir import SEEN, JobDir
from scrapy_apify_rq.entries.converter import RequestConverter
from scrapy_apify_rq.entries.unique_keys import Keys
from scrapy_apify_rq.errors import CodecError, ConfigError
from tests.project import Crawl, Project
from tests.support.readme import commands
from tests.support.waiting import run_async
from tests.support.website import Hit, Page, Site, links

# Older versions of Scrapy do not close the empty disk queues that they open.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning"
)

# A paused crawl

SPIDER = """
    import asyncio

    class Spider(scrapy.Spider):
        name = "spider"
        start_urls = [SITE + "/", SITE + "/second", SITE + "/third"]
        wait = False

        async def start(self):
            if self.wait:
                print("waiting", flush=True)
                await asyncio.sleep(60)
            async for request in super().start():
                request.meta["download_slot"] = "slot 1"
                yield request.replace(priority=-5)

        def parse(self, response, came_from=None):
            assert came_from in (None, "a page")
            self.state["pages"] = self.state.get("pages", 0) + 1
            for link in response.css("a::attr(href)").getall():
                number = len(link)
                yield response.follow(
                    link,
                    cb_kwargs={"came_from": "a page"},
                    priority=number % 3 - 1,
                    meta={"download_slot": f"slot {number % 2}"},
                    errback=self.failed,
                )
            if response.url.endswith("0"):
                yield scrapy.Request(SITE + "/again", self.ignore, dont_filter=True)
                yield scrapy.Request(SITE + "/form", self.ignore, method="POST", body=b"\\xff")

        def failed(self, failure):
            yield scrapy.Request(SITE + "/failed", self.ignore, dont_filter=True)

        def ignore(self, response):
            pass
"""
PATHS = ["/" + "x" * (n % 7) + str(n) for n in range(60)]


class Case(NamedTuple):
    settings: dict[str, Any]
    pending_starts: bool


# With one download at a time, links are crawled before the last start request, which stays pending.
CASES = {
    "sqlite": Case(
        {
            "SCHEDULER_PRIORITY_QUEUE": "scrapy.pqueues.DownloaderAwarePriorityQueue",
            "SCHEDULER_DISK_QUEUE": "scrapy.squeues.PickleLifoDiskQueue",
            "CONCURRENT_REQUESTS": 1,
        },
        pending_starts=True,
    ),
    "apify": Case(
        {
            "SCHEDULER_PRIORITY_QUEUE": "scrapy.pqueues.ScrapyPriorityQueue",
            "SCHEDULER_DISK_QUEUE": "scrapy.squeues.MarshalFifoDiskQueue",
            "CONCURRENT_REQUESTS": 4,
        },
        pending_starts=False,
    ),
}


def site() -> Site:
    """Every page links to others and to the start. Three fail at first, two are missing."""

    def page(number: int) -> Page:
        to = [PATHS[(3 * number + more) % 60] for more in range(1, 5)]
        return Page(links("/", *to), delay=0.02)

    pages: dict[str, Any] = {path: page(number) for number, path in enumerate(PATHS)}
    for number in (1, 4, 9):
        pages[PATHS[number]] = [503, page(number)]
    pages |= {PATHS[n]: 404 for n in (2, 17)}
    starts = {
        # Longer than older versions of Scrapy delay a response before its callback.
        "/": Page(links(*PATHS[:9]), delay=0.15),
        "/second": Page(links(*PATHS[5:9]), delay=0.15),
        "/third": links("/third"),
    }
    return Site({**pages, **starts}, default=links())


class Paused(NamedTuple):
    case: Case
    jobdir: Path
    before: dict[Path, bytes]
    """The files of the JOBDIR when stock Scrapy had paused the crawl."""
    hits: int
    """The number of hits until then."""
    interrupted: tuple[int, str]
    imports: list[Crawl]
    pending: int
    handled: int
    ours: Project
    crawl: Crawl
    site: Site


@pytest.fixture(scope="module")
def paused(backend: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paused]:
    folder = tmp_path_factory.mktemp("paused")
    case = CASES[backend]
    with site() as crawled:
        jobdir = pause(folder / "stock", crawled, case.settings)
        before, hits = files(jobdir), len(crawled.hits)
        ours = Project(folder / "ours", SPIDER, site=crawled.url, settings=case.settings)
        interrupted = interrupt(ours, jobdir)
        (_, *command), crawling = commands("From a JOBDIR")
        words = [str(jobdir) if word == "crawls/spider-1" else word for word in command]
        imports = [ours.run(*words) for _ in "ab"]
        info = ours.info()
        assert crawling == ["scrapy", "crawl", "spider"]
        crawl = ours.crawl("-s", f"JOBDIR={jobdir}")
        yield Paused(
            case,
            jobdir,
            before,
            hits,
            interrupted,
            imports,
            info.pending,
            info.handled,
            ours,
            crawl,
            crawled,
        )


def pause(folder: Path, crawled: Site, settings: dict[str, Any]) -> Path:
    """Crawl with stock Scrapy, stop it with Ctrl-C, and return the JOBDIR."""
    stock = Project(
        folder, SPIDER, site=crawled.url, settings={**settings, "ADDONS": {}, "JOBDIR": "job"}
    )
    enough = threading.Event()

    def last(hit: Hit) -> Page:
        enough.set()
        return Page(links(), delay=0.1)

    crawled.serve({"/again": [links(), last]})
    with stock.start("crawl", "spider") as process:
        assert enough.wait(30)
        process.send_signal(signal.SIGINT)
        log = process.communicate(timeout=60)[1]
    assert "Spider closed (shutdown)" in log
    return folder / "job"


def interrupt(ours: Project, jobdir: Path) -> tuple[int, str]:
    """Interrupt an import after it has added the pending requests."""
    words = ("rq", "import-jobdir", str(jobdir), "spider", "--yes", "-a", "wait=1")
    with ours.start(*words) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        log = process.communicate(timeout=30)[1]
    return process.returncode, log


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Counter[Any]:
    """The hits of a complete crawl with stock Scrapy."""
    with site() as crawled:
        settings = {"ADDONS": {}, "JOBDIR": "job"}
        folder = tmp_path_factory.mktemp("uninterrupted")
        Project(folder / "project", SPIDER, site=crawled.url, settings=settings).crawl()
        return hits(crawled)


def hits(crawled: Site) -> Counter[Any]:
    return Counter((hit.method, hit.path, hit.body) for hit in crawled.hits)


def test_both_crawls_together_fetch_exactly_the_pages_of_an_uninterrupted_one(
    paused: Paused, uninterrupted: Counter[Any]
) -> None:
    assert hits(paused.site) == uninterrupted
    assert 10 <= paused.hits <= uninterrupted.total() - 15
    assert paused.crawl.stats["finish_reason"] == "finished"
    assert paused.ours.info().pending == 0


def test_fingerprints_become_handled_entries(paused: Paused) -> None:
    entries = paused.ours.entries()
    seen = [entry for entry in entries if entry.url.startswith(SEEN)]
    assert 5 < len(seen) <= paused.handled
    assert all(entry.unique_key == entry.url.removeprefix(SEEN) for entry in seen)
    assert not [entry for entry in entries if entry.failed and entry in seen]


def test_the_jobdir_is_not_changed(paused: Paused) -> None:
    requests = {path: text for path, text in paused.before.items() if path.name != "spider.state"}
    assert requests.items() <= files(paused.jobdir).items()
    assert any("requests.queue" in str(path) for path in requests)


def test_an_import_can_be_interrupted_and_repeated(paused: Paused) -> None:
    status, log = paused.interrupted
    assert status == 130, log
    assert "you can safely run it again" in log
    first, second = paused.imports
    assert (first.returncode, second.returncode) == (0, 0), first.log + second.log
    assert "Added: 0 pending requests" in first.output
    assert "Added: 0 pending requests, 0 start requests counted as crawled, 0 seen" in second.output
    assert f"{paused.handled} handled, {paused.pending} pending" in second.output


def test_finished_start_requests_are_not_repeated(paused: Paused) -> None:
    starts = [entry for entry in paused.ours.entries() if ":start" in entry.unique_key]
    assert len(starts) == 3
    found = re.search(r"(\d) start requests counted as crawled", paused.imports[0].output)
    assert found
    assert (int(found[1]) < 3) == paused.case.pending_starts
    assert paused.crawl.stats["dupefilter/filtered"] >= 3


def test_spider_state_continues_if_jobdir_stays_set(paused: Paused) -> None:
    state = paused.jobdir / "spider.state"
    before, after = (pickle.loads(data) for data in (paused.before[state], state.read_bytes()))
    parsed = paused.crawl.stats["response_received_count"]
    assert 0 < before["pages"] < after["pages"] <= before["pages"] + parsed


def test_it_asks_whether_the_pickles_are_your_own(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    project = Project(tmp_path / "project", SPIDER)
    refused = project.run("rq", "import-jobdir", str(tmp_path / "job"), "spider")
    assert refused.returncode == 2
    assert "holds pickles" in refused.log
    assert "--yes" in refused.log


# JobDir without a command


class Odd(date):
    """A value that can be pickled but not written as JSON, because its module is not trusted."""


def jobdir_of(
    folder: Path, cls: type[Spider] | None = None, **settings: Any
) -> tuple[JobDir, list[tuple[str, CodecError]]]:
    skipped: list[tuple[str, CodecError]] = []
    spider = spider_of(folder, cls, **settings)
    converter = RequestConverter(spider)
    reader = JobDir(folder, spider, converter, lambda url, error: skipped.append((url, error)))
    return reader, skipped


def spider_of(folder: Path, cls: type[Spider] | None = None, **settings: Any) -> Spider:
    crawler = Crawler(cls or NoStart, {"JOBDIR": str(folder), **settings})
    crawler.stats = load_object(crawler.settings["STATS_CLASS"])(crawler)
    crawler.request_fingerprinter = load_object(crawler.settings["REQUEST_FINGERPRINTER_CLASS"])()
    slots = SimpleNamespace(slots={}, get_slot_key=lambda request: "slot")
    crawler.engine = SimpleNamespace(downloader=slots)  # type: ignore[assignment]
    crawler.spider = crawler.spidercls.from_crawler(crawler)
    return crawler.spider


class NoStart(Spider):
    name = "spider"

    async def start(self) -> Any:
        for _ in ():
            yield


def write(folder: Path, *requests: Request, **settings: Any) -> None:
    """Write the requests as stock Scrapy's scheduler does."""
    spider = spider_of(folder, **settings)
    scheduler = Scheduler.from_crawler(spider.crawler)
    scheduler.open(spider)
    for request in requests:
        assert scheduler.enqueue_request(request)
    scheduler.close("shutdown")


def test_pending_requests_come_in_scrapys_order(tmp_path: Path) -> None:
    wanted = [("a", -1), ("b", 0), ("c", 5), ("d", 0), ("e", 5)]
    write(tmp_path, *(Request(f"http://x/{path}", priority=n) for path, n in wanted))
    reader, skipped = jobdir_of(tmp_path)
    entries = list(reader.pending())
    assert [entry.url[-1] for entry in entries] == ["e", "c", "d", "b", "a"]
    assert list(reader.pending()) == entries
    assert {entry.unique_key for entry in reader.seen()} == {one.unique_key for one in entries}
    assert not skipped


def test_equal_requests_with_dont_filter_get_different_keys(tmp_path: Path) -> None:
    write(tmp_path, *(Request("http://x/", dont_filter=True) for _ in range(3)))
    keys = [entry.unique_key for entry in jobdir_of(tmp_path)[0].pending()]
    assert len(set(keys)) == 3
    assert [entry.unique_key for entry in jobdir_of(tmp_path)[0].pending()] == keys


class TwoStarts(NoStart):
    async def start(self) -> Any:
        yield Request("http://x/")
        yield Request("http://x/", dont_filter=True)


def test_start_requests_get_the_keys_that_a_crawl_gives_them(tmp_path: Path) -> None:
    write(tmp_path, Request("http://y/"))
    reader, _ = jobdir_of(tmp_path, TwoStarts)
    keys = Keys(reader._crawler, "fingerprint")

    async def both() -> tuple[set[str], set[str]]:
        starts = [one async for one in TwoStarts().start() if keys.is_repeatable(one)]
        asked = {keys.own(keys.plain(one), is_start=True) for one in starts}
        return {entry.unique_key for entry in await reader.started()}, asked

    imported, asked = run_async(both())
    assert len(imported) == 1
    assert imported == asked


def test_a_request_that_cannot_be_written_is_reported_and_not_seen(tmp_path: Path) -> None:
    write(tmp_path, Request("http://x/1"), Request("http://x/2", meta={"odd": Odd(2026, 1, 1)}))
    reader, skipped = jobdir_of(tmp_path)
    assert [entry.url for entry in reader.pending()] == ["http://x/1"]
    ((url, _),) = skipped
    assert url == "http://x/2"
    assert len(list(reader.seen())) == 1


def test_the_seen_set_of_an_older_scrapy_is_read(tmp_path: Path) -> None:
    (tmp_path / "requests.seen").write_text("00ff\nab12\ncut")
    entries = list(jobdir_of(tmp_path)[0].seen())
    assert [entry.unique_key for entry in entries] == ["00ff", "ab12"]
    assert all(entry.handled_at is not None for entry in entries)


def test_a_truncated_seen_set_is_read_as_far_as_possible(tmp_path: Path) -> None:
    (tmp_path / "requests.seen").write_bytes(b"\x00\x02\x30\xff\x00\x02\xab\x12\x00\x02\xcd")
    assert [one.unique_key for one in jobdir_of(tmp_path)[0].seen()] == ["30ff", "ab12"]


def test_a_folder_that_is_not_a_jobdir_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neither requests\.queue nor requests\.seen"):
        jobdir_of(tmp_path / "other")


def test_a_crawl_that_was_killed_is_refused(tmp_path: Path) -> None:
    write(tmp_path, Request("http://x/"))
    (tmp_path / "requests.queue" / "active.json").unlink()
    with pytest.raises(ConfigError, match=r"lacks active\.json.*Ctrl-C"):
        list(jobdir_of(tmp_path)[0].pending())


def test_a_crawl_that_was_killed_after_it_was_resumed_is_refused(tmp_path: Path) -> None:
    write(tmp_path, Request("http://x/"), Request("http://x/2", priority=1))
    state = tmp_path / "requests.queue" / "active.json"
    state.write_text(state.read_text().replace("-1, ", "").replace(", -1", ""))
    with pytest.raises(ConfigError, match=r"does not list, in .*-1\."):
        list(jobdir_of(tmp_path)[0].pending())


def test_a_long_seen_set_is_not_loaded_into_memory(tmp_path: Path) -> None:
    lines = 20_000
    with (tmp_path / "requests.seen").open("wb") as file:
        file.writelines(b"\x00\x14" + n.to_bytes(20, "big") for n in range(lines))
    reader = jobdir_of(tmp_path)[0]
    tracemalloc.start()
    try:
        assert sum(1 for _ in reader.seen()) == lines
        assert tracemalloc.get_traced_memory()[1] < 10 * lines
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "wrong",
    [
        {"SCHEDULER_PRIORITY_QUEUE": "scrapy.pqueues.ScrapyPriorityQueue"},
        {"SCHEDULER_DISK_QUEUE": "scrapy.squeues.PickleFifoDiskQueue"},
        {"SCHEDULER_DISK_QUEUE": "scrapy.squeues.MarshalLifoDiskQueue"},
    ],
)
def test_an_error_names_the_settings_if_the_queue_classes_differ(
    tmp_path: Path, wrong: dict[str, str]
) -> None:
    write(tmp_path, Request("http://x/"), Request("http://x/2"))
    with pytest.raises(ConfigError, match="SCHEDULER_DISK_QUEUE"):
        list(jobdir_of(tmp_path, **wrong)[0].pending())
    shutil.rmtree(tmp_path / "requests.queue")
    assert list(jobdir_of(tmp_path, **wrong)[0].pending()) == []
