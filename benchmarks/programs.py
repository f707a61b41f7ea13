"""Start the crawls of the benchmarks, each in a process; with ``--quick``, forked."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# What a crawl imports, but not the reactor: processes cannot share one.
_PRELOADED = [
    *("scrapy.crawler", "scrapy.core.downloader.handlers.http11", "scrapy.extensions.feedexport"),
    *("scrapy_apify_rq.addon", "scrapy_apify_rq.backends.sqlite.queue"),
]


def start(
    module: str,
    words: Sequence[str],
    output: Path,
    *,
    environ: Mapping[str, str] | None = None,
    fork: bool = False,
    strict: bool = False,
    under: Sequence[str] = (),
) -> subprocess.Popen[bytes] | Fork:
    """Append the standard output to a file. With ``strict``, append the standard error too, and
    make warnings errors. ``under`` is the command of a program that runs this one.
    """
    if fork:
        return Fork(module, words, output, {**(environ or os.environ)}, strict)
    command = [*under, sys.executable, *(["-W", "error"] if strict else []), "-m", module, *words]
    with output.open("ab") as file:
        errors = file if strict else None
        return subprocess.Popen(command, cwd=ROOT, env=environ, stdout=file, stderr=errors)


class Fork:
    """Like a Popen, but forked from a process that has imported Scrapy: it costs half the CPU."""

    def __init__(
        self,
        module: str,
        words: Sequence[str],
        output: Path,
        environ: dict[str, str],
        strict: bool,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        self.args = [module, *words]
        self._process: Any = context.Process(
            target=_run, args=(self.args, output, environ, strict), daemon=True
        )
        self._process.start()

    def poll(self) -> int | None:
        code: int | None = self._process.exitcode
        return code

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()


def _run(words: list[str], output: Path, environ: dict[str, str], strict: bool) -> None:
    os.environ.clear()
    os.environ.update(environ)
    with output.open("ab") as file:
        for stream in (1, 2) if strict else (1,):
            os.dup2(file.fileno(), stream)
    if strict:
        warnings.simplefilter("error")
    sys.argv = words
    sys.modules.pop(words[0], None)  # the program that started this one may have imported it
    runpy.run_module(words[0], run_name="__main__")
