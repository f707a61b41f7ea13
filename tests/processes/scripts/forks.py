"""Run Scrapy's commands, and scripts, in forks of this process, which has imported Scrapy and us
once for all.

It is asked over the socket whose file descriptor is its argument, a message of JSON and the three
standard streams a command, and answers with the process id. The exit status is in a file, once the
command has ended.
"""

import gc
import io
import json
import os
import runpy
import socket
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import scrapy.commands
from scrapy.cmdline import execute
from scrapy.settings import default_settings
from scrapy.utils.misc import load_object

# The memory that a fork's garbage collector touches is copied.
for name in ("DOWNLOAD_HANDLERS", "DOWNLOADER_MIDDLEWARES", "EXTENSIONS", "SPIDER_MIDDLEWARES"):
    for key, value in getattr(default_settings, f"{name}_BASE").items():
        path = value if isinstance(value, str) else key
        if not path.endswith(".RemoteControl"):  # which our projects go without
            load_object(path)
for name in (
    "scrapy_apify_rq.Addon",
    "scrapy_apify_rq.Scheduler",
    "scrapy_apify_rq.backends.apify.queue.ApifyBackend",
    "scrapy_apify_rq.backends.sqlite.queue.SqliteBackend",
    "scrapy_apify_rq.commands.rq.Command",
    "tests.support.process_spiders.Tree",
    "tests.support.stats_file.StatsFile",
):
    load_object(name)
for module in iter_modules(scrapy.commands.__path__):
    import_module(f"scrapy.commands.{module.name}")
assert "twisted.internet.reactor" not in sys.modules
gc.freeze()


def become(words: list[str], folder: str, environ: dict[str, str], streams: list[int]) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    sys.path.insert(0, folder)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    # As if it had been this one, and this environment, always.
    raw = io.FileIO(1, "w", closefd=False)
    is_raw = bool(environ.get("PYTHONUNBUFFERED"))
    buffer = raw if is_raw else io.BufferedWriter(raw)
    is_line = raw.isatty()
    sys.stdout = io.TextIOWrapper(buffer, "utf-8", line_buffering=is_line, write_through=is_raw)
    if not words[0].endswith(".py"):
        execute(["scrapy", *words])
    gc.unfreeze()  # a script may look at what is frozen
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")
    sys.exit()


asked = socket.socket(fileno=int(sys.argv[1]))
while True:
    message, streams, _, _ = socket.recv_fds(asked, 2**20, 3)
    if not message:
        break
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    order = json.loads(message)
    if not os.fork():
        if not (pid := os.fork()):
            asked.close()
            become(order["words"], order["folder"], order["environ"], streams)
        # Its parent, which waits for nothing else.
        for stream in streams:
            os.close(stream)
        asked.send(b"%d" % pid)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        file = Path(order["status"])
        new = file.with_suffix(".new")
        new.write_text(str(status))
        new.rename(file)
        os._exit(0)
    for stream in streams:
        os.close(stream)
