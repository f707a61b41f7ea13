"""``scrapy`` in a fork of a process that has imported it, which saves two thirds of the CPU time.

A fork runs ``python -m scrapy`` from its first line to the end of the interpreter, in a folder and
with an environment, standard streams and an exit status of its own. What it has in common with the
others is what was imported, and the seed of Python's hashes. So crawls that a test kills or looks
at while they run, and programs that use Scrapy's parts, are processes from scratch.
"""

from __future__ import annotations

import atexit
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile


class Starter:
    """A process that has all imported and forks on request, until this one ends."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            number = str(theirs.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "tests.starter", number],
                cwd=Path(__file__).parents[1],
                stdout=subprocess.DEVNULL,  # else forks that inherit a terminal's buffering
                pass_fds=[theirs.fileno()],
            )
        atexit.register(self._end)

    def _end(self) -> None:
        self._control.close()
        self._process.wait()

    def run(
        self, words: Sequence[str], folder: Path, environ: Mapping[str, str], timeout: float
    ) -> tuple[int, str, str]:
        """Run ``scrapy`` with these words to its end: its exit status, output and log."""
        ours, theirs = socket.socketpair()
        with ours, TemporaryFile("w+") as output, TemporaryFile("w+") as log:
            with theirs:
                files = [file.fileno() for file in (theirs, output, log)]
                socket.send_fds(self._control, [b"."], files)
            ours.settimeout(timeout)
            with ours.makefile("rw") as told:
                told.write(json.dumps([words, str(folder), dict(environ)]) + "\n")
                told.flush()
                pid = int(told.readline())
                try:
                    status = int(told.readline())
                except TimeoutError:
                    os.kill(pid, signal.SIGKILL)
                    log.seek(0)
                    raise AssertionError(f"no end after {timeout} s:\n{log.read()}") from None
            output.seek(0)
            log.seek(0)
            return status, output.read(), log.read()


@cache
def starter() -> Starter:
    """That of this process, made when a test first needs it."""
    return Starter()


def _import_all() -> None:
    """What ``scrapy`` and crawls import, but for the reactor, which belongs to one process."""
    import scrapy.commands
    from scrapy.settings import default_settings
    from scrapy.utils.misc import load_object

    for _, name, _ in pkgutil.iter_modules(scrapy.commands.__path__, "scrapy.commands."):
        import_module(name)
    for name in ("commands.rq", "addon", "scheduler", "backends.apify", "backends.sqlite"):
        import_module(f"scrapy_apify_rq.{name}")
    for name in ("cmdline", "core.engine", "logformatter", "statscollectors"):
        import_module(f"scrapy.{name}")
    for name in ("DOWNLOAD_HANDLERS", "DOWNLOADER_MIDDLEWARES", "EXTENSIONS", "SPIDER_MIDDLEWARES"):
        for key, value in getattr(default_settings, f"{name}_BASE").items():
            load_object(value if isinstance(value, str) else key)


def _serve(control: socket.socket) -> None:
    """Fork on request, until nobody is left to ask."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the tests, whose end is ours
    keepers = []
    while files := socket.recv_fds(control, 1, 3)[1]:
        if keeper := os.fork():
            keepers.append(keeper)
        else:
            control.close()
            _keep(*files)
        for file in files:
            os.close(file)
    for keeper in keepers:
        os.waitpid(keeper, 0)


def _keep(told: int, output: int, log: int) -> None:
    """Fork ``scrapy``, and tell its process id and exit status."""
    with socket.socket(fileno=told) as answer:
        words, folder, environ = json.loads(answer.makefile().readline())
        if pid := os.fork():
            answer.sendall(b"%d\n" % pid)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            answer.sendall(b"%d\n" % status)
            os._exit(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, file in enumerate((output, log), 1):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    sys.path[0] = folder
    sys.argv[1:] = words
    runpy.run_module("scrapy", run_name="__main__", alter_sys=True)
    sys.exit()


if __name__ == "__main__":
    _import_all()
    with socket.socket(fileno=int(sys.argv[1])) as asked:
        _serve(asked)
