"""What the page at / asks the server, and who may ask it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scrapy.settings import Settings

import scrapy_apify_rq.server
from scrapy_apify_rq.backends.base import EntryItems
from scrapy_apify_rq.backends.sqlite.queue import SqliteBackend
from scrapy_apify_rq.backends.sqlite.survey import Survey
from scrapy_apify_rq.commands.served_project import ServedProject
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from scrapy_apify_rq.server import search
from scrapy_apify_rq.server.page import Page
from tests.support.queues import NAME, TOKEN, ServedQueue, serving
from tests.support.raw_calls import BEARER, Caller, called, one, request
from tests.support.waiting import run_async

STATIC = Path(scrapy_apify_rq.server.__file__).with_name("static")
PAGE_TOKEN = "madeAtThisStart"
BROWSER = {"Authorization": f"Bearer {PAGE_TOKEN}", "Sec-Fetch-Site": "same-origin"}


def new_page(token: str = PAGE_TOKEN) -> Page:
    return Page(token, ServedProject(Settings()))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServedQueue]:
    """A server without a token of its own."""
    with serving(tmp_path, None, new_page()) as served:
        yield served


@pytest.fixture
def page(server: ServedQueue) -> Iterator[Caller]:
    """Calls what the page calls, of a new queue."""
    with called(server, headers=BROWSER) as api:
        id = api("POST", name=NAME).data["id"]
        yield Caller(api.http, f"/page/queues/{id}")


def failed(key: str, message: str = "no", **fields: Any) -> dict[str, Any]:
    done = {"handledAt": "2026-01-02T03:04:05.678Z", "errorMessages": [message]}
    return request(key, **(done | fields))


def fill(page: Caller, *entries: dict[str, Any]) -> None:
    api = Caller(page.http, page.path.replace("/page/queues", "/v2/request-queues"))
    for entry in entries:
        assert api("PUT", one(entry["uniqueKey"]), entry).status == 200


def listed(page: Caller, **query: Any) -> list[str]:
    return [
        item["url"].rpartition("/")[2] for item in page("GET", "/entries", **query).data["items"]
    ]


def test_files_are_small_and_can_run_nothing_of_others(page: Caller) -> None:
    assert sum(file.stat().st_size for file in STATIC.iterdir()) < 41_000
    for path in ("/", "/page.css", "/page.js"):
        answer = page.http.get(path, headers={"Sec-Fetch-Site": "none"})
        assert answer.status_code == 200
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'self';")
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    script = (STATIC / "page.js").read_text().partition("Nothing here uses innerHTML.")[2]
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert way not in script, way


def test_without_a_token_only_our_own_page_may_call(server: ServedQueue, page: Caller) -> None:
    host = server.api.url.removeprefix("http://")
    api = Caller(page.http, "/v2/request-queues")
    for caller in (page, api):
        assert caller("GET", headers={"Origin": f"http://{host}"}).status == 200
        for wrong in (
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Origin": "https://example.com"},
            {"Origin": "null"},
            {"Host": "rebound.example.com"},
        ):
            assert caller("GET", headers=wrong).error == (403, "insufficient-permissions"), wrong
    # The token of an earlier start.
    assert page("GET", headers={"Authorization": "Bearer old"}).status == 401
    assert api("GET", headers={"Authorization": "Bearer old"}).status == 403
    # Programs of this machine need none, but for what only the page uses.
    with called(server, headers={}) as program:
        assert program("GET").status == 200
        assert Caller(program.http, page.path)("GET", token=PAGE_TOKEN).status == 401


def test_with_a_token_the_page_needs_it(tmp_path: Path) -> None:
    with serving(tmp_path, TOKEN, new_page(TOKEN)) as served, called(served) as api:
        path = f"/page/queues/{api('POST').data['id']}"
        page = Caller(api.http, path)
        assert page("GET", headers={"Host": "crawls.example.com"}).status == 200
        assert page("GET", headers={"Sec-Fetch-Site": "cross-site"}).status == 403
        assert page("GET", headers={"Authorization": "Bearer other"}).status == 401
        assert page.http.get("/", headers={"Authorization": ""}).status_code == 200
        assert BEARER["Authorization"] not in page.http.get("/").text


def test_numbers_and_workers(page: Caller) -> None:
    fill(page, failed("a"), request("b"), request("c"), request("d"))
    api = Caller(page.http, page.path.replace("/page/queues", "/v2/request-queues"))
    api.lock("one", limit=2)
    api.lock("two")
    data = page("GET").data
    assert [data[name] for name in ("total", "pending", "locked", "handled", "failed")] == [
        *(4, 3, 3, 1, 1)
    ]
    assert [(one["clientKey"], one["leases"]) for one in data["workers"]] == [
        ("one", 2),
        ("two", 1),
    ]
    held = page("GET", "/entries", state="locked").data["items"]
    assert sorted(item["lockByClient"] for item in held) == ["one", "one", "two"]


def test_history_ends_at_the_counts(page: Caller) -> None:
    for number in range(5):
        fill(page, failed(f"k{number}", handledAt=f"2026-01-02T03:04:0{number}Z"))
    data = page("GET", "/history").data
    assert [count for _, count in data["handled"]] == [1, 2, 3, 4, 5]
    assert data["failed"] == data["handled"]
    assert not data["isEstimate"]


def test_lists_by_state_and_search(page: Caller) -> None:
    done = {"handledAt": "2026-01-02T03:04:05Z", "userData": {"label": "Detail"}}
    fill(
        page, failed("f1"), failed("f2", "why"), request("h", **done), request("p1"), request("p2")
    )
    assert listed(page, state="pending") == ["p1", "p2"]
    assert listed(page, state="handled") == ["f1", "f2", "h"]
    assert listed(page, state="failed") == ["f2", "f1"]
    assert listed(page, url="/P") == ["p1", "p2"]
    assert listed(page, label="detail") == ["h"]
    assert listed(page, host="example.COM", url="2") == ["f2", "p2"]
    assert listed(page, host="other") == []
    assert listed(page, state="failed", message="why") == ["f2"]
    for state in ("all", "pending", "failed", "handled"):
        whole, parts, after = listed(page, state=state), [], {}
        while after is not None:
            part = page("GET", "/entries", state=state, limit=1, **after).data
            parts += [item["url"].rpartition("/")[2] for item in part["items"]]
            after = None if part["next"] is None else {"after": part["next"]}
        assert parts == whole


def test_a_search_is_cut_into_slices(page: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(page, *(request(f"k{number}") for number in range(5)))
    monkeypatch.setattr(search, "_SLICE", -1)
    part = page("GET", "/entries", url="k4", state="pending").data
    assert (part["items"], part["scanned"]) == ([], 1)
    assert page("GET", "/entries", url="k1", state="pending", after=part["next"]).data["items"]


def test_no_question_reads_the_whole_queue(page: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[str] = []
    rows = Survey._rows

    def explained(self: Survey, query: str, key: int, **values: Any) -> Any:
        plan = rows(self, f"EXPLAIN QUERY PLAN {query}", key, **values)
        plans.extend(step[3] for step in plan)
        return rows(self, query, key, **values)

    fill(page, failed("a"))
    monkeypatch.setattr(Survey, "_rows", explained)
    for path in ("", "/history", "/failures", "/entries/x"):
        page("GET", path)
    for state in ("all", "pending", "locked", "handled", "failed"):
        page("GET", "/entries", state=state)
    assert plans
    assert not [step for step in plans if step.startswith("SCAN")]


def test_failures_are_grouped_with_an_example(page: Caller) -> None:
    fill(page, failed("a"), failed("b"), failed("c", "other"))
    groups = page("GET", "/failures").data["groups"]
    assert [(one["message"], one["count"]) for one in groups] == [("other", 1), ("no", 2)]
    assert groups[1]["id"] == request_id("b")


def test_entry_shows_its_request_and_its_items(server: ServedQueue, page: Caller) -> None:
    entry = Entry(id=request_id("a"), unique_key="a", url="http://example.com/a", method="POST")

    async def crawl() -> None:
        backend = SqliteBackend(server.folder, name=NAME)
        await backend.open()
        await backend.add([entry], forefront=False)
        items = {entry.id: EntryItems(['{"n":1}', '{"n":2}'])}
        await backend.update([entry], forefront=False, items=items)
        await backend.close()

    run_async(crawl())
    data = page("GET", f"/entries/{entry.id}").data
    assert data["items"] == ['{"n":1}', '{"n":2}']
    assert (data["request"]["url"], data["request"]["method"]) == (entry.url, "POST")
    unknown = request("b", userData={"scrapy": {"v": 1, "callback": "parse_it"}})
    fill(page, unknown)
    undecodable = page("GET", f"/entries/{request_id('b')}").data["undecodable"]
    assert "run the command in the folder of its project" in undecodable
    assert page("GET", "/entries/none").status == 404
    lines = page.http.get(f"{page.path}/export").text.splitlines()
    assert [json.loads(line).get("uniqueKey") for line in lines] == ["a", "b", None, None]


def test_entry_of_a_project_that_cannot_be_loaded(tmp_path: Path) -> None:
    broken = ServedProject(Settings({"SPIDER_MODULES": ["no.such.module"]}))
    with (
        serving(tmp_path, None, Page(PAGE_TOKEN, broken)) as served,
        called(served, headers=BROWSER) as api,
    ):
        page = Caller(api.http, f"/page/queues/{api('POST', name=NAME).data['id']}")
        fill(page, request("a"))
        problem = "The project in this folder cannot be loaded, see scrapy list: ModuleNotFound"
        assert problem in page("GET", f"/entries/{request_id('a')}").data["undecodable"]
        (refused,) = page("POST", "/add", {"lines": ["https://example.com/"]}).data["refused"]
        assert problem in refused["reason"]


def test_who_leaves_an_export_is_no_bug(page: Caller, caplog: pytest.LogCaptureFixture) -> None:
    fill(page, *(request(key, userData={"text": "x" * 1_000_000}) for key in "abcdefghijkl"))
    with page.http.stream("GET", f"{page.path}/export"):
        pass
    assert page("GET").status == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_retry_of_ids_and_of_all_that_match(page: Caller) -> None:
    fill(page, failed("a"), failed("b"), failed("c", "other"), request("d"))
    ids = [request_id(key) for key in ("a", "d", "none")]
    assert page("POST", "/retry", {"ids": ids}).data["retried"] == 1
    assert page("POST", "/count", {"state": "failed"}).data["count"] == 2
    wanted = {"state": "failed", "message": "other", "url": "/C", "after": None}
    assert page("POST", "/count", wanted).data == {"count": 1, "scanned": 2, "next": None}
    assert page("POST", "/retry", wanted).data == {"retried": 1, "next": None}
    assert listed(page, state="pending") == ["c", "a", "d"]
    assert page("POST", "/retry", {"state": "pending"}).error == (400, "invalid-value")
    assert page("POST", "/retry", {"after": 2**63}).error == (400, "invalid-value")
    assert page("GET", "/failures", after=2**63).error == (400, "invalid-parameter")
    data = page("GET").data
    assert (data["failed"], data["handled"], data["pending"]) == (1, 1, 3)


def test_add_gives_the_keys_of_links(page: Caller) -> None:
    lines = ["https://example.com/1", '{"url":"https://example.com/2","method":"POST"}', "ftp//x"]
    data = page("POST", "/add", {"lines": lines}).data
    assert (data["added"], data["present"], [one["line"] for one in data["refused"]]) == (2, 0, [3])
    assert page("POST", "/add", {"lines": lines[:1]}).data["present"] == 1
    # A crawl over the API does not take the page for another client.
    api = Caller(page.http, page.path.replace("/page/queues", "/v2/request-queues"))
    assert api("GET").data["hadMultipleClients"] is False


def test_purge_is_refused_while_a_crawl_has_the_queue(server: ServedQueue, page: Caller) -> None:
    fill(page, request("a"))

    async def crawl() -> None:
        backend = SqliteBackend(server.folder, name=NAME)
        await backend.open()
        await backend.occupy(alone=True)
        refused = page("POST", "/purge", {})
        await backend.close()
        assert refused.error == (409, "queue-is-used")
        assert "Stop the crawl first" in refused.message

    run_async(crawl())
    assert page("GET").data["total"] == 1
    assert page("POST", "/purge", {}).status == 200
    assert page("GET").data["total"] == 0


def test_logic_of_the_page() -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not there")
    cases = {
        'readQuery("shoes  host:Shop.example label:item 9")': {
            "host": "Shop.example",
            "label": "item",
            "url": "shoes 9",
        },
        'tokenOf("#token=a-b_c")': "a-b_c",
        'tokenOf("#/id/all")': None,
        "[0, 59, 61, 3600, 90000].map(duration)": ["0 s", "59 s", "1 min", "1 h", "1 d 1 h"],
        "rateText(rateOf([[0, 10], [10, 30]]))": "2.0/s",
        "rateOf([[0, 10]])": None,
        "[false, true].map((steps) => valueAt([[0, 1], [10, 11]], 5, steps))": [6, 1],
        # Bars add up to what was done, with a level curve where nothing happened.
        "(() => { const c = [[0, 1], [10, 11]]; extend(c, 90, 12, 88); extend(c, 95, 12);"
        " const { list } = bars(c, [[5, 2]], 1000); "
        " return [c, list.reduce((n, { ok, bad }) => n + ok + bad, 0)]; })()": [
            [[0, 1], [10, 11], [88, 11], [90, 12]],
            12,
        ],
        'linkOf("https://example.com/")': "https://example.com/",
        'linkOf("javascript:alert(1)")': None,
        'linkOf("data:text/html,x")': None,
        """readItem('{"$saved":["shop:Item",[["a",1]]]}')""": {"a": 1},
        "readItem('x')": "x",
        '[...mergeGroups(new Map([["a", { count: 1 }]]), [{ message: "a", count: 2 }]).values()]': [
            {"count": 3}
        ],
    }
    names = (
        "readQuery,tokenOf,duration,rateText,rateOf,valueAt,extend,bars,linkOf,readItem,mergeGroups"
    )
    source = (STATIC / "page.js").read_text()
    shown = ",".join(cases)
    script = f"{source}\nvoid [{names}];\nconsole.log(JSON.stringify([{shown}]));"
    command = ["node", "--input-type=module"]
    done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for case, found, expected in zip(cases, json.loads(done.stdout), cases.values(), strict=True):
        assert found == expected, case
