"""``scrapy rq open``: look at the embedded queues in a browser."""

from __future__ import annotations

import argparse
import threading
import webbrowser

from scrapy.settings import Settings

from scrapy_apify_rq.commands import serve

NAME = "open"
HELP = (
    "Open a page in the browser on which you can watch and repair the embedded request queues,"
    " while crawls run. The page comes from a server like that of serve, on a free port, which runs"
    " until Ctrl-C"
)
EXAMPLE = "scrapy rq open"


def add_options(parser: argparse.ArgumentParser) -> None:
    serve.add_server_options(parser, port=0)


def run(settings: Settings, options: argparse.Namespace) -> None:
    serve.run(settings, options, _open)


def _open(page: str) -> None:
    # A browser that runs in the terminal comes back when it is closed, and must be served until
    # then. The address is on the terminal for whoever has no browser here.
    threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()
