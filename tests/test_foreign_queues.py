"""Crawl queues over the API that other programs have filled."""

from __future__ import annotations

import base64
import pickle
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import project
from tests.project import QUEUE, Crawl, Project
from tests.servers import TOKEN, Servers
from tests.support import apify_sdk as actor
from tests.support.readme import commands
from tests.support.website import Hit, Page, Site, links

pytestmark = pytest.mark.skipif(
    find_spec("apify") is None, reason="the Apify SDK (package apify) is not installed"
)


@pytest.fixture(scope="module", autouse=True)
def _over_the_api(servers: Servers) -> Iterator[None]:
    project.servers = servers
    yield
    project.servers = None


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


SPIDER = """
    class Spider(scrapy.Spider):
        name = "spider"

        async def start(self):
            return
            yield

        def parse(self, response):
            yield scrapy.Request(SITE + "/from-parse", self.parse_nothing)

        def parse_detail(self, response):
            path = response.url.removeprefix(SITE).strip("/")
            yield scrapy.Request(SITE + "/from-detail?of=" + path, self.parse_nothing)

        def parse_nothing(self, response):
            pass
"""


class Outcome(NamedTuple):
    project: Project
    crawl: Crawl
    site: Site
    before: dict[str, dict[str, Any]]
    """The userData of each entry before the crawl, by the path of its URL."""


def crawled(folder: Path, site: Site, fill: Callable[[Project, dict[str, str]], Any]) -> Outcome:
    """Let ``fill`` fill a queue, which it finds through an environment, and crawl the queue."""
    settings = {"APIFY_RQ_CALLBACKS": {"DETAIL": "parse_detail"}}
    queue = Project(folder / "project", SPIDER, site=site.url, settings=settings)
    fill(queue, environ(queue))
    before = {one.url.removeprefix(site.url): one.user_data for one in queue.entries()}
    return Outcome(queue, queue.crawl(), site, before)


def environ(queue: Project) -> dict[str, str]:
    assert queue.server is not None
    return actor.environ(queue.server.url, TOKEN, QUEUE)


# A queue filled by the official client, including entries in the format of old apify.scrapy


@pytest.fixture(scope="module")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trap") / "sprung"


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory, trap: Path) -> Iterator[Outcome]:
    from apify_client import ApifyClient

    def fill(queue: Project, env: dict[str, str]) -> None:
        client = ApifyClient(TOKEN, api_url=env["APIFY_API_BASE_URL"])
        client.request_queue(env["ACTOR_DEFAULT_REQUEST_QUEUE_ID"]).batch_add_requests(
            [
                {"url": f"{site.url}/{path}", "uniqueKey": path, "userData": user_data}
                for path, user_data in _by_the_client(trap).items()
            ]
        )

    with Site({}, default=links()) as site:
        yield crawled(tmp_path_factory.mktemp("official"), site, fill)


def _by_the_client(trap: Path) -> dict[str, dict[str, Any]]:
    pickled = pickle.dumps({"url": "https://example.com/", "meta": Trap(trap)})
    # apify 3.x and older used codecs.encode(..., "base64"), which breaks lines.
    return {
        "labelled": {"label": "DETAIL"},
        "unknown-label": {"label": "OTHER"},
        "without-label": {},
        "pickle": {"scrapy_request": base64.encodebytes(pickled).decode()},
        "pickle-in-one-line": {"scrapy_request": base64.b64encode(pickled).decode()},
    }


def test_the_trap_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists()


def test_each_entry_of_the_client_is_crawled_once(official: Outcome) -> None:
    expected = ["/labelled", "/from-detail?of=labelled", "/unknown-label", "/without-label"]
    assert Counter(official.site.paths) == Counter([*expected, "/from-parse"])
    assert official.crawl.stats["finish_reason"] == "finished"
    assert official.project.info().pending == 0


def test_an_entry_with_only_a_label_goes_to_its_callback_and_keeps_it(official: Outcome) -> None:
    entry = official.project.entry("/labelled")
    assert entry.user_data == {"label": "DETAIL"}
    assert entry.handled_at is not None
    assert entry.loaded_url == entry.url
    assert entry.error_messages == []


@pytest.mark.parametrize("path", ["/pickle", "/pickle-in-one-line"])
def test_a_pickle_is_refused_reported_and_acked(official: Outcome, path: str) -> None:
    entry = official.project.entry(path)
    assert entry.handled_at is not None
    (message,) = entry.error_messages
    assert "pickles" in message
    assert entry.user_data == official.before[path]
    (report,) = (line for line in official.crawl.log.splitlines() if f"{path})" in line)
    assert "ERROR" in report


def test_no_pickle_was_loaded(official: Outcome, trap: Path) -> None:
    assert official.crawl.stats["apify_rq/undecodable"] == 2
    assert not trap.exists()


# A queue filled by Crawlee


@pytest.fixture(scope="module")
def crawlee(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    def fill(queue: Project, env: dict[str, str]) -> None:
        actor.run("crawlee_requests.py", "add", site.url, env=env)

    with Site({}, default=links()) as site:
        yield crawled(tmp_path_factory.mktemp("crawlee"), site, fill)


def test_each_request_of_crawlee_is_crawled_once(crawlee: Outcome) -> None:
    expected = ["/form", "/from-detail?of=form", "/plain", "/from-parse"]
    assert Counter(crawlee.site.paths) == Counter(expected)
    assert crawlee.project.info().pending == 0


def test_a_request_of_crawlee_is_sent_as_it_was_written(crawlee: Outcome) -> None:
    (hit,) = (hit for hit in crawlee.site.hits if hit.path == "/form")
    headers = {name.lower(): value for name, value in hit.headers}
    assert (hit.method, hit.body.decode()) == ("POST", "name=Škoda")
    assert headers["x-own"] == "value"
    assert headers["content-type"] == "application/x-www-form-urlencoded"


def test_crawlees_own_data_is_not_changed(crawlee: Outcome) -> None:
    before = crawlee.before["/form"]
    assert before["__crawlee"].keys() >= {"maxRetries", "enqueueStrategy", "crawlDepth"}
    assert before["deep"] == {"list": [1, None, "ž"]}
    assert crawlee.project.entry("/form").user_data == before


def test_crawlee_reads_what_we_have_handled_and_added(crawlee: Outcome) -> None:
    """When the SDK opens a queue it reads all entries, including those that we added."""
    arguments = ("crawlee_requests.py", "read", crawlee.site.url)
    seen = actor.run(*arguments, env=environ(crawlee.project))
    assert seen["finished"]
    assert seen["wasAlreadyHandled"]
    form, plain = seen["requests"]
    assert (
        form.items()
        >= {
            "method": "POST",
            "payload": "name=Škoda",
            "loadedUrl": f"{crawlee.site.url}/form",
            "retryCount": 0,
        }.items()
    )
    assert form["handledAt"]
    assert plain["handledAt"]


# A crawl that apify.scrapy began and that was killed

SHARED_SPIDER = """
    class Spider(scrapy.Spider):
        name = "spider"
        start_urls = [SITE + "/"]

        def parse(self, response):
            for n in range(20):
                yield scrapy.Request(
                    f"{SITE}/form/{n}",
                    self.parse_form,
                    method="POST",
                    body=f"name=Škoda {n}",
                    headers={"X-Own": f"value {n}", "Content-Type": "text/plain"},
                    meta={"number": n, "deep": {"list": [1, None]}, "userData": {"label": "F"}},
                    cb_kwargs={"name": f"form {n}"},
                    cookies={"c": str(n)},
                    flags=["flag"],
                )

        def parse_form(self, response, name):
            n = response.meta["number"]
            assert response.meta["deep"] == {"list": [1, None]}
            assert name == f"form {n}"
            assert response.request.flags == ["flag"]
            yield scrapy.Request(f"{SITE}/detail/{n}", self.parse_detail, errback=self.failed)

        def parse_detail(self, response):
            raise AssertionError("each detail is a failure of the site")

        def failed(self, failure):
            yield scrapy.Request(f"{SITE}/failed/{failure.request.url[-1]}", self.parse_last)

        def parse_last(self, response):
            pass
"""
FORMS = [f"/form/{n}" for n in range(20)]
DETAILS = [f"/detail/{n}" for n in range(20)]


CONCURRENCY = 4


class Taken(NamedTuple):
    """A crawl that ``apify.scrapy`` began and this scheduler finished."""

    project: Project
    crawl: Crawl
    site: Site
    theirs: int
    """The number of pages fetched before their crawl was killed."""
    pending: int
    """The number of entries pending at that time."""


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Taken]:
    folder = tmp_path_factory.mktemp("taken")
    half_way = threading.Event()

    def form(hit: Hit) -> Page:
        if hit.path == FORMS[10]:
            half_way.set()
        return Page(links(), delay=0.1)

    pages = {**dict.fromkeys(FORMS, form), **dict.fromkeys(DETAILS, 404)}
    with Site(pages, default=links()) as site:
        common = {"CONCURRENT_REQUESTS": CONCURRENCY, "CONCURRENT_REQUESTS_PER_DOMAIN": CONCURRENCY}
        settings = {**common, "APIFY_RQ_UNIQUE_KEY": "crawlee"}
        ours = Project(folder / "ours", SHARED_SPIDER, site=site.url, settings=settings)
        theirs = Project(
            folder / "theirs", SHARED_SPIDER, site=site.url, settings={**common, "ADDONS": {}}
        )
        assert ours.server is not None
        env = actor.environ(ours.server.url, TOKEN, QUEUE)
        with theirs.start(script=actor.source("scrapy_actor.py"), env=env) as process:
            reached = half_way.wait(60)
            process.kill()
            log = process.communicate()[1]
        assert reached, log
        done, pending = len(site.paths), ours.info().pending
        yield Taken(ours, ours.crawl(), site, done, pending)


def test_a_crawl_that_apify_scrapy_began_is_finished(taken: Taken) -> None:
    last = {f"/failed/{n}" for n in range(10)}
    assert set(taken.site.paths) == {"/", *FORMS, *DETAILS, *last}
    assert taken.crawl.stats["finish_reason"] == "finished"
    assert taken.project.info().pending == 0
    assert "apify_rq/undecodable" not in taken.crawl.stats
    assert not [name for name in taken.crawl.stats if "spider_exceptions" in name]


def test_each_of_them_crawled_a_part(taken: Taken) -> None:
    assert 10 <= taken.theirs < 20
    assert taken.pending > 10
    assert len(taken.site.paths) - taken.theirs >= taken.pending


def test_only_what_was_in_flight_is_crawled_again(taken: Taken) -> None:
    again = Counter(taken.site.paths) - Counter(set(taken.site.paths))
    # Their scheduler acks a finished page when it next asks for a request.
    assert again.total() <= 2 * CONCURRENCY
    assert again.keys() <= set(FORMS)


def test_its_requests_are_sent_as_they_were_written(taken: Taken) -> None:
    for hit in taken.site.hits:
        if hit.path in FORMS:
            n = hit.path.removeprefix("/form/")
            headers = dict(hit.headers)
            assert (hit.method, hit.body.decode()) == ("POST", f"name=Škoda {n}")
            assert (headers["X-Own"], headers["Content-Type"]) == (f"value {n}", "text/plain")
            assert headers["Cookie"] == f"c={n}"


def test_its_entries_keep_what_it_wrote(taken: Taken) -> None:
    for path in FORMS:
        entry = taken.project.entry(path)
        assert entry.user_data["label"] == "F"
        assert "scrapy_request" in entry.user_data


# A crawl that apify.scrapy began and stopped cleanly; every page of the site links to all others

CROSS_LINKED = [f"/Page/{n}?b=2&a={n}" for n in range(40)]
CROSSING_SPIDER = """
    class Spider(scrapy.Spider):
        name = "spider"
        start_urls = [SITE + "/", SITE + "/second"]

        def parse(self, response):
            for link in response.css("a::attr(href)"):
                yield response.follow(link, headers={"Accept-Language": "cs", "X-Own": "1"})
            yield scrapy.Request(SITE + "/post", method="POST", body="a", dont_filter=False)
            # Their scheduler retries this as a new entry, which has the meta of the first one.
            yield scrapy.Request(SITE + "/once#part")
"""


def test_each_page_is_crawled_by_only_one_of_them(tmp_path: Path) -> None:
    pages = dict.fromkeys(["/", "/second", *CROSS_LINKED], links(*CROSS_LINKED, "/"))
    with Site({**pages, "/post": links("/"), "/once": [503, links("/")]}) as site:
        ours = Project(
            tmp_path / "ours",
            CROSSING_SPIDER,
            site=site.url,
            settings={"APIFY_RQ_NAME": None},
        )
        theirs = Project(
            tmp_path / "theirs",
            CROSSING_SPIDER,
            site=site.url,
            settings={"ADDONS": {}, "CLOSESPIDER_PAGECOUNT": 12, "CONCURRENT_REQUESTS": 4},
        )
        assert ours.server is not None
        env = actor.environ(ours.server.url, TOKEN, QUEUE)
        theirs.run(script=actor.source("scrapy_actor.py"), env=env)
        done, pending = len(site.paths), ours.info().pending
        assert 10 <= done < 25
        assert pending > 10
        ((*command, which, how, key),) = commands("From `apify.scrapy`")
        assert command == ["scrapy", "crawl", "spider", "-s"]
        id = which.replace("WkzbQMuFYuamGv3YF", env["ACTOR_DEFAULT_REQUEST_QUEUE_ID"])
        crawl = ours.crawl("-s", id, how, key)
    # The start page is crawled once more, as in stock Scrapy: a start request is not filtered, so a
    # link to its page counts as new.
    once = Counter(["/", *pages, "/post", "/once"]) + Counter(["/once"])
    assert Counter(site.paths) == once
    assert crawl.stats["finish_reason"] == "finished"
    assert ours.info().pending == 0
