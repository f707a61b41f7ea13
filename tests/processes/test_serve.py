"""``scrapy rq serve``: a process, since a signal ends it, and its words go to a terminal."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from tests.support.queues import TOKEN
from tests.support.raw_calls import request
from tests.support.scrapy_project import ROOT, Process
from tests.support.waiting import wait_until


def serve(folder: Path, *options: str) -> Process:
    command = [sys.executable, "-W", "error", "-m", "scrapy", "rq", "serve", *options]
    return Process(command, folder, {**os.environ, "PYTHONPATH": str(ROOT)}, None)


@pytest.mark.parametrize(
    ("number", "options", "status"),
    [(signal.SIGINT, (), 404), (signal.SIGTERM, ("--test-faults",), 204)],
)
async def test_serves_several_clients_until_a_signal(
    tmp_path: Path, number: signal.Signals, options: tuple[str, ...], status: int
) -> None:
    """Without the switch nobody can make it misbehave."""
    storage = tmp_path / "storage"
    common = ("--port", "0", "--storage-dir", str(storage), "--token", TOKEN)
    async with serve(tmp_path, *common, *options) as process:
        await wait_until(lambda: "\n" in process.output, "its first line")
        line = (
            rf"Serving request queues of {re.escape(str(storage))} on (http://127\.0\.0\.1:\d+)\n"
        )
        address = re.fullmatch(line, process.output)
        assert address
        url = f"{address[1]}/v2/request-queues"
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}) as http:
            queue = (await http.post(url)).json()["data"]["id"]
            calls = (http.post(f"{url}/{queue}/requests", json=request(key)) for key in "abcdefgh")
            assert [call.status_code for call in await asyncio.gather(*calls)] == [201] * 8
            assert (await http.put(f"{address[1]}/_faults", json={})).status_code == status
            assert (await http.delete(f"{address[1]}/_calls")).status_code == status
        async with httpx.AsyncClient() as http:
            assert (await http.get(url)).status_code == 401
        process.send(number)
        ended = await process.end()
    assert (ended.status, ended.log, ended.output.count("\n")) == (0, "", 1)


async def test_what_is_wrong_ends_it_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "request_queues.sqlite").write_text("no database at all, but long enough for one")
    storage = ("--storage-dir", str(tmp_path))
    cases = [
        (("--host", "0.0.0.0"), 2, "add --token, or leave --host out"),
        (("--port", "99999"), 1, "use another --host or --port"),
        (("--nonsense",), 2, "unrecognized arguments: --nonsense"),
        (("--port", "0", *storage), 1, "APIFY_RQ_STORAGE_DIR"),
    ]
    (tmp_path / "programs").mkdir()
    async with AsyncExitStack() as stack:
        starts = (serve(tmp_path / "programs", *options) for options, _, _ in cases)
        processes = [await stack.enter_async_context(process) for process in starts]
        for process, (options, status, cure) in zip(processes, cases, strict=True):
            ended = await process.end()
            assert (ended.status, ended.output) == (status, ""), options
            assert cure in ended.log
            assert "Traceback" not in ended.log


async def test_help_shows_an_example(tmp_path: Path) -> None:
    async with serve(tmp_path, "--help") as process:
        ended = await process.end()
    assert "Example: scrapy rq serve --port" in ended.output
    assert ended.status == 0
