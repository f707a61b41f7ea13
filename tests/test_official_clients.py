"""The API server, driven by Apify's own programs: the client for JavaScript and the SDK.

``test_apify_client.py`` has the client for Python.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from scrapy_apify_rq.entries.unique_keys import request_id
from tests.project import QUEUE, Project
from tests.server import Server, serve
from tests.support import apify_sdk as actor
from tests.support import npm_packages as npm
from tests.support.website import Site, links

JAVASCRIPT_CLIENT = "apify-client@2"
DRIVER = Path(__file__).parent / "support" / "official" / "drive.mjs"
needs_sdk = pytest.mark.skipif(find_spec("apify") is None, reason="apify is not installed")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("server"), "--token", "secret") as server:
        yield server


# The client for JavaScript


@pytest.fixture(scope="module")
def javascript(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, server: Server
) -> dict[str, Any]:
    """What the driver saw."""
    folder = npm.installed(request.config, tmp_path_factory, "javascript", JAVASCRIPT_CLIENT)
    server.forget_calls()
    command = ["node", str(DRIVER), server.url, "secret", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    seen["operations"] = set(server.calls.operations)
    return seen


def test_javascript_makes_every_call(javascript: dict[str, Any]) -> None:
    assert len(javascript["operations"]) == 17


def test_javascript_manages_queues(javascript: dict[str, Any]) -> None:
    assert javascript["queues"] == {
        "same": True,
        "createdAtIsDate": True,
        "name": "javascript-renamed",
        "named": ["javascript-renamed"],
        "unnamed": 1,
        "deleted": True,
        "afterDeletion": {"status": 404, "type": "record-not-found"},
    }
    assert javascript["wrongToken"] == {"status": 401, "type": "user-or-token-not-found"}


def test_javascript_manages_one_request(javascript: dict[str, Any]) -> None:
    seen = javascript["oneRequest"]
    id = request_id("one|ž")

    def registration(present: bool, handled: bool) -> dict[str, Any]:
        return {"requestId": id, "wasAlreadyPresent": present, "wasAlreadyHandled": handled}

    assert seen["added"] == registration(False, False)
    assert seen["twice"] == registration(True, False)
    assert seen["updated"] == registration(True, False)
    assert seen["requeued"] == registration(True, True)
    assert (
        seen["stored"].items()
        >= {
            "id": id,
            "uniqueKey": "one|ž",
            "method": "POST",
            "payload": "{}",
            "headers": {"a": "b"},
            "userData": {"label": "X", "deep": [1, None]},
        }.items()
    )
    assert seen["afterwards"] == {**seen["stored"], "retryCount": 1}
    assert seen["gone"]


def test_javascript_works_in_batches(javascript: dict[str, Any]) -> None:
    seen = javascript["batches"]
    keys = sorted(f"key-{n}" for n in range(60))
    assert sorted(seen["processed"]) == keys
    assert seen["unprocessed"] == []
    assert seen["brotli"] == 3  # two batches of 25 and one long request; 10 are below 1 KiB
    assert seen["head"][0] == "front"
    assert [len(page) for page in seen["pages"]] == [25, 25, 11]
    assert sorted(key for page in seen["pages"] for key in page) == ["front", *keys]
    assert len(set(seen["iterated"])) == 30
    assert (seen["deleted"], seen["left"]) == (2, 59)


def test_javascript_locks(javascript: dict[str, Any]) -> None:
    assert javascript["locks"] == {
        "locked": ["a", "b", "c"],
        "lockSecs": 60,
        "prolonged": True,
        "refused": {"status": 400, "type": "request-handled-or-locked"},
        "pending": ["d"],
        "union": 4,
        "others": ["c"],
        "unlocked": 2,
        "several": True,
    }


# The SDK


@pytest.fixture(scope="module")
def sdk(server: Server) -> dict[str, Any]:
    """What ``official/sdk_queue.py`` saw, by its access."""
    env = actor.environ(server.url, "secret")
    accesses = ("single", "shared")
    with ThreadPoolExecutor() as pool:
        seen = pool.map(lambda access: actor.run("sdk_queue.py", access, env=env), accesses)
    return dict(zip(accesses, seen, strict=True))


@needs_sdk
@pytest.mark.parametrize("access", ["single", "shared"])
def test_the_sdk_has_its_queue(sdk: dict[str, Any], access: str) -> None:
    seen = sdk[access]["everything"]
    complex_request = seen["complex"]
    assert seen["added"] == [False, True, request_id(complex_request["uniqueKey"])]
    assert seen["empty"] == [False, False]
    assert (
        complex_request.items()
        >= {
            "url": "https://example.com/complex",
            "method": "POST",
            "payload": '{"a": 1}',
            "headers": {"x-own": "value"},
            "userData": {"label": "DETAIL", "deep": {"list": [1, None]}},
        }.items()
    )
    assert seen["first again"] == ["https://example.com/complex"]
    expected = ["urgent", "long/" * 100, *(str(n) for n in range(30))]
    assert Counter(seen["urls"]) == Counter(f"https://example.com/{path}" for path in expected)
    assert seen["finished"] == [True, True]
    assert seen["handled"]
    assert seen["pending again"] == [False, "https://example.com/complex"]
    assert seen["counts"] == [33, 33, 0]


@needs_sdk
def test_the_sdk_has_its_order(sdk: dict[str, Any]) -> None:
    """In single access only: shared access works on up to 25 that it has locked before."""
    urls = sdk["single"]["everything"]["urls"]
    assert urls[0] == "https://example.com/urgent"
    assert urls[2:] == [f"https://example.com/{n}" for n in range(30)]


@needs_sdk
@pytest.mark.parametrize(("access", "writes"), [("single", 2), ("shared", 3)])
def test_the_sdk_pays_its_writes(sdk: dict[str, Any], access: str, writes: int) -> None:
    seen = sdk[access]["statistics"]
    assert Counter(seen["handled"]) == Counter(f"https://example.com/{n}" for n in range(10))
    assert seen["stats"]["writeCount"] == 10 * writes
    assert not seen["several"]


@needs_sdk
def test_a_crawl_by_the_sdk_itself(tmp_path: Path) -> None:
    """``apify.scrapy.ApifyScheduler`` in place of ours."""
    paths = [f"/{n}" for n in range(12)]
    pages = {"/": links(*paths), **{path: links(f"{path}/more", "/0") for path in paths}}
    spider = """
        class Spider(scrapy.Spider):
            name = "spider"
            start_urls = [SITE + "/"]

            def parse(self, response):
                yield from response.follow_all(css="a")
    """
    with Site(pages, default=links()) as site, serve(tmp_path / "project" / "storage") as server:
        project = Project(tmp_path / "project", spider, site=site.url, settings={"ADDONS": {}})
        env = actor.environ(server.url, "any", QUEUE)
        crawl = project.run(script=actor.source("scrapy_actor.py"), env=env)
        calls = server.calls
    assert crawl.returncode == 0, crawl.log
    assert sorted(site.paths) == sorted(["/", *paths, *(f"{path}/more" for path in paths)])
    assert crawl.stats["finish_reason"] == "finished"
    info = project.info()
    assert (info.total, info.handled, info.pending) == (25, 25, 0)
    assert calls.operations["PUT requests/{id}"] == 25
    assert all("scrapy_request" in entry.user_data for entry in project.entries())
