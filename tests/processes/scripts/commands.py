"""Run Scrapy's commands, a list of words each, one after the other in forks of this process.

As in a shell, words like NAME=value in front are the command's environment. What they print is in
"command-0.out" and so on, and what they log in "command-0.err"; this process prints the process id
and the exit status of each.
"""

import gc
import json
import os
import sys

from scrapy.cmdline import execute
from scrapy.utils.misc import load_object
from scrapy.utils.project import get_project_settings

# All of them import this. The memory that a fork's garbage collector touches is copied.
settings = get_project_settings()
for name in ("DOWNLOAD_HANDLERS", "DOWNLOADER_MIDDLEWARES", "EXTENSIONS", "SPIDER_MIDDLEWARES"):
    for key, value in settings[f"{name}_BASE"].items():
        load_object(value if isinstance(value, str) else key)
for name in ("Addon", "Scheduler"):
    load_object(f"scrapy_apify_rq.{name}")
gc.freeze()

for number, words in enumerate(json.loads(sys.argv[1])):
    if os.fork():
        pid, status = os.wait()
        print(pid, os.waitstatus_to_exitcode(status), flush=True)
        continue
    for stream, end in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"command-{number}.{end}", os.O_CREAT | os.O_WRONLY), stream)
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        os.environ[name] = value
    execute(["scrapy", *words])
