"""``scrapy`` in a fork of a process that has imported it, which saves two thirds of the CPU time.

A fork runs ``python -m scrapy`` from its first line to the end of the interpreter, in a folder and
with an environment, standard streams and an exit status of its own. What it has in common with the
others is what was imported, and the seed of Python's hashes. So most crawls that a test kills or
looks at while they run, and programs that use Scrapy's parts, are processes from scratch.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO


class Fork:
    """A running ``scrapy``. Its process id is its own until the ``with`` block ends."""

    def __init__(self, control: socket.socket, job: tuple[Sequence[str], str, Mapping[str, str]]):
        self._socket, theirs = socket.socketpair()
        with ExitStack() as stack:
            stack.enter_context(self._socket)
            self._told = stack.enter_context(self._socket.makefile("rw"))
            self._output = stack.enter_context(TemporaryFile("w+"))
            self._log = stack.enter_context(TemporaryFile("w+"))
            with theirs:
                files = [file.fileno() for file in (theirs, self._output, self._log)]
                socket.send_fds(control, [b"."], files)
            self._told.write(json.dumps(job) + "\n")
            self._told.flush()
            self.pid = int(self._told.readline())
            self._open = stack.pop_all()

    def __enter__(self) -> Fork:
        return self

    def __exit__(self, *_: object) -> None:
        with self._open:
            self.send_signal(signal.SIGKILL)
            self._socket.settimeout(None)
            self._socket.shutdown(socket.SHUT_WR)
            while self._socket.recv(100):
                pass  # until it is gone

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float) -> tuple[int, str, str]:
        """Its exit status, output and log."""
        self._socket.settimeout(timeout)
        try:
            status = int(self._told.readline())
        except TimeoutError:
            raise AssertionError(f"no end after {timeout} s:\n{_text(self._log)}") from None
        return status, _text(self._output), _text(self._log)


def _text(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


class Starter:
    """A process that has all imported and forks on request, until this one ends."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            number = str(theirs.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "tests.starter", number],
                cwd=Path(__file__).parents[1],
                stdout=subprocess.DEVNULL,  # else forks inherit a terminal's buffering
                pass_fds=[theirs.fileno()],
            )
        atexit.register(self._end)

    def _end(self) -> None:
        self._control.close()
        self._process.wait()

    def start(self, words: Sequence[str], folder: Path, environ: Mapping[str, str]) -> Fork:
        """``scrapy`` with these words."""
        return Fork(self._control, (words, str(folder), environ))


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
    for name in ("commands.rq", "addon", "crawl.scheduler", "backends.apify.queue"):
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
    """Fork ``scrapy``; tell its process id, its exit status, and keep the id until told so."""
    with socket.socket(fileno=told) as answer:
        words, folder, environ = json.loads(answer.makefile().readline())
        if pid := os.fork():
            answer.sendall(b"%d\n" % pid)
            end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            assert end is not None
            exited = end.si_code == os.CLD_EXITED
            answer.sendall(b"%d\n" % (end.si_status if exited else -end.si_status))
            answer.recv(1)
            os.waitpid(pid, 0)
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
    atexit.register(_collect)
    runpy.run_module("scrapy", run_name="__main__", alter_sys=True)
    sys.exit()


def _collect() -> None:
    """The last thing before the interpreter's end, which would look through all memory thrice."""
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    _import_all()
    with socket.socket(fileno=int(sys.argv[1])) as asked:
        _serve(asked)
