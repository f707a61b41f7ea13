"""``scrapy rq serve``: serve the embedded queues over HTTP."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from scrapy.exceptions import UsageError
from scrapy.settings import Settings

from scrapy_apify_rq.config import storage_dir
from scrapy_apify_rq.errors import ConfigError
from scrapy_apify_rq.server.faults import Faults
from scrapy_apify_rq.setting_readers import is_loopback

if TYPE_CHECKING:
    from aiohttp import web

NAME = "serve"
HELP = "Serve the embedded request queues over HTTP, with the request-queue part of Apify's API v2"
EXAMPLE = (
    "scrapy rq serve --port 8080, with APIFY_API_BASE_URL=http://127.0.0.1:8080 for the programs"
    " that use it"
)
# Seconds that running calls get to finish when the server stops.
_SHUTDOWN_TIMEOUT = 5


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)"
    )
    parser.add_argument(
        "--port",
        type=int,
        default=8080,
        help="the port to listen on; 0 selects a free one (default: %(default)s)",
    )
    parser.add_argument(
        "--storage-dir",
        metavar="DIR",
        help="the folder of the queues (default: the one that a crawl started here would use)",
    )
    parser.add_argument("--token", help="require this token from clients")
    parser.add_argument(
        "--test-faults",
        action="store_true",
        help="for tests of clients: PUT /_faults makes the server misbehave, GET /_calls counts"
        " its calls",
    )


def run(settings: Settings, options: argparse.Namespace) -> None:
    if not options.token and not is_loopback(options.host):
        raise UsageError(
            f"with --host {options.host}, anybody on the network could read and change the queues:"
            " add --token, or leave --host out"
        )
    if options.storage_dir:
        folder = Path(options.storage_dir).expanduser().absolute()
    else:
        folder = storage_dir(settings, os.environ)
    asyncio.run(_serve(folder, options))


async def _serve(folder: Path, options: argparse.Namespace) -> None:
    # Imported late, because importing aiohttp takes 0.1 s and the other subcommands do not need it.
    from aiohttp import web

    from scrapy_apify_rq.server.application import application

    app = application(
        folder,
        token=options.token or None,
        faults=Faults() if options.test_faults else None,
    )
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_TIMEOUT)
    try:
        await runner.setup()
        site = web.TCPSite(runner, options.host, options.port)
        await _listen(site, options.host, options.port)
        print(f"Serving request queues of {folder} on {_address(runner)}", flush=True)
        await _wait_for_stop_signal()
    finally:
        await runner.cleanup()


async def _listen(site: web.TCPSite, host: str, port: int) -> None:
    try:
        await site.start()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot listen on {host}, port {port} ({error}); use another --host or --port"
        ) from error


def _address(runner: web.AppRunner) -> str:
    host, port = runner.addresses[0][:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _wait_for_stop_signal() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError):  # on Windows, Ctrl-C cancels this task instead
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
