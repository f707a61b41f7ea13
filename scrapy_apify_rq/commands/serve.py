"""``scrapy rq serve``: serve the embedded queues over HTTP."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import secrets
import signal
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scrapy.exceptions import UsageError
from scrapy.settings import Settings
from scrapy.utils.log import configure_logging

from scrapy_apify_rq.commands import option_values
from scrapy_apify_rq.commands.served_project import ServedProject
from scrapy_apify_rq.config import storage_dir
from scrapy_apify_rq.errors import ConfigError
from scrapy_apify_rq.setting_readers import is_loopback, storage_folder

if TYPE_CHECKING:
    from aiohttp import web

logger = logging.getLogger(__name__)

NAME = "serve"
HELP = (
    "Serve the embedded request queues over HTTP, with the request-queue part of Apify's API v2. It"
    " also keeps datasets and key-value stores for Apify's own programs, and has a page at / on"
    " which people can watch and repair the queues"
)
EXAMPLE = (
    "scrapy rq serve --port 8080, with APIFY_API_BASE_URL=http://127.0.0.1:8080 for the programs"
    " that use it"
)
_TOKEN_VARIABLE: Final = "APIFY_RQ_SERVER_TOKEN"
# Seconds that running calls get to finish when the server stops.
_SHUTDOWN_TIMEOUT = 5


def add_options(parser: argparse.ArgumentParser) -> None:
    add_server_options(parser, port=8080)


def add_server_options(parser: argparse.ArgumentParser, *, port: int) -> None:
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)"
    )
    parser.add_argument(
        "--port",
        type=option_values.port,
        default=port,
        help="the port to listen on; 0 selects a free one (default: %(default)s)",
    )
    parser.add_argument(
        "--storage-dir",
        metavar="DIR",
        help="the folder of the queues (default: the one that a crawl started here would use)",
    )
    token = parser.add_mutually_exclusive_group()
    token.add_argument(
        "--token",
        help="require this token from clients. The list of processes shows it, so rather use"
        f" --token-file or the environment variable {_TOKEN_VARIABLE}",
    )
    token.add_argument("--token-file", metavar="FILE", help="require the token in this file")
    parser.add_argument(
        "--certfile",
        metavar="FILE",
        help="serve https, with the certificate in this file (PEM); clients other than those on"
        " this machine should not send the token without it",
    )
    parser.add_argument(
        "--keyfile", metavar="FILE", help="the certificate's key, unless it is in the same file"
    )


def run(
    settings: Settings,
    options: argparse.Namespace,
    started: Callable[[str], object] = lambda page: None,
) -> None:
    """Serve until a signal comes. ``started`` gets the address of the page."""
    token = _token(options)
    if not token and not is_loopback(options.host):
        raise UsageError(
            f"with --host {options.host}, anybody on the network could read and change the queues:"
            f" add --token-file, or set {_TOKEN_VARIABLE}, or leave --host out"
        )
    tls = _tls(options)
    if options.storage_dir:
        folder = storage_folder("--storage-dir", options.storage_dir)
    else:
        folder = storage_dir(settings, os.environ)
    _configure_log(settings, options)
    if not tls and not is_loopback(options.host):
        logger.warning(
            "Without --certfile, the token and the queues travel unencrypted. Crawls refuse to use"
            " such a server of another machine"
        )
    project = ServedProject(settings)
    asyncio.run(_serve(folder, token, tls, options, project, started))


def _token(options: argparse.Namespace) -> str | None:
    origin, token = "--token", options.token
    if options.token_file is not None:
        origin = f"--token-file {options.token_file}"
        try:
            token = Path(options.token_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, ValueError, RuntimeError) as error:
            raise UsageError(f"{origin}: {getattr(error, 'strerror', None) or error}") from None
        if not token:
            raise UsageError(f"{origin}: the file is empty")
    elif token == "":
        raise UsageError("--token: it is empty")
    elif token is None:
        origin, token = _TOKEN_VARIABLE, os.environ.get(_TOKEN_VARIABLE, "")
    token = token.strip()
    if token and not re.fullmatch(r"[!-~]+", token):
        raise UsageError(f"{origin}: a token consists of ASCII characters without spaces")
    return token or None


def _tls(options: argparse.Namespace) -> ssl.SSLContext | None:
    if options.certfile is None:
        if options.keyfile is not None:
            raise UsageError("--keyfile needs --certfile")
        return None
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        tls.load_cert_chain(options.certfile, options.keyfile)
    except OSError as error:  # and so is an SSLError
        raise UsageError(
            f"--certfile and --keyfile cannot be used ({error}): they must be files in the format"
            " PEM that belong together"
        ) from None
    return tls


def _configure_log(settings: Settings, options: argparse.Namespace) -> None:
    """Log to stderr, or where Scrapy's options for the log say; calls only with -L DEBUG."""
    settings = settings.copy()
    settings.set("LOG_ENABLED", not options.nolog)
    settings.set("LOG_LEVEL", options.loglevel or "INFO")
    configure_logging(settings)
    logging.getLogger("aiohttp.server").addFilter(_shorten)


def _shorten(record: logging.LogRecord) -> bool:
    """Give a line and no traceback to what a caller did wrong, such as words that are not HTTP."""
    from aiohttp.http_exceptions import HttpProcessingError, InvalidURLError

    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError | ConnectionError):
        # Not what it quotes, which may hold the token.
        said = "" if isinstance(error, InvalidURLError) else re.split("b?['\"]", str(error))[0]
        said = " ".join([type(error).__name__, *said.split()])
        record.msg, record.args = f"{record.getMessage()}: {said}", ()
        record.exc_info = None
        record.levelno, record.levelname = logging.INFO, "INFO"
    return True


async def _serve(
    folder: Path,
    token: str | None,
    tls: ssl.SSLContext | None,
    options: argparse.Namespace,
    project: ServedProject,
    started: Callable[[str], object],
) -> None:
    # Imported late, because importing aiohttp takes 0.1 s and the other subcommands do not need it.
    from aiohttp import web

    from scrapy_apify_rq.server.application import application
    from scrapy_apify_rq.server.connections import Connections
    from scrapy_apify_rq.server.page import Page

    connections = Connections()
    # Whoever sees it in the list of processes or in a log could call without it, too: it keeps out
    # other web pages, and without the server's own token programs of this machine need none.
    page_token = token or secrets.token_urlsafe()
    app = application(
        folder,
        token=token,
        host=options.host,
        middlewares=[connections.middleware()],
        page=Page(page_token, project),
    )
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_TIMEOUT)
    try:
        await runner.setup()
        site = web.TCPSite(runner, options.host, options.port, ssl_context=tls)
        await _listen(site, options.host, options.port)
        assert runner.server is not None
        watch = asyncio.create_task(connections.watch(runner.server))
        address = _address(runner, tls)
        page = f"{address}/" if token else f"{address}/#token={page_token}"
        print(
            f"Serving request queues of {folder} on {address}\n"
            f"To look at them in a browser: {page}" + (", with the token" if token else ""),
            flush=True,
        )
        started(page)
        await _wait_for_stop_signal()
        watch.cancel()
    finally:
        await runner.cleanup()


async def _listen(site: web.TCPSite, host: str, port: int) -> None:
    try:
        await site.start()
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigError(
            f"cannot listen on {host}, port {port} ({error}); use another --host or --port"
        ) from error


def _address(runner: web.AppRunner, tls: ssl.SSLContext | None) -> str:
    host, port = runner.addresses[0][:2]
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


async def _wait_for_stop_signal() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError):  # on Windows, Ctrl-C cancels this task instead
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
