"""``scrapy`` as a process of its own, in a project whose spiders are classes of these tests.

It is a fork of a process that has imported Scrapy, which saves a second of CPU, unless the test
says otherwise: ``as_a_user``. A crawl inside the test's process (``crawling``) takes a tenth of a
second. So a process is for what only a process can show: kills, signals, workers, scripts, memory.
The test says why in one line.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from scrapy import Spider

from tests.support.example_project import EXAMPLE
from tests.support.queues import TOKEN, Queue, ServedQueue
from tests.support.waiting import PATIENCE, wait_until

ROOT = Path(__file__).parents[2]
_FORKS = ROOT / "tests" / "processes" / "scripts" / "forks.py"


@dataclass
class Finished:
    """What one run has left behind. ``log`` is its standard error; a signal is a status below 0."""

    status: int
    output: str
    log: str
    stats: dict[str, Any]


class Process:
    """A program that runs in ``folder`` until the ``async with`` block ends."""

    def __init__(self, program: list[str], folder: Path, environ: Mapping[str, str]) -> None:
        self._folder = folder
        number = len(list(folder.glob("*.out")))
        self._output = folder / f"{number}.out"
        self._log = folder / f"{number}.log"
        self._process = self._launched(program, environ)
        self.pid = self._process.pid

    def _launched(
        self, program: list[str], environ: Mapping[str, str]
    ) -> subprocess.Popen[bytes] | Fork:
        with self._output.open("w") as output, self._log.open("w") as log:
            return subprocess.Popen(
                program,
                cwd=self._folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
            )

    async def __aenter__(self) -> Process:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process.poll() is None:
            await self.kill()

    @property
    def output(self) -> str:
        """So far."""
        return self._output.read_text()

    @property
    def log(self) -> str:
        """So far."""
        return self._log.read_text()

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def kill(self) -> None:
        """As ``kill -9`` does, and wait until it is gone."""
        self._process.kill()
        await wait_until(lambda: self.has_ended, "the end of a killed process")

    async def end(self, patience: float = PATIENCE) -> Finished:
        """Wait for its end."""
        try:
            await wait_until(lambda: self.has_ended, "the end of the process", patience)
        except AssertionError:
            await self.kill()
            raise AssertionError(f"no end after {patience} s:\n{self.log[-3000:]}") from None
        assert TOKEN not in self.output + self.log
        file = self._folder / f"stats-{self.pid}.json"
        # What ``StatsFile`` has written, if the process has made a crawl.
        stats: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        status = self._process.poll()
        assert status is not None
        return Finished(status, self.output, self.log, stats)


@cache
def _forks() -> socket.socket:
    """Where ``forks.py`` is asked for processes until these tests end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    path = os.pathsep.join((str(ROOT), str(EXAMPLE)))
    forks = subprocess.Popen(
        [sys.executable, "-W", "error", str(_FORKS), str(theirs.fileno())],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
        start_new_session=True,  # Ctrl-C ends these tests, which end it
    )
    theirs.close()

    def end() -> None:
        ours.close()
        forks.wait()

    atexit.register(end)
    return ours


class Fork:
    """What ``Popen`` has, for a fork of a process that has imported Scrapy: no second of CPU.

    ``streams`` are file descriptors of the standard ones; ``status`` becomes a file.
    """

    def __init__(
        self,
        words: list[str],
        folder: Path,
        environ: Mapping[str, str],
        streams: tuple[int, int, int],
        status: Path,
    ) -> None:
        self._status = status
        status.unlink(missing_ok=True)
        order = {"words": words, "folder": str(folder), "status": str(status)}
        message = json.dumps({**order, "environ": dict(environ)}).encode()
        forks = _forks()
        socket.send_fds(forks, [message], streams)
        self.pid = int(forks.recv(100))

    def __enter__(self) -> Fork:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        return int(self._status.read_text()) if self._status.exists() else None

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkedProcess(Process):
    """The same for ``scrapy`` with these words, or for a script, which is the first of them."""

    def _launched(self, program: list[str], environ: Mapping[str, str]) -> Fork:
        with (
            Path(os.devnull).open() as nothing,
            self._output.open("w") as output,
            self._log.open("w") as log,
        ):
            streams = (nothing.fileno(), output.fileno(), log.fileno())
            status = self._output.with_suffix(".status")
            return Fork(program, self._folder, environ, streams, status)


class Project:
    """A Scrapy project with the module of this spider, whose crawls use ``queue``.

    ``spider`` belongs into ``spiders`` or a module like it: its process imports the module.
    ``settings`` are Python values whose ``repr()`` is code.
    """

    def __init__(
        self,
        folder: Path,
        queue: Queue,
        spider: type[Spider],
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.queue = queue
        self.spider = spider
        folder.mkdir(parents=True, exist_ok=True)
        values = {"SPIDER_MODULES": [spider.__module__], **queue.settings, **(settings or {})}
        lines = [f"{name} = {value!r}\n" for name, value in values.items()]
        base = "served_settings" if isinstance(queue, ServedQueue) else "project_settings"
        text = f"from tests.support.{base} import *\n" + "".join(lines)
        (folder / "settings.py").write_text(text)
        (folder / "scrapy.cfg").write_text("[settings]\ndefault = settings\n")

    def start(
        self,
        *words: str,
        env: Mapping[str, str] | None = None,
        script: Path | None = None,
        program: list[str] | None = None,
        as_a_user: bool = False,
    ) -> Process:
        """Run ``scrapy`` with these words, or a Python ``script``; warnings are errors.

        It is a fork, unless it is to be started ``as_a_user`` starts it. ``program`` takes the
        place of Python; the Python that it finds is this one.
        """
        scripts = [] if script is None else [str(script)]
        python = [sys.executable, "-W", "error", *(scripts or ["-m", "scrapy"])]
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("APIFY_", "ACTOR_", "CRAWLEE_"))
        }
        path = os.pathsep.join((str(self.folder), str(ROOT), str(EXAMPLE)))
        environ = {**clean, "PYTHONPATH": path, **(env or {})}
        if program is not None:
            environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        elif not as_a_user:
            return ForkedProcess([*scripts, *words], self.folder, environ)
        return Process([*(program or python), *words], self.folder, environ)

    async def run(
        self,
        *words: str,
        env: Mapping[str, str] | None = None,
        script: Path | None = None,
        as_a_user: bool = False,
        patience: float = PATIENCE,
    ) -> Finished:
        """The same, to its end."""
        async with self.start(*words, env=env, script=script, as_a_user=as_a_user) as process:
            return await process.end(patience)

    def begin(
        self,
        *options: str,
        env: Mapping[str, str] | None = None,
        as_a_user: bool = False,
        **arguments: Any,
    ) -> Process:
        """Crawl; other keyword arguments are the spider's."""
        given = [word for name, value in arguments.items() for word in ("-a", f"{name}={value}")]
        words = ("crawl", self.spider.name, *options, *given)
        return self.start(*words, env=env, as_a_user=as_a_user)

    async def crawl(
        self,
        *options: str,
        env: Mapping[str, str] | None = None,
        patience: float = PATIENCE,
        **arguments: Any,
    ) -> Finished:
        """Crawl to the end, with success: exit status 0, no bug of ours, no warning."""
        async with self.begin(*options, env=env, **arguments) as process:
            finished = await process.end(patience)
        assert finished.status == 0, finished.log
        assert "Bug in scrapy-apify-rq" not in finished.log, finished.log
        assert "Warning: " not in finished.log, finished.log
        return finished
