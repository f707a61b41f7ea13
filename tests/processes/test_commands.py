"""``scrapy rq`` at terminals, in pipes and under signals, which only a process can have."""

from __future__ import annotations

import asyncio
import codecs
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from tests.support.command_line import rq_ok
from tests.support.queues import NAME, Queue, ServedQueue
from tests.support.scrapy_project import ROOT, Fork
from tests.support.waiting import wait_until


def entry(number: int, **fields: Any) -> Entry:
    key = f"k{number}"
    return Entry(id=request_id(key), unique_key=key, url=f"http://site/{number}", **fields)


def start(
    queue: Queue,
    words: str,
    *,
    terminal: int | None = None,
    stdout: int | None = None,
    pipes: Sequence[str] = (),
    python: Sequence[str] = (),
) -> Popen[bytes] | Fork:
    """Run ``scrapy rq`` where there is no project, as a fork unless Python has options."""
    where = {name: value for name, value in queue.settings.items() if name != "APIFY_RQ_NAME"}
    options = [word for name, value in where.items() for word in ("-s", f"{name}={value}")]
    command = ["rq", *words.split(), "-q", NAME, *options]
    folder = queue.folder.with_name("empty")
    folder.mkdir(exist_ok=True)
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80"}
    environ.pop("PYTHONUNBUFFERED", None)  # what is printed must arrive without it
    if python:
        program = [sys.executable, "-W", "error", *python, "-m", "scrapy"]
        to_us: Any = dict.fromkeys(pipes, PIPE)
        return Popen([*program, *command], cwd=folder, env=environ, **to_us)
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal) | {
        "stdout": stdout or terminal
    }
    ends = {name: os.pipe() for name in pipes}
    streams |= {name: theirs for name, (_, theirs) in ends.items()}
    at: Any = tuple(n if fd is None else fd for n, fd in enumerate(streams.values()))
    fork = Fork(command, folder, environ, at, queue.folder.with_name("status"))
    for name, (ours, theirs) in ends.items():
        os.close(theirs)
        setattr(fork, name, os.fdopen(ours, "rb"))
    return fork


@asynccontextmanager
async def running(
    queue: Queue, words: str, *, pipes: Sequence[str] = (), **options: Any
) -> AsyncIterator[Any]:
    """The same to its end, with eight entries in the queue: five are handled, three have failed."""
    done = {"handled_at": "2026-01-01T00:00:00Z"}
    failed = [entry(number, **done, error_messages=["404 Not Found"]) for number in range(3)]
    await queue.add(*failed, entry(3, **done), entry(4, **done), *map(entry, range(5, 8)))
    with start(queue, words, pipes=pipes, **options) as process:
        try:
            yield process
            await wait_until(lambda: process.poll() is not None, "the end of it", 30)
        finally:
            process.kill()
            for pipe in pipes:
                getattr(process, pipe).close()
    assert not any(queue.folder.with_name("empty").iterdir())


class Terminal:
    """What a command says and hears that has ``theirs``."""

    def __init__(self) -> None:
        self._ours, self.theirs = pty.openpty()
        os.set_blocking(self._ours, False)
        self._decoder = codecs.getincrementaldecoder("utf-8")()  # a read may end within a letter
        self.seen = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._ours)
        os.close(self.theirs)

    def _has(self, text: str) -> bool:
        with suppress(BlockingIOError):
            self.seen += self._decoder.decode(os.read(self._ours, 100_000))
        return text in self.seen

    async def shows(self, *texts: str) -> None:
        for text in texts:
            await wait_until(lambda text=text: self._has(text), repr(text), 30)  # type: ignore[misc]

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())


async def test_watch_refreshes_until_ctrl_c(queue: Queue) -> None:
    words = "status --watch 0.2 --by host"
    with Terminal() as terminal:
        async with running(queue, words, terminal=terminal.theirs) as process:
            await terminal.shows("62.5% handled")
            await queue.add(entry(8))
            await terminal.shows("55.6% handled", "0 pages/min")
            process.send_signal(signal.SIGINT)
        await terminal.shows("\x1b[?1049l")
    assert process.returncode == 0
    assert "site" in terminal.seen
    assert "counting" not in terminal.seen  # no second progress bar
    # On a screen of its own, which no narrower window garbles; the last look stays.
    assert terminal.seen.startswith("\x1b[?1049h")
    assert "55.6% handled" in terminal.seen.partition("\x1b[?1049l")[2]


async def test_long_operation_shows_progress(tmp_path: Path, queue: Queue) -> None:
    with Terminal() as terminal:
        async with running(queue, f"export {tmp_path}/x", terminal=terminal.theirs) as process:
            await terminal.shows("exporting", "8 exported")
    assert process.returncode == 0


async def test_purge_asks_first(queue: Queue) -> None:
    """Whichever backend it is; ``purge --yes`` is tested with both."""
    question = f"Delete 8 entries, 3 of them pending, of request queue {NAME} in "
    for answer, says, left in (("n", "nothing was deleted", 8), ("y", "8 deleted", 0)):
        with Terminal() as terminal:
            async with running(queue, "purge", terminal=terminal.theirs) as process:
                await terminal.shows(question, "[y/N]")
                terminal.type(f"{answer}\n")
                await terminal.shows(says)
        assert process.returncode == (1 if left else 0)
        assert len(await queue.entries()) == left


async def test_watch_prints_json_to_a_pipe(any_queue: Queue) -> None:
    async with running(any_queue, "status --watch 0.1 --json", pipes=["stdout"]) as process:
        looks = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGINT)
    assert process.returncode == 0
    assert [look["handled"] for look in looks] == [5, 5, 5]
    assert [look["pagesPerMinute"] for look in looks] == [None, 0, 0]
    # Over the API, counting failed entries would read the whole queue each time.
    assert looks[0]["failed"] == (None if isinstance(any_queue, ServedQueue) else 3)


async def test_closed_pipe_gives_no_traceback(queue: Queue) -> None:
    async with running(queue, "list", pipes=["stdout", "stderr"]) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


async def test_full_disk_behind_the_output_is_a_line(queue: Queue) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    async with running(queue, "list", stdout=full, pipes=["stderr"]) as process:
        said = process.stderr.read().decode()
    os.close(full)
    assert (process.returncode, said) == (1, "scrapy rq list: No space left on device\n")


async def test_interrupted_import_can_be_repeated(tmp_path: Path, queue: Queue) -> None:
    lines = "".join(f"{entry(number).to_json()}\n" for number in range(150)).encode()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    async with running(queue, f"import {fifo}", pipes=["stderr"]) as process:
        with fifo.open("wb") as file:
            file.write(lines)
            file.flush()
            async with asyncio.timeout(30):
                while (await queue.info()).total < 100:  # noqa: ASYNC110 (there is no event)
                    await asyncio.sleep(0.02)
            process.send_signal(signal.SIGINT)
            said = process.stderr.read().decode()
    kept = "interrupted. What it did so far is kept; you can safely run it again"
    assert (process.returncode, said) == (130, f"scrapy rq import: {kept}\n")
    await rq_ok(queue, "import", "-", stdin=lines)
    assert (await queue.info()).total == 150


async def test_embedded_queue_is_used_without_importing_aiohttp(queue: Queue) -> None:
    options = {"pipes": ["stdout", "stderr"], "python": ["-X", "importtime"]}
    async with running(queue, "status --json", **options) as process:
        out, err = await asyncio.to_thread(process.communicate)
    assert json.loads(out)["total"] == 8
    loaded = {line.split("|")[-1].strip() for line in err.decode().splitlines()}
    assert "scrapy_apify_rq.commands.queues" in loaded
    assert "aiohttp" not in loaded
