"""Operations on Actor runs, and the one user: what a program asks that believes to be in a run.

Nothing here starts a program. A run begins when a call first names it, by any id with the form of a
storage's name, and gets new unnamed storages then, which its object lists: their ids are for the
variables ``ACTOR_DEFAULT_DATASET_ID`` and so on. Choice: it is RUNNING for ever, since nothing here
sees the end of the program.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web

from scrapy_apify_rq.backends.sqlite.runs import RunRecord, Runs
from scrapy_apify_rq.limits import is_name
from scrapy_apify_rq.server.answers import answer, date
from scrapy_apify_rq.server.bodies import read_json
from scrapy_apify_rq.server.errors import invalid, not_found
from scrapy_apify_rq.server.storage_parameters import USER_ID, USERNAME

_OPTIONS: Final = {"build": "latest", "timeoutSecs": 0, "memoryMbytes": 1024, "diskMbytes": 2048}


class RunCalls:
    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    async def get(self, request: web.Request) -> web.Response:
        return answer(_object(await self._run(request)))

    async def update(self, request: web.Request) -> web.Response:
        """Sets the status message. What else the platform lets one change has no use here."""
        run = await self._run(request)
        raw = await read_json(request, dict)
        message = raw.get("statusMessage", run.message)
        is_terminal = raw.get("isStatusMessageTerminal", bool(run.is_terminal))
        if not isinstance(message, str | None) or not isinstance(is_terminal, bool | None):
            raise invalid("statusMessage must be a text, and isStatusMessageTerminal a boolean")
        await self._runs.set_message(run.id, message, is_terminal=bool(is_terminal))
        return answer(_object(await self._run(request)))

    def leads(self, parameter: str, field: str) -> Callable[[web.Request], Awaitable[None]]:
        """Make what gives the path's ``parameter`` the id of a storage of the run, named by the
        ``field`` of its record.
        """

        async def lead(request: web.Request) -> None:
            request.match_info[parameter] = getattr(await self._run(request), field)

        return lead

    async def _run(self, request: web.Request) -> RunRecord:
        id = request.match_info["run"]
        if not is_name(id):
            raise not_found("Actor run")
        return await self._runs.get_or_create(id)


async def user(request: web.Request) -> web.Response:
    if request.match_info["user"] not in ("me", USER_ID, USERNAME):
        raise not_found("User")
    return answer({"id": USER_ID, "username": USERNAME, "profile": {}})


def _object(run: RunRecord) -> dict[str, Any]:
    data = {
        "id": run.id,
        "actId": "localActor",
        "buildId": "localBuild",
        "userId": USER_ID,
        "startedAt": date(run.started_at),
        "status": "RUNNING",
        "statusMessage": run.message,
        "isStatusMessageTerminal": bool(run.is_terminal),
        "meta": {"origin": "DEVELOPMENT"},
        "stats": {},
        "options": _OPTIONS,
        "defaultDatasetId": run.dataset,
        "defaultKeyValueStoreId": run.key_value_store,
        "defaultRequestQueueId": run.request_queue,
    }
    return {name: value for name, value in data.items() if value is not None}
