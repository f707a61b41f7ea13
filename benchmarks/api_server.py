"""The API server of the benchmarks: our own, slowed down and counted. See api.py for its calls."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from aiohttp import web

from scrapy_apify_rq.server.application import application
from tests.support.faults import Faults, Misbehaviour


def _controls(misbehaviour: Misbehaviour) -> Any:
    """Answer the calls of ``api.ApiServer`` that are not Apify's."""

    @web.middleware
    async def control(request: web.Request, handler: Any) -> web.StreamResponse:
        what = request.method, request.path
        if what == ("PUT", "/_faults"):
            misbehaviour.set(Faults(**await request.json()))
        elif what == ("DELETE", "/_calls"):
            misbehaviour.forget()
        elif what == ("GET", "/_calls"):
            calls = {"operations": misbehaviour.calls, "outcomes": misbehaviour.outcomes}
            return web.json_response(calls)
        else:
            return await handler(request)  # type: ignore[no-any-return]
        return web.Response(status=204)

    return control


async def _serve(folder: Path, token: str) -> None:
    misbehaviour = Misbehaviour(folder)
    middlewares = [_controls(misbehaviour), misbehaviour.middleware()]
    runner = web.AppRunner(
        application(folder, token=token, middlewares=middlewares), access_log=None
    )
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), sys.argv[2]))
