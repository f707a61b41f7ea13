"""The client of the API: what it sends, and what it makes of a server that misbehaves.

The server is our own, in the test's loop, so that a test can put its hand into each call. Crawls
over the API are in ``test_apify_crawls.py``.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial, wraps
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from scrapy_apify_rq.backends.apify import http, reader
from scrapy_apify_rq.backends.apify.parallel import run_ahead, run_all
from scrapy_apify_rq.backends.apify.queue import ApifyBackend
from scrapy_apify_rq.backends.base import Added, Claim, Updated
from scrapy_apify_rq.backends.sqlite.queue import SqliteBackend
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from scrapy_apify_rq.errors import BackendError
from tests.support.api_calls import Api, Call, error, serving

TOKEN = "apify_api_verySecretToken"
MIB = 1024 * 1024
PLENTY = 16 * MIB
HANDLED_AT = datetime(2026, 1, 2, tzinfo=UTC)


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        run(asyncio.wait_for(test(*args, **kwargs), 30))

    return run


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come at once; one test measures the real pauses."""
    monkeypatch.setattr(http, "_FIRST_BACKOFF", 0.005)


class Queue:
    """A server and the backends on its one queue, with their stats."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.stats: Counter[str] = Counter()

    @asynccontextmanager
    async def open(self, **options: Any) -> AsyncIterator[ApifyBackend]:
        options = {"name": "queue", "patience": 20.0, **options}
        backend = ApifyBackend(self.api.url, TOKEN, inc_stat=self._inc_stat, **options)
        try:
            await backend.open()
            yield backend
        finally:
            await backend.close()

    def _inc_stat(self, name: str) -> None:
        self.stats[name.removeprefix("apify_rq/api/")] += 1


@asynccontextmanager
async def queue(folder: Path) -> AsyncIterator[Queue]:
    async with serving(folder, TOKEN) as api:
        yield Queue(api)


@asynccontextmanager
async def stored(folder: Path) -> AsyncIterator[SqliteBackend]:
    """The server's own queue, which has no limits and no pace."""
    backend = SqliteBackend(folder, name="queue")
    try:
        await backend.open()
        yield backend
    finally:
        await backend.close()


def entry(key: str, **values: Any) -> Entry:
    values.setdefault("url", f"https://example.com/{key}")
    return Entry(id=request_id(key), unique_key=key, **values)


def numbered(count: int, first: int = 0, **values: Any) -> list[Entry]:
    return [entry(f"{number:05}", **values) for number in range(first, first + count)]


async def fill(backend: ApifyBackend, entries: Sequence[Entry]) -> None:
    for start in range(0, len(entries), 25):
        await backend.add(entries[start : start + 25], forefront=False)


async def claimed(
    backend: ApifyBackend, limit: int = 100, known: Sequence[Entry] = (), size: int = PLENTY
) -> list[Entry]:
    claim = await backend.claim(limit, [entry.id for entry in known], size)
    return [one.entry for one in claim.entries]


def keys(entries: Sequence[Entry]) -> list[str]:
    return [entry.unique_key for entry in entries]


def news(answers: Sequence[Added]) -> list[bool]:
    return [not (answer.was_already_present or answer.refused) for answer in answers]


def sent(call: Call) -> list[str]:
    return [item["uniqueKey"] for item in call.json]


def first(answers: int, give: Callable[[], Any], method: str, path: str) -> Callable[[Call], Any]:
    """Give this instead of the first answers of one operation."""
    left = [answers]

    def before(call: Call) -> Any:
        if not (call.is_(method, path) and left[0]):
            return None
        left[0] -= 1
        return give()

    return before


# Adding


@asynchronous
async def test_a_batch_has_9_mib_at_most_as_sent(tmp_path: Path) -> None:
    # In bytes, of which these texts have twice as many as characters.
    entries = numbered(4, payload="é" * (3 * MIB // 2))
    # Two that fill a batch to the last kilobytes.
    full = numbered(2, 4, payload="x" * (9 * MIB // 2 - 1000))
    async with queue(tmp_path) as q, q.open() as backend:
        assert all(news(await backend.add([*entries, *full], forefront=False)))
        batches = q.api.of("POST", "/requests/batch")
        assert [len(batch.json) for batch in batches] == [2, 2, 2]
        assert 9 * MIB - 4000 < max(len(batch.body) for batch in batches) <= 9 * MIB
        assert q.stats["retries"] == 0


@asynchronous
async def test_an_entry_too_large_is_refused_unsent(tmp_path: Path) -> None:
    huge = entry("huge", payload="é" * (9 * MIB // 2))
    async with queue(tmp_path) as q, q.open() as backend:
        answers = await backend.add([entry("a"), huge, entry("b")], forefront=False)
        assert news(answers) == [True, False, True]
        assert answers[1].id == huge.id
        assert "bytes are more than the API takes" in str(answers[1].refused)
        assert [sent(call) for call in q.api.of("POST", "/requests/batch")] == [["a", "b"]]


@asynchronous
async def test_an_entry_that_the_api_refuses_does_not_take_its_batch_down(tmp_path: Path) -> None:
    entries = numbered(25)
    entries[7].method = entries[20].method = "STRANGE"
    async with queue(tmp_path) as q, q.open() as backend:
        answers = await backend.add(entries, forefront=False)
        assert [n for n, new in enumerate(news(answers)) if not new] == [7, 20]
        assert "the API refuses it: 400 invalid-value" in str(answers[7].refused)
        good = [e for n, e in enumerate(entries) if n not in (7, 20)]
        async with q.open() as other:
            # At first only so many as are fetched at once.
            assert keys(await claimed(other)) == keys(good)[:16]
            assert keys(await claimed(other)) == keys(good)
        assert len(q.api.of("POST", "/requests/batch")) <= 19
        q.api.complaints.clear()  # of the strange methods


@asynchronous
async def test_413_finds_its_entry_too(tmp_path: Path) -> None:
    async with queue(tmp_path) as q, q.open() as backend:
        q.api.before = lambda call: error(413, "request-too-large") if b"big" in call.body else None
        answers = await backend.add([*numbered(3), entry("big"), entry("z")], forefront=False)
        assert news(answers) == [True, True, True, False, True]
        assert "413" in str(answers[3].refused)


@asynchronous
async def test_what_is_unprocessed_or_missing_is_sent_again(hurried: None, tmp_path: Path) -> None:
    entries = numbered(10)
    rounds = iter([{1, 4, 5}, {4}])

    def before(call: Call) -> Any:
        """Leave out the last entry of a batch, without storing it."""
        if call.is_("POST", "/requests/batch"):
            attempts.append(sent(call))
        return None

    def after(call: Call, data: Any) -> Any:
        if call.is_("POST", "/requests/batch"):
            missing = {f"{n:05}" for n in next(rounds, set())}
            # Accepted and stored, but missing from the answer, as the platform does now and then.
            items = data["processedRequests"]
            data["processedRequests"] = [i for i in items if i["uniqueKey"] not in missing]
        return data

    attempts: list[list[str]] = []
    async with queue(tmp_path) as q, q.open() as backend:
        q.api.before, q.api.after = before, after
        answers = await backend.add(entries, forefront=True)
        assert attempts == [keys(entries), ["00001", "00004", "00005"], ["00004"]]
        # They were there when sent again, but only since we had stored them.
        assert all(news(answers))
        assert [answer.id for answer in answers] == [e.id for e in entries]
        calls = q.api.of("POST", "/requests/batch")
        assert {call.query["forefront"] for call in calls} == {"true"}
        assert q.stats["unprocessed"] == 2


@asynchronous
async def test_a_key_is_not_twice_in_a_batch(tmp_path: Path) -> None:
    async with queue(tmp_path) as q, q.open() as backend:
        twice = [entry("a"), entry("b"), entry("a", url="https://example.com/second")]
        answers = await backend.add(twice, forefront=False)
        assert news(answers) == [True, True, False]
        assert [sent(call) for call in q.api.of("POST", "/requests/batch")] == [["a", "b"]]
        assert await backend.get(request_id("a")) == entry("a")


@asynchronous
async def test_what_is_never_processed_ends_our_patience(hurried: None, tmp_path: Path) -> None:
    def after(call: Call, data: Any) -> Any:
        return {"processedRequests": [], "unprocessedRequests": []} if call.body else data

    async with queue(tmp_path) as q, q.open(patience=0.3) as backend:
        q.api.after = after
        with pytest.raises(BackendError, match="APIFY_RQ_UNAVAILABLE_TIMEOUT") as caught:
            await backend.add(numbered(2), forefront=False)
        assert caught.value.reason == "apify_rq_unavailable"


# A lost answer


LOSSES: dict[str, Callable[[], Any]] = {
    "dropped": lambda: "drop",
    "failed": lambda: web.Response(status=500),
    "garbled": lambda: web.Response(text="<html>"),
}


@pytest.mark.parametrize("loss", LOSSES)
@asynchronous
async def test_what_a_lost_call_stored_is_new(hurried: None, tmp_path: Path, loss: str) -> None:
    """And what was there before, even as a very similar entry, is not."""
    lost: list[str] = []

    async with queue(tmp_path) as q, q.open() as other, q.open() as backend:
        there = [entry("there", user_data={"x": 1}), entry("done", handled_at=HANDLED_AT)]
        await other.add(there, forefront=False)

        def after(call: Call, data: Any) -> Any:
            if call.is_("POST", "/requests/batch") and not lost:
                lost.append(loss)
                return LOSSES[loss]()
            return data

        q.api.after = after
        answers = await backend.add(
            [entry("a"), entry("there", user_data={"x": 2}), entry("done"), entry("b")],
            forefront=False,
        )
        assert news(answers) == [True, False, False, True]
        assert [answer.was_already_handled for answer in answers] == [False, False, True, False]
        assert await backend.get(request_id("there")) == there[0]
        assert q.stats["retries"] == 1
        assert len(q.api.of("POST", "/requests/batch")) == 3
        # Only what may be ours is looked at.
        assert len([call for call in q.api.calls if call.path.startswith("/requests/")]) == 3 + 4


# Claiming


@asynchronous
async def test_long_keys_and_urls_survive_a_cycle(tmp_path: Path) -> None:
    long = entry("k" * 300, url="https://example.com/" + "u" * 3000)
    async with queue(tmp_path) as q:
        async with q.open() as backend:
            await backend.add([long], forefront=False)
        async with q.open() as backend:
            keys_on_head: list[str] = []

            def after(call: Call, data: Any) -> Any:
                if call.is_("GET", "/head"):
                    keys_on_head.extend(item["uniqueKey"] for item in data["items"])
                return data

            q.api.after = after
            assert await claimed(backend) == [long]
            assert [len(key) for key in keys_on_head] == [128]
            long.handled_at = HANDLED_AT
            await backend.update([long], forefront=False)
            assert await backend.get(long.id) == long
            assert (await backend.info()).pending == 0


@asynchronous
async def test_what_is_on_the_head_but_not_there_is_asked_for_again(tmp_path: Path) -> None:
    entries = numbered(3)
    async with queue(tmp_path) as q, q.open() as other, q.open() as backend:
        await other.add(entries, forefront=False)
        path = f"/requests/{entries[1].id}"
        q.api.before = first(1, lambda: error(404, "record-not-found"), "GET", path)
        claim = await backend.claim(10, (), PLENTY)
        assert [one.entry for one in claim.entries] == [entries[0], entries[2]]
        # So that a queue with nothing else is not taken for empty.
        assert claim.more
        claim = await backend.claim(10, (), PLENTY)
        assert [one.entry for one in claim.entries] == entries
        assert not claim.more


@asynchronous
async def test_an_entry_that_is_gone_does_not_keep_the_crawl_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ApifyBackend, "lag", 0.05)
    async with queue(tmp_path) as q, q.open() as other, q.open() as backend:
        await other.add(numbered(1), forefront=False)
        q.api.before = first(9, lambda: error(404), "GET", f"/requests/{numbered(1)[0].id}")
        assert (await backend.claim(10, (), PLENTY)).more
        await asyncio.sleep(0.1)
        assert await backend.claim(10, (), PLENTY) == Claim([], False)


@asynchronous
async def test_handled_entries_on_a_late_head_are_skipped(tmp_path: Path) -> None:
    entries = numbered(4)
    async with queue(tmp_path) as q, q.open() as other, q.open() as backend:
        await other.add(entries, forefront=False)
        heads: list[Any] = []

        def after(call: Call, data: Any) -> Any:
            if call.is_("GET", "/head"):
                heads.append(data["items"])
                data["items"] = heads[0]
            return data

        q.api.after = after
        assert await claimed(backend) == entries
        await other.update([entry("00000", handled_at=HANDLED_AT)], forefront=False)
        await backend.update([entry("00001", handled_at=HANDLED_AT)], forefront=False)
        q.api.calls.clear()
        assert await claimed(backend) == entries[2:]
        # What we have handled ourselves need not be fetched to know.
        assert f"/requests/{entries[1].id}" not in [call.path for call in q.api.calls]


@asynchronous
async def test_what_others_put_back_is_claimed_though_we_acked_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ApifyBackend, "consistency_delay", 1.0)
    async with queue(tmp_path) as q, q.open() as ours, q.open() as tool:
        await fill(ours, numbered(3))
        entries = await claimed(ours)
        for one in entries:
            one.handled_at = datetime.now(UTC)
        await ours.update(entries, forefront=False)
        entries[1].handled_at = None
        await tool.update([entries[1]], forefront=True)
        # While there is other work, it is most probably a late head that shows it.
        assert await claimed(ours, known=entries[:1]) == []
        # Before the crawl would end, it is worth a look.
        assert await claimed(ours) == [entries[1]]
        assert len(q.api.of("GET", f"/requests/{entries[1].id}")) == 1


@asynchronous
async def test_our_own_entries_need_no_call(tmp_path: Path) -> None:
    async with queue(tmp_path) as q, q.open() as backend:
        entries = numbered(100)
        await fill(backend, entries)
        entries[5].retry_count = 1
        await backend.update([entries[5]], forefront=True)
        q.api.calls.clear()
        order = [entries[5], *entries[:5], *entries[6:]]
        assert await claimed(backend, 200) == order
        assert [call.path for call in q.api.calls] == ["/head"]


@asynchronous
async def test_a_backlog_that_fits_is_listed(tmp_path: Path) -> None:
    async with queue(tmp_path) as q:
        async with q.open() as other:
            await fill(other, numbered(200))
        async with q.open() as backend:
            q.api.calls.clear()
            seen = await claimed(backend, 150)
            # The first pages do not wait for the list.
            assert Counter(call.path[:10] for call in q.api.calls) == {"/head": 1, "/requests/": 16}
            assert seen == numbered(16)
            q.api.calls.clear()
            seen += await claimed(backend, 134, known=seen)
            seen += await claimed(backend, 100, known=seen)
            assert seen == numbered(200)
            assert [call.path for call in q.api.calls] == ["/head", "/requests", "/head"]
            assert q.api.calls[1].query["filter"] == "pending"


@asynchronous
async def test_a_backlog_that_does_not_fit_is_fetched_in_order(tmp_path: Path) -> None:
    def after(call: Call, data: Any) -> Any:
        return {**data, "pendingRequestCount": 10_001} if call.method == "POST" else data

    async with queue(tmp_path) as q:
        async with q.open() as other:
            await fill(other, numbered(100))
        q.api.after = after
        async with q.open() as backend:
            seen = await claimed(backend)
            q.api.calls.clear()
            seen += await claimed(backend, known=seen)
            assert seen == numbered(100)
            assert Counter(c.path[:10] for c in q.api.calls) == {"/head": 1, "/requests/": 84}


@asynchronous
async def test_a_late_list_does_not_undo_what_we_have_put(tmp_path: Path) -> None:
    entries = numbered(100)
    async with queue(tmp_path) as q:
        async with q.open() as other:
            await fill(other, entries)
        async with q.open() as backend:
            retried = entry("00099", retry_count=1)
            done = entry("00098", handled_at=HANDLED_AT)
            await backend.update([retried], forefront=False)
            await backend.update([done], forefront=False)

            def after(call: Call, data: Any) -> Any:
                if call.is_("GET", "/requests"):
                    data["items"] = [
                        {"id": e.id, "uniqueKey": e.unique_key, "url": e.url} for e in entries
                    ]
                return data

            q.api.after = after
            seen = await claimed(backend)
            seen += await claimed(backend, known=seen)
            assert seen == [*entries[:98], retried]
            assert len(q.api.of("GET", "/requests")) == 1


@asynchronous
async def test_a_list_is_read_until_there_is_no_more_room(tmp_path: Path) -> None:
    """Small entries promise that all fit, and then come large ones."""
    entries = [*numbered(20), *numbered(1580, 20, user_data={"text": "x" * 900})]
    async with queue(tmp_path) as q, q.open(memory=300_000) as backend:
        async with stored(tmp_path) as embedded:
            await embedded.add(entries, forefront=False)
        seen = await claimed(backend)
        assert not q.api.of("GET", "/requests")
        seen += await claimed(backend, 300, known=seen)
        assert seen == entries[:316]
        assert len(q.api.of("GET", "/requests")) == 1
        q.api.calls.clear()
        seen += await claimed(backend, known=seen)
        assert seen == entries[:416]
        assert not q.api.of("GET", "/requests")
        assert len([e async for e in backend.list("pending")]) == 1600


@asynchronous
async def test_a_backlog_of_large_entries_is_not_listed(tmp_path: Path) -> None:
    """Only as many are fetched as fit into the claim, once their size is known."""
    entries = numbered(80, payload="x" * 100_000)
    async with stored(tmp_path) as embedded:
        await embedded.add(entries, forefront=False)
    async with queue(tmp_path) as q, q.open(memory=1_000_000) as backend:
        seen: list[Entry] = []
        fetched: list[int] = []
        for _ in range(4):
            q.api.calls.clear()
            found = await claimed(backend, known=seen, size=550_000)
            assert len(found) == 5
            seen += found
            assert not q.api.of("GET", "/requests")
            fetched.append(len([call for call in q.api.calls if call.path != "/head"]))
        assert seen == entries[:20]
        # At first the size is unknown, so calls are made that are then of no use.
        assert fetched[0] <= 16 + 5
        assert fetched[1:] == [5, 5, 5]


@asynchronous
async def test_few_large_entries_are_fetched_at_a_time(tmp_path: Path) -> None:
    entries = numbered(30, payload="x" * 100_000)
    async with queue(tmp_path) as q, q.open(lock_secs=60) as backend:
        async with stored(tmp_path) as embedded:
            await embedded.add(entries, forefront=False)
        seen = await claimed(backend, 30, size=350_000)
        assert seen == entries[:3]
        # The sizes were unknown: what did not fit is given back.
        assert len([call for call in q.api.calls if call.method == "DELETE"]) == 27
        assert len([call for call in q.api.calls if call.method == "GET"]) <= 16 + 3
        q.api.calls.clear()
        assert await claimed(backend, 30, size=350_000) == entries[3:6]
        (call,) = q.api.of("POST", "/head/lock")
        assert call.query["limit"] == "3"
        assert len(q.api.calls) == 4


@asynchronous
async def test_the_pages_of_a_list_have_few_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_PAGE_BYTES", 200_000)
    pages: list[int] = []

    def after(call: Call, data: Any) -> Any:
        if call.is_("GET", "/requests"):
            pages.append(len(data["items"]))
        return data

    entries = numbered(400, user_data={"text": "x" * 1900})
    async with queue(tmp_path) as q, q.open() as backend:
        async with stored(tmp_path) as embedded:
            await embedded.add(entries, forefront=False)
        q.api.after = after
        assert sorted(keys([e async for e in backend.list()])) == keys(entries)
        assert pages[0] == 10
        assert all(90 < size <= 100 for size in pages[1:-1])


@asynchronous
async def test_a_page_that_is_too_long_is_asked_for_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_LONGEST_ANSWER", 150_000)
    entries = [*numbered(10), *numbered(10, 10, payload="x" * 100_000)]
    entries.sort(key=lambda entry: entry.id)
    async with queue(tmp_path) as q, q.open() as backend:
        async with stored(tmp_path) as embedded:
            await embedded.add(entries, forefront=False)
        assert [e async for e in backend.list()] == entries
        monkeypatch.setattr(http, "_LONGEST_ANSWER", 90_000)
        with pytest.raises(BackendError, match="the answer is longer than 90,000 bytes"):
            assert [e async for e in backend.list()]


# What is kept


def ids_kept(backend: ApifyBackend) -> set[str]:
    """All ids of entries that the backend holds in memory."""
    ids: set[str] = set()
    seen: set[int] = set()
    todo: list[Any] = [backend]
    while todo:
        one = todo.pop()
        ours = type(one).__module__.startswith("scrapy_apify_rq.backends")
        if isinstance(one, str) and len(one) == 15:
            ids.add(one)
        elif (ours or isinstance(one, (dict, set, list, tuple))) and id(one) not in seen:
            seen.add(id(one))
            todo += [*one, *(one.values() if isinstance(one, dict) else ())] if not ours else []
            todo += vars(one).values() if ours and hasattr(one, "__dict__") else []
    return ids


@asynchronous
async def test_what_was_acked_is_not_kept_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ApifyBackend, "lag", 0.05)
    async with queue(tmp_path) as q, q.open() as backend:
        for first in (0, 25):
            entries = numbered(25, first, handled_at=HANDLED_AT)
            await backend.update(entries, forefront=False)
            await asyncio.sleep(0.1)
        last = entry("last", handled_at=HANDLED_AT)
        await backend.update([last], forefront=False)
        assert ids_kept(backend) == {last.id}


@asynchronous
async def test_shared_access_keeps_nothing_of_entries(tmp_path: Path) -> None:
    async with queue(tmp_path) as q, q.open(lock_secs=60) as backend:
        entries = numbered(25)
        await backend.add(entries, forefront=False)
        await backend.claim(10, (), PLENTY)
        entries[0].retry_count = 1
        entries[1].handled_at = HANDLED_AT
        await backend.update(entries[:2], forefront=False)
        assert ids_kept(backend) == set()


# Updating


@asynchronous
async def test_put_carries_the_whole_entry(tmp_path: Path) -> None:
    whole = entry(
        "a",
        method="POST",
        payload="text",
        headers={"A": "1"},
        user_data={"label": "x"},
        retry_count=2,
        no_retry=False,
        error_messages=["why"],
        loaded_url="https://example.com/b",
    )
    async with queue(tmp_path) as q, q.open() as backend:
        await backend.add([whole], forefront=False)
        await backend.update([whole], forefront=True)
        assert await backend.get(whole.id) == whole
        whole.handled_at = HANDLED_AT
        await backend.update([whole], forefront=False)
        assert await backend.get(whole.id) == whole
        requeue, ack = q.api.of("PUT", f"/requests/{whole.id}")
        assert requeue.query["forefront"] == "true"
        assert ack.json["handledAt"] == "2026-01-02T00:00:00.000Z"
        assert ack.json.keys() - requeue.json.keys() == {"handledAt"}


@asynchronous
async def test_a_refused_update_is_reported_and_not_claimed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = numbered(3)
    async with queue(tmp_path) as q, q.open() as backend:
        await backend.add(entries, forefront=False)
        q.api.before = lambda call: (
            error(400, "invalid-value", "no good") if call.path.endswith(entries[0].id) else None
        )
        handled = [entry(e.unique_key, handled_at=HANDLED_AT) for e in entries]
        handled[1].payload = "x" * 9 * MIB
        updated = await backend.update(handled, forefront=False)
        assert updated == [Updated(False, True), Updated(False, True), Updated(False)]
        assert q.stats["refused"] == 2
        assert not q.api.of("PUT", f"/requests/{entries[1].id}")
        messages = [r.message for r in caplog.records if r.levelno == logging.ERROR]
        assert len(messages) == 2
        assert entries[0].id in "".join(messages)
        assert "no good" in "".join(messages)
        assert await backend.claim(10, (), PLENTY) == Claim([], False, alone=True)
        assert (await backend.info()).pending == 2


def is_of_the_backend(work: Any) -> bool:
    """Whether this coroutine is the backend's. The server has some in this loop, too."""
    return Path(work.cr_code.co_filename).parent == Path(http.__file__).parent


def tasks_of_the_backend() -> list[Any]:
    return [work for task in asyncio.all_tasks() if is_of_the_backend(work := task.get_coro())]


def page(status: int) -> web.Response:
    """As a proxy answers."""
    return web.Response(status=status, text="<html>No</html>", content_type="text/html")


@pytest.mark.parametrize("answer", [error, page])
@pytest.mark.parametrize("status", [400, 403, 404, 409, 413])
@asynchronous
async def test_one_refused_update_of_many_leaves_nothing_waiting(
    tmp_path: Path, status: int, answer: Callable[[int], Any]
) -> None:
    done = [entry(e.unique_key, handled_at=HANDLED_AT) for e in numbered(50)]
    async with queue(tmp_path) as q, q.open() as backend:
        await fill(backend, numbered(50))
        q.api.before = lambda call: answer(status) if call.path.endswith(done[7].id) else None
        async with asyncio.timeout(5):
            if status in (400, 413):
                updated = await backend.update(done, forefront=False)
                assert [n for n, one in enumerate(updated) if one.refused] == [7]
                assert (await backend.info()).handled == 49
            else:
                with pytest.raises(BackendError, match=str(status)):
                    await backend.update(done, forefront=False)
            assert tasks_of_the_backend() == []
            await backend.close()


@asynchronous
async def test_an_update_of_one_entry_makes_no_task(tmp_path: Path) -> None:
    async with queue(tmp_path) as q, q.open() as backend:
        made: list[Any] = []

        def make(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
            made.append(work)
            return asyncio.Task(work, loop=loop, **options)

        asyncio.get_running_loop().set_task_factory(make)
        await backend.update([entry("a", handled_at=HANDLED_AT)], forefront=False)
        assert not list(filter(is_of_the_backend, made))
        await backend.update(numbered(2), forefront=False)
        assert len(list(filter(is_of_the_backend, made))) == 2


@asynchronous
async def test_refused_updates_without_end_are_a_failure(tmp_path: Path) -> None:
    async with queue(tmp_path) as q, q.open() as backend:
        q.api.before = lambda call: error(400) if call.method == "PUT" else None
        with pytest.raises(BackendError, match="refused 501 updates"):
            await backend.update(numbered(600), forefront=False)


# Pace and patience


@asynchronous
async def test_calls_are_paced_by_their_class(tmp_path: Path) -> None:
    async with queue(tmp_path) as q, q.open() as backend:
        begun = time.monotonic()
        await asyncio.gather(
            backend.update(numbered(600), forefront=False),
            *(backend.add([entry(f"new{n}")], forefront=False) for n in range(60)),
            *(backend.info() for n in range(80)),
        )
        took = time.monotonic() - begun
        classes = {
            400: [call.at for call in q.api.calls if call.method == "PUT"],
            40: [call.at for call in q.api.calls if call.path == "/requests/batch"],
            60: [call.at for call in q.api.calls if call.is_("GET", "")],
        }
        assert [len(times) for times in classes.values()] == [600, 60, 80]
        for rate, times in classes.items():
            most = max(sum(at <= t < at + 1 for t in times) for at in times)
            # On their way calls may close up.
            assert most <= rate * 1.2, rate
        # And not much slower than they may.
        assert took < 5


@asynchronous
async def test_retries_wait_longer_each_time_or_as_told(tmp_path: Path) -> None:
    """All at once, since waiting is what takes the time."""
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
    kinds: dict[str, list[Any]] = {
        # Without a lost connection: aiohttp itself repeats such a PUT once, at once.
        "backoff": [lambda: error(500), lambda: error(502), lambda: error(429)],
        "seconds": [lambda: error(429, **{"Retry-After": "2"})],
        "date": [lambda: error(503, **{"Retry-After": date})],
        "nonsense": [lambda: error(503, **{"Retry-After": "inf"})],
        "aborted": [lambda: error(400, "request-aborted-prematurely")],
        "timed-out": [lambda: error(408, "operation-timed-out")],
    }
    times: dict[str, list[float]] = {kind: [] for kind in kinds}

    def before(call: Call) -> Any:
        if call.method != "PUT":
            return None
        kind = call.json["uniqueKey"]
        times[kind].append(call.at)
        return kinds[kind].pop(0)() if kinds[kind] else None

    async with queue(tmp_path) as q, q.open() as backend:
        q.api.before = before
        await backend.update([entry(kind) for kind in kinds], forefront=False)
        assert q.stats["rate_limited"] == 2
        assert q.stats["retries"] == 8
    pauses = {kind: [b - a for a, b in pairwise(t)] for kind, t in times.items()}
    for pause, least in zip(pauses["backoff"], (0.5, 1, 2), strict=True):
        assert least <= pause < 2 * least + 0.5
    assert 2 <= pauses["seconds"][0] < 2.6
    assert 1.9 <= pauses["date"][0] < 3.6  # the date has whole seconds
    for kind in ("nonsense", "aborted", "timed-out"):
        assert 0.5 <= pauses[kind][0] < 1.5
    assert len({round(pauses[kind][0], 3) for kind in pauses}) > 3  # jitter


@asynchronous
async def test_a_long_retry_after_does_not_outlast_our_patience(tmp_path: Path) -> None:
    async with queue(tmp_path) as q, q.open(patience=0.5) as backend:
        q.api.before = lambda call: error(429, **{"Retry-After": "3600"})
        begun = time.monotonic()
        with pytest.raises(BackendError, match="429"):
            await backend.claim(1, (), PLENTY)
        assert 0.5 <= time.monotonic() - begun < 3
        assert q.stats["calls/head_get"] == 2


@asynchronous
async def test_one_failing_operation_ends_our_patience_while_others_work(
    hurried: None, tmp_path: Path
) -> None:
    async with queue(tmp_path) as q, q.open(patience=0.4) as backend:
        q.api.before = lambda call: error(500) if call.method == "PUT" else None

        async def others() -> None:
            while True:
                await backend.claim(1, (), PLENTY)
                await asyncio.sleep(0.02)

        working = asyncio.create_task(others())
        with pytest.raises(BackendError, match="request_put: 500 some-type: why") as caught:
            await backend.update(numbered(3), forefront=False)
        assert caught.value.reason == "apify_rq_unavailable"
        working.cancel()


@asynchronous
async def test_an_outage_is_reported_once(
    hurried: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with queue(tmp_path) as q, q.open() as backend:
        calls = count()
        q.api.before = lambda call: "drop" if next(calls) < 10 * 50 else None
        await backend.update(numbered(50), forefront=False)
    messages = [record.message for record in caplog.records]
    assert len([m for m in messages if "APIFY_RQ_UNAVAILABLE_TIMEOUT" in m]) <= 2
    assert "The Apify API works again (request_put)" in messages[-1]


# Answers that are none


async def _cut_mid_body(writer: asyncio.StreamWriter) -> None:
    writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"data":')
    await writer.drain()


async def _cut_chunk(writer: asyncio.StreamWriter) -> None:
    writer.write(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n50\r\n{"data":')
    await writer.drain()


def _raw(text: bytes) -> Callable[[asyncio.StreamWriter], Awaitable[None]]:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(text)
        await writer.drain()

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        _cut_mid_body,
        _cut_chunk,
        _raw(b""),
        _raw(b"nonsense\r\n\r\n"),
        _raw(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"),
        _raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"),
        _raw(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nwrong"),
        _raw(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>"),
    ],
)
@asynchronous
async def test_an_answer_that_is_none_is_asked_for_again(
    hurried: None, answer: Callable[[asyncio.StreamWriter], Awaitable[None]]
) -> None:
    served = 0
    data = b'{"data":{"id":"q","name":null,"totalRequestCount":0}}'

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        served += 1
        await reader.readuntil(b"\r\n\r\n")
        good = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data)
        await (answer if served < 3 else _raw(good))(writer)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1")
    async with server:
        api = Api()
        api.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with Queue(api).open(id="q"):
            assert served == 3


# What ends a crawl


@pytest.mark.parametrize(
    ("status", "reason", "cure"),
    [
        (401, "apify_rq_unauthorized", "Set APIFY_TOKEN"),
        (403, "apify_rq_unauthorized", "APIFY_TOKEN may not use this queue"),
        (404, "apify_rq_gone", "APIFY_RQ_ID"),
        (405, "apify_rq_unavailable", "APIFY_API_BASE_URL"),
    ],
)
@asynchronous
async def test_what_concerns_the_queue_is_final(
    tmp_path: Path, status: int, reason: str, cure: str
) -> None:
    async with queue(tmp_path) as q, q.open() as backend:
        await backend.add(numbered(2), forefront=False)
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: backend.add([entry("a")], forefront=False),
            lambda: backend.claim(10, (), PLENTY),
            lambda: backend.update([entry("a")], forefront=False),
            lambda: backend.delete([request_id("a")]),
            backend.open,
        ]
        q.api.before = lambda call: error(status, "a-type", "the message")
        for call in calls:
            with pytest.raises(BackendError, match=f"{status} a-type: the message") as caught:
                await call()
            assert caught.value.reason == reason
            assert cure in str(caught.value)
        assert q.stats["retries"] == 0


@asynchronous
async def test_nobody_there_is_an_outage(hurried: None, tmp_path: Path) -> None:
    async with queue(tmp_path) as q:
        pass
    with pytest.raises(BackendError, match="Cannot connect to host") as caught:
        async with q.open(patience=0.2):
            pass
    assert caught.value.reason == "apify_rq_unavailable"


@asynchronous
async def test_when_one_fails_no_other_goes_on(tmp_path: Path) -> None:
    async with queue(tmp_path) as q, q.open() as backend:
        await backend.info()
        bad = request_id("00000")
        q.api.before = lambda call: error(403) if call.path.endswith(bad) else error(503)
        with pytest.raises(BackendError):
            await backend.update(numbered(100), forefront=False)
        await asyncio.sleep(0.05)
        q.api.calls.clear()
        await asyncio.sleep(1.1)  # the first pause of those that wait is over
        assert not q.api.calls


@asynchronous
async def test_no_call_outlives_those_that_were_cancelled_twice() -> None:
    ended: list[int] = []

    async def call(number: int) -> int:
        try:
            await asyncio.sleep(60)
        finally:
            for _ in range(5):
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.02)
            ended.append(number)
        return number

    async def read_ahead() -> None:
        async with aclosing(run_ahead((partial(call, n) for n in range(9)), lambda: 3)) as results:
            async for _ in results:
                raise AssertionError

    for calls in (run_all(map(call, range(3))), read_ahead()):
        ended.clear()
        running = asyncio.create_task(calls)
        for _ in range(2):
            await asyncio.sleep(0.01)
            running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert ended == [0, 1, 2]


@asynchronous
async def test_calls_ahead_come_in_order_and_are_never_more_than_may_be() -> None:
    running = 0
    most = 0

    async def call(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01 * (3 - number % 3))
        running -= 1
        return number

    results = run_ahead((partial(call, n) for n in range(10)), lambda: 3)
    assert [number async for number in results] == list(range(10))
    assert most == 3


# Purging and deleting


@asynchronous
async def test_purge_survives_a_lost_answer(hurried: None, tmp_path: Path) -> None:
    async with queue(tmp_path) as q, q.open() as backend:
        await backend.add(numbered(3), forefront=False)
        deleted: list[int] = []

        def before(call: Call) -> Any:
            if call.is_("DELETE", ""):
                deleted.append(1)
                return error(404, "record-not-found") if len(deleted) > 1 else "drop"
            return None

        q.api.before = before
        await backend.purge()
        assert len(deleted) == 2


@asynchronous
async def test_a_queue_named_by_its_id_keeps_it(tmp_path: Path) -> None:
    async with queue(tmp_path) as q, q.open() as backend:
        await fill(backend, numbered(30))
        id = (await backend.info()).id
        async with q.open(id=id, name=None) as same:
            await same.purge()
            assert (await same.info())[:5] == (id, "queue", 0, 0, 0)
            assert all(news(await same.add(numbered(25), forefront=False)))


@asynchronous
async def test_what_is_not_deleted_is_sent_again(hurried: None, tmp_path: Path) -> None:
    asked: list[int] = []

    def after(call: Call, data: Any) -> Any:
        if call.is_("DELETE", "/requests/batch"):
            asked.append(len(call.json))
            left = data["processedRequests"][:10] if len(asked) == 1 else []
            data["unprocessedRequests"] = left
        return data

    async with queue(tmp_path) as q, q.open() as backend:
        await fill(backend, numbered(40))
        q.api.after = after
        await backend.delete([e.id for e in numbered(40)])
        assert asked == [25, 10, 15]
        assert (await backend.info()).total == 0


# Who we are


@asynchronous
async def test_every_call_says_who_we_are_and_never_the_token(
    hurried: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("aiohttp", "aiohttp.client", "asyncio"):
        caplog.set_level(logging.DEBUG, logger=name)
    problems = iter(["drop", error(500, message=f"Bearer {TOKEN}"), error(429)])
    async with queue(tmp_path) as q, q.open(client_key="our-key") as backend:
        q.api.before = lambda call: next(problems, None) if call.method == "PUT" else None
        await fill(backend, numbered(60))
        async with q.open(client_key="our-key") as same:
            await claimed(same)
            await claimed(same)
        await backend.update([entry("00000", handled_at=HANDLED_AT)], forefront=True)
        assert len([e async for e in backend.list("pending")]) == 59
        await backend.delete([request_id("00001")])
        assert await backend.info()
        assert backend._api.queue["hadMultipleClients"] is False
        texts = [repr(backend), repr(vars(backend)), backend.location]
        q.api.before = lambda call: error(401, message=f"bad token {TOKEN}")
        with pytest.raises(BackendError) as caught:
            await backend.info()
        texts += [str(caught.value), repr(caught.value)]
        texts += [call.url for call in q.api.calls]
        texts += [*q.stats, caplog.text]
    assert not [text for text in texts if TOKEN in text]
    for call in q.api.calls:
        assert call.headers["User-Agent"].startswith("scrapy-apify-rq/")
        assert call.headers["Authorization"] == f"Bearer {TOKEN}"
        takes_no_key = call.path in ("", "/v2/request-queues") or (
            call.method == "GET" and call.path.startswith("/requests/")
        )
        assert call.query.get("clientKey") == (None if takes_no_key else "our-key")


@asynchronous
async def test_another_client_is_noted_when_it_comes(tmp_path: Path) -> None:
    async with queue(tmp_path) as q, q.open() as backend:
        for _ in range(2):
            assert not (await backend.claim(1, (), PLENTY)).others
        async with q.open() as other:
            assert not (await other.claim(1, (), PLENTY)).others  # who was there before may be gone
        assert [(await backend.claim(1, (), PLENTY)).others for _ in range(2)] == [True, False]


@asynchronous
async def test_large_bodies_are_compressed(tmp_path: Path) -> None:
    async with queue(tmp_path) as q, q.open() as backend:
        await backend.add(numbered(25), forefront=False)
        await backend.add(numbered(1, 25), forefront=False)
        many, one = q.api.of("POST", "/requests/batch")
        assert many.headers["Content-Encoding"] == "gzip"
        assert int(many.headers["Content-Length"]) < len(many.body) / 2
        assert "Content-Encoding" not in one.headers


# The end


@asynchronous
async def test_close_in_the_middle_of_calls(tmp_path: Path) -> None:
    async with queue(tmp_path) as q, q.open() as backend:
        arrived = asyncio.Event()

        def before(call: Call) -> Any:
            if call.method == "PUT":
                arrived.set()
                return error(503)
            return None

        q.api.before = before
        calls = asyncio.create_task(backend.update(numbered(50), forefront=False))
        await arrived.wait()
        await backend.close()
        with pytest.raises(BackendError, match="closed"):
            await calls
        with pytest.raises(BackendError, match="closed"):
            await backend.claim(1, (), PLENTY)
        await backend.close()
    gc.collect()  # what was left open would warn now, and warnings are errors


@asynchronous
async def test_a_cancelled_call_leaves_nothing_behind(tmp_path: Path) -> None:
    async with queue(tmp_path) as q, q.open() as backend:
        arrived = asyncio.Event()

        def before(call: Call) -> Any:
            arrived.set()
            return error(503) if call.method == "PUT" else None

        q.api.before = before
        calls = asyncio.create_task(backend.update(numbered(50), forefront=False))
        await arrived.wait()
        calls.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calls
        await asyncio.sleep(0.1)  # the server still gets calls that were sent before
        q.api.before = lambda call: None
        await backend.update([entry("00000", handled_at=HANDLED_AT)], forefront=False)
        assert [e async for e in backend.list()] == [entry("00000", handled_at=HANDLED_AT)]
    gc.collect()
