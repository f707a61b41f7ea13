"""``scrapy`` as a process of its own, in a project whose spiders are classes of these tests.

A process takes more than a second of CPU, a crawl inside the test's process (``crawling``) a tenth
of one. So a process is for what only a process can show: kills, signals, terminals, workers,
scripts, memory. The test says why in one line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scrapy import Spider

from tests.support.example_project import EXAMPLE
from tests.support.queues import TOKEN, Queue, ServedQueue
from tests.support.waiting import PATIENCE, wait_until

ROOT = Path(__file__).parents[2]
_COMMANDS = ROOT / "tests" / "processes" / "scripts" / "commands.py"


@dataclass
class Finished:
    """What one run has left behind. ``log`` is its standard error; a signal is a status below 0."""

    status: int
    output: str
    log: str
    stats: dict[str, Any]


class Process:
    """A program that runs in ``folder`` until the ``async with`` block ends."""

    def __init__(
        self, program: list[str], folder: Path, environ: Mapping[str, str], terminal: int | None
    ) -> None:
        self._folder = folder
        number = len(list(folder.glob("*.out")))
        self._output = folder / f"{number}.out"
        self._log = folder / f"{number}.log"
        with self._output.open("w") as output, self._log.open("w") as log:
            self._process = subprocess.Popen(
                program,
                cwd=folder,
                env=environ,
                stdin=subprocess.DEVNULL if terminal is None else terminal,
                stdout=output,
                stderr=log if terminal is None else terminal,
            )
        self.pid = self._process.pid

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
        """So far; empty if it goes to a terminal."""
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
        stats = _stats(self._folder, self.pid)
        return Finished(self._process.returncode, self.output, self.log, stats)


def _stats(folder: Path, pid: int | str) -> dict[str, Any]:
    """What ``StatsFile`` has written, if the process has made a crawl."""
    file = folder / f"stats-{pid}.json"
    stats: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return stats


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
        terminal: int | None = None,
        program: list[str] | None = None,
    ) -> Process:
        """Run ``scrapy`` with these words, or a Python ``script``; warnings are errors.

        ``terminal`` is a file descriptor to use for the standard input and error. ``program``
        takes the place of Python; the Python that it finds is this one.
        """
        python = [sys.executable, "-W", "error"]
        python += ["-m", "scrapy"] if script is None else [str(script)]
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("APIFY_", "ACTOR_", "CRAWLEE_"))
        }
        path = os.pathsep.join((str(self.folder), str(ROOT), str(EXAMPLE)))
        environ = {**clean, "PYTHONPATH": path, **(env or {})}
        if program is not None:
            environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        command = [*(program or python), *words]
        return Process(command, self.folder, environ, terminal)

    async def run(
        self,
        *words: str,
        env: Mapping[str, str] | None = None,
        script: Path | None = None,
        patience: float = PATIENCE,
    ) -> Finished:
        """The same, to its end."""
        async with self.start(*words, env=env, script=script) as process:
            return await process.end(patience)

    async def run_all(
        self, commands: Sequence[Sequence[str]], env: Mapping[str, str] | None = None
    ) -> list[Finished]:
        """Run ``scrapy`` with each of these words in turn, for little more than the time of one.

        Words like NAME=value in front are the command's environment.
        """
        patience = PATIENCE * len(commands)
        done = await self.run(json.dumps(commands), env=env, script=_COMMANDS, patience=patience)
        assert done.status == 0, done.log
        ended = [line.split() for line in done.output.splitlines()]
        assert len(ended) == len(commands), done.output
        finished = []
        for number, (pid, status) in enumerate(ended):
            file = self.folder / f"command-{number}.out"
            output, log = file.read_text(), file.with_suffix(".err").read_text()
            assert TOKEN not in output + log
            finished.append(Finished(int(status), output, log, _stats(self.folder, pid)))
        return finished

    def begin(
        self, *options: str, env: Mapping[str, str] | None = None, **arguments: Any
    ) -> Process:
        """Crawl; keyword arguments are the spider's."""
        given = [word for name, value in arguments.items() for word in ("-a", f"{name}={value}")]
        return self.start("crawl", self.spider.name, *options, *given, env=env)

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
