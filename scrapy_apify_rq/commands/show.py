"""``scrapy rq show``: show everything about an entry."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

from scrapy import Request
from scrapy.settings import Settings

from scrapy_apify_rq.commands import output, queues
from scrapy_apify_rq.commands.queues import Queue
from scrapy_apify_rq.entries.crawlee_keys import extended_key, url_key, url_key_of_javascript
from scrapy_apify_rq.entries.mending import well_formed
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id, start_key
from scrapy_apify_rq.errors import CodecError, RequestQueueError

NAME = "show"
HELP = "Show everything about an entry: its fields, its lock and the Scrapy request made from it"
EXAMPLE = "scrapy rq show https://example.com/product/1"


def add_options(parser: argparse.ArgumentParser) -> None:
    queues.add_options(parser)
    parser.add_argument("entry", metavar="ID_OR_URL", help="its id, or the URL of the request")
    output.add_json_option(
        parser,
        "one object per entry, with entry, state, lock if it is locked, and request or undecodable",
    )


def run(settings: Settings, options: argparse.Namespace) -> None:
    views = queues.run(_views(settings, options))
    if not views:
        raise RequestQueueError(f"there is no entry {options.entry}")
    for view in views:
        if options.json:
            output.print_json(view)
        else:
            _print(view)


async def _views(settings: Settings, options: argparse.Namespace) -> list[dict[str, Any]]:
    async with queues.opened(settings, options, purpose="read") as queue:
        return [
            await _view(queue, entry) async for entry in _find(queue, well_formed(options.entry))
        ]


async def _find(queue: Queue, wanted: str) -> AsyncIterator[Entry]:
    """Find the entry with this id, or the entries with this URL.

    For a URL, try the ids that such an entry usually has. If none exists, read the whole queue.
    """
    is_url = "://" in wanted
    found = False
    for id in _likely_ids(queue, wanted) if is_url else [wanted]:
        if (entry := await queue.get(id)) is not None:
            yield entry
            found = True
    if is_url and not found:
        info = await queue.backend.info()
        async for entry in output.with_progress(queue.backend.list(), "looking", info.total):
            if wanted in (entry.url, entry.loaded_url):
                yield entry


def _likely_ids(queue: Queue, url: str) -> list[str]:
    keys = [url]
    with suppress(ValueError):  # Scrapy does not accept this URL
        key = queue.keys.plain(Request(url))
        keys += [key, start_key(key, 1)]
    keys.append(url_key_of_javascript(url, "GET", b""))
    keys += [url_key(url, "GET", b"", ()), extended_key(url, "GET", b"", ())]
    return [request_id(key) for key in dict.fromkeys(keys)]


async def _view(queue: Queue, entry: Entry) -> dict[str, Any]:
    lock = await queue.backend.lock_of(entry.id)
    view: dict[str, Any] = {
        "state": "locked" if lock else entry.state,
        "entry": json.loads(entry.to_json()),
    }
    if lock:
        view["lock"] = {"clientKey": lock.client_key, "expiresAt": lock.expires_at.isoformat()}
    try:
        view["request"] = request_as_json(queue.converter().decode(entry))
    except CodecError as error:
        view["undecodable"] = str(error)
    return view


def request_as_json(request: Request) -> dict[str, Any]:
    fields = {name: getattr(request, name) for name in request.attributes}
    fields["headers"] = {
        _text(name): _text(b",".join(values)) for name, values in request.headers.items()
    }
    fields["body"] = _text(request.body)
    for name in ("callback", "errback"):
        if fields[name] is not None:
            fields[name] = fields[name].__name__
    fields["class"] = f"{type(request).__module__}.{type(request).__qualname__}"
    return {name: _as_json(value) for name, value in fields.items()}


def _text(value: str | bytes) -> str:
    """Escape what UTF-8 cannot hold: bytes of another encoding, and lone surrogates."""
    raw = value.encode(errors="backslashreplace") if isinstance(value, str) else value
    return raw.decode(errors="backslashreplace")


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_text(str(key)): _as_json(element) for key, element in value.items()}
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, (list, tuple)):
        return [_as_json(element) for element in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value if isinstance(value, (int, float, type(None))) else repr(value)


def _print(view: dict[str, Any]) -> None:
    entry, lock = view["entry"], view.get("lock")
    state = view["state"]
    if lock:
        state += f" by {lock['clientKey']} until {lock['expiresAt']}"
    print(f"{output.printable(entry['url'])}\n  state: {output.printable(state)}")
    # What the Scrapy request shows is not shown twice.
    shown_below = () if "undecodable" in view else ("method", "headers", "payload")
    for name, value in entry.items():
        if name not in ("url", "userData", "errorMessages", *shown_below):
            print(f"  {name}: {_one_line(value)}")
    for number, message in enumerate(entry["errorMessages"], 1):
        print(f"  error {number}: {output.printable(message)}")
    if "undecodable" in view:
        print(f"  userData: {_one_line(entry['userData'])}")
        print(f"This spider cannot crawl it: {output.printable(view['undecodable'])}")
        return
    print("As a Scrapy request:")
    for name, value in view["request"].items():
        if value not in (None, "", [], {}) and (name, value) != ("url", entry["url"]):
            print(f"  {name}: {_one_line(value)}")


def _one_line(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return output.printable(text)
