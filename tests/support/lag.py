"""The lag of the platform: its head, its filtered lists and its counters show writes late."""

from __future__ import annotations

import json
import sqlite3
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from aiohttp import web

from scrapy_apify_rq.entries.unique_keys import request_id
from tests.support.api_calls import Handler, body_of, data_of

_CHANGES = {
    "POST requests",
    "POST requests/batch",
    "DELETE requests/batch",
    "PUT requests/{id}",
    "DELETE requests/{id}",
}


class Lags(Protocol):
    head_lag: float
    counter_lag: float


class _Change(NamedTuple):
    when: float
    queue: int
    before: dict[str, sqlite3.Row | None]
    """The rows that it changed, as they were. None if there was none."""
    counts: tuple[int, int]


class Lag:
    """Shows the queues in the ``file`` as they were a while ago, as far as the platform does."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._changes: deque[_Change] = deque()

    async def answer(
        self, name: str, lags: Lags, request: web.Request, handler: Handler
    ) -> web.StreamResponse:
        with self._database() as db:
            queue = db.execute(
                "SELECT key, total, handled FROM queues WHERE id = :it OR name = substr(:it, 2)",
                {"it": request.match_info.get("queue")},
            ).fetchone()
        if queue is None:
            return await handler(request)
        since = time.monotonic() - lags.head_lag
        if name == "POST head/lock":
            return await self._lock(queue["key"], since, request, handler)
        if name in _CHANGES:
            await self._note(queue, lags, name, request)
            return await handler(request)
        answer = await handler(request)
        if answer.status == 200 and name == "GET queue":
            since = time.monotonic() - lags.counter_lag
            return self._with_old_counts(queue["key"], since, data_of(answer))
        is_list = name == "GET requests" and "filter" in request.query
        if answer.status == 200 and (is_list or name == "GET head"):
            return self._with_old_items(queue["key"], since, data_of(answer), is_list)
        return answer

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._file, isolation_level=None)) as db:
            db.row_factory = sqlite3.Row
            yield db

    async def _note(self, queue: sqlite3.Row, lags: Lags, name: str, request: web.Request) -> None:
        """Remember what this call is about to change."""
        if "{id}" in name:
            ids = [request.match_info["id"]]
        else:
            raw = json.loads(await body_of(request))
            ids = [
                entry.get("id") or request_id(entry["uniqueKey"])
                for entry in (raw if isinstance(raw, list) else [raw])
            ]
        oldest = time.monotonic() - max(lags.head_lag, lags.counter_lag)
        while self._changes and self._changes[0].when < oldest:
            self._changes.popleft()
        query = "SELECT * FROM requests WHERE queue = ? AND id = ?"
        with self._database() as db:
            before = {id: db.execute(query, (queue["key"], id)).fetchone() for id in ids}
        counts = queue["total"], queue["handled"]
        self._changes.append(_Change(time.monotonic(), queue["key"], before, counts))

    def _hidden(self, queue: int, since: float) -> dict[str, sqlite3.Row | None]:
        """The rows that changed since then, as they were before."""
        before: dict[str, sqlite3.Row | None] = {}
        for change in reversed(self._changes):
            if change.queue == queue and change.when > since:
                before |= change.before
        return before

    def _with_old_counts(self, queue: int, since: float, data: Any) -> web.Response:
        for change in self._changes:
            if change.queue == queue and change.when > since:
                total, handled = change.counts
                data["totalRequestCount"], data["handledRequestCount"] = total, handled
                data["pendingRequestCount"] = total - handled
                break
        return web.json_response({"data": data})

    def _with_old_items(self, queue: int, since: float, data: Any, is_list: bool) -> web.Response:
        """A list has only one page then."""
        with self._database() as db:
            rows = {
                row["id"]: row
                for row in db.execute("SELECT * FROM requests WHERE queue = ?", (queue,))
            }
        rows |= self._hidden(queue, since)
        pending = [row for row in rows.values() if row and row["position"] is not None]
        pending.sort(key=lambda row: row["position"])
        if is_list:
            free = [row for row in pending if (row["lock_expires_at"] or 0) <= time.time()]
            data["items"] = [json.loads(row["json"]) for row in free]
            data.pop("nextCursor", None)
        else:
            names = ("id", "uniqueKey", "url", "method", "retryCount")
            entries = [json.loads(row["json"]) for row in pending[: data["limit"]]]
            data["items"] = [{name: entry[name] for name in names} for entry in entries]
        return web.json_response({"data": data})

    async def _lock(
        self, queue: int, since: float, request: web.Request, handler: Handler
    ) -> web.StreamResponse:
        """Let the call lock what has not changed lately, by holding the rest meanwhile."""
        hidden = [(queue, id) for id in self._hidden(queue, since)]
        now = time.time()
        with self._database() as db:
            db.executemany(
                f"UPDATE requests SET lock_by = 'lag', lock_expires_at = {now + 60} WHERE queue = ?"
                f" AND id = ? AND position IS NOT NULL AND coalesce(lock_expires_at, 0) <= {now}",
                hidden,
            )
            answer = await handler(request)
            db.execute(
                "UPDATE requests SET lock_by = NULL, lock_expires_at = NULL WHERE lock_by = 'lag'"
            )
            (others,) = db.execute(
                "SELECT count(*) FROM requests WHERE queue = ? AND position IS NOT NULL"
                " AND lock_expires_at > ?",
                (queue, now),
            ).fetchone()
        if answer.status != 201:
            return answer
        data = {**data_of(answer), "queueHasLockedRequests": others > 0}
        return web.json_response({"data": data}, status=201)
