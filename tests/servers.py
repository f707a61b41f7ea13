"""Many API servers in one process, each with a folder of its own.

A server for each project keeps the tests apart; a process for each would take a second of CPU.
``tests.server`` is for tests of the command, and for those that count or break its calls.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

from aiohttp import web

from scrapy_apify_rq.server.application import application
from scrapy_apify_rq.server.faults import Faults
from tests.server import Server
from tests.support.api_description import checked

TOKEN = "apify_api_secretOfTheTests"


class Servers:
    """Starts servers on request, in a process that ends with the ``with`` block."""

    def __enter__(self) -> Servers:
        self._complaints = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.servers"],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
        )
        return self

    def serve(self, folder: Path) -> Server:
        """A server of the queues in ``folder``, which asks for ``TOKEN``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{folder}\n")
        self._process.stdin.flush()
        url = self._process.stdout.readline().strip()
        assert url, self._read_complaints()
        return Server(url, folder, self._process)

    def _read_complaints(self) -> str:
        self._complaints.seek(0)
        return self._complaints.read()

    def __exit__(self, *_: object) -> None:
        with self._process, self._complaints:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                raise
            complaints = self._read_complaints()
        assert self._process.returncode == 0, complaints
        assert complaints == "", complaints


async def _serve_as_told() -> None:
    """Read folders from the standard input and answer with the address of each one's server."""
    runners: list[web.AppRunner] = []
    while folder := (await asyncio.to_thread(sys.stdin.readline)).strip():
        app = application(Path(folder), token=TOKEN, faults=Faults())
        checked(app, lambda complaint: print(complaint, file=sys.stderr, flush=True))
        runners.append(runner := web.AppRunner(app, access_log=None, shutdown_timeout=1))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.gather(*(runner.cleanup() for runner in runners))


if __name__ == "__main__":
    asyncio.run(_serve_as_told())
