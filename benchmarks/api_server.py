"""The API server of the benchmarks: our own, slowed down and counted, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web

from scrapy_apify_rq.server.application import application
from tests.support.faults import Faults, Misbehaviour

_ROOT = Path(__file__).parents[1]


class Calls(NamedTuple):
    operations: dict[str, int]
    """Calls by operation: "POST requests/batch", "GET head", "PUT requests/{id}", ..."""
    outcomes: dict[str, int]
    """Calls by status."""


class ApiServer:
    """A running server at ``url``, which counts its calls."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self._token = token

    def behave(self, *, latency: float = 0, rates: bool = False) -> None:
        """Delay each answer by so many seconds, and refuse calls beyond the platform's rates."""
        self._call("PUT", "/_faults", json.dumps({"latency": latency, "rates": rates}).encode())

    @property
    def calls(self) -> Calls:
        return Calls(**json.loads(self._call("GET", "/_calls")))

    def forget_calls(self) -> None:
        self._call("DELETE", "/_calls")

    def queue_id(self, name: str) -> str:
        """The id of the queue of this name, which is made if it is not there."""
        answer = json.loads(self._call("POST", f"/v2/request-queues?name={name}"))
        return str(answer["data"]["id"])

    def _call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        headers = {"Authorization": f"Bearer {self._token}"}
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            content: bytes = answer.read()
        return content


@contextmanager
def api_server(folder: Path, token: str) -> Iterator[ApiServer]:
    """Serve the queues in ``folder`` until the block ends."""
    command = [sys.executable, "-m", "benchmarks.api_server", str(folder), token]
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            if not (line := process.stdout.readline()):
                raise RuntimeError("the API server did not start")
            yield ApiServer(line.strip(), token)
        finally:
            process.terminate()


def _controls(misbehaviour: Misbehaviour) -> Any:
    """The calls of an ``ApiServer`` that are not Apify's."""

    @web.middleware
    async def control(request: web.Request, handler: Any) -> web.StreamResponse:
        what = request.method, request.path
        if what == ("PUT", "/_faults"):
            misbehaviour.set(Faults(**await request.json()))
        elif what == ("DELETE", "/_calls"):
            misbehaviour.forget()
        elif what == ("GET", "/_calls"):
            calls = Calls(dict(misbehaviour.calls), dict(misbehaviour.outcomes))
            return web.json_response(calls._asdict())
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
