"""``scrapy rq`` inside the test's process, through Scrapy's own command line."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import signal
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest.mock import patch

from scrapy import cmdline

from tests.support.queues import TOKEN, Queue
from tests.support.quick_settings import QuickSettings

# To look for plugins of the command line takes longer than many a command.
cmdline.entry_points = cache(cmdline.entry_points)


@dataclass
class Done:
    """What a command has left behind."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[Any]:
        """The output, as JSON Lines."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def json(self) -> Any:
        (only,) = self.lines
        return only


async def rq(
    queue: Queue,
    *words: str,
    stdin: bytes = b"",
    settings: Mapping[str, Any] | None = None,
) -> Done:
    """Run ``scrapy rq`` with these words, outside of any project, and with any result.

    The project's settings are those of the queue and ``settings``; without SPIDER_MODULES there is
    no spider. One command at a time: the standard streams are the process's.
    """
    values = {"LOG_LEVEL": "INFO", **queue.settings, **(settings or {})}
    # Only the main thread may set a handler. The command sets none if it finds SIGINT ignored.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        done = await asyncio.to_thread(_execute, words, stdin, values)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert TOKEN not in done.out + done.err
    return done


async def rq_ok(
    queue: Queue, *words: str, stdin: bytes = b"", settings: Mapping[str, Any] | None = None
) -> Done:
    """The same, and it succeeds."""
    done = await rq(queue, *words, stdin=stdin, settings=settings)
    assert done.code == 0, done.err
    return done


def _execute(words: tuple[str, ...], stdin: bytes, settings: dict[str, Any]) -> Done:
    """In a thread, because commands call ``asyncio.run()``."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    given = io.TextIOWrapper(io.BytesIO(stdin), "utf-8")
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    with redirect_stdout(out), redirect_stderr(err), patch("sys.stdin", given):
        try:
            cmdline.execute(["scrapy", "rq", *words], QuickSettings(settings))
        except SystemExit as end:
            code = end.code or 0
        finally:
            root.setLevel(level)
            for handler in set(root.handlers) - set(handlers):
                root.removeHandler(handler)
                handler.close()
    texts = []
    for stream in (out, err):
        stream.seek(0)
        texts.append(stream.read())
    assert isinstance(code, int)
    return Done(code, *texts)
