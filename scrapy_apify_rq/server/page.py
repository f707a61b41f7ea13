"""The page at ``/``: its files, and the calls that only it makes, below ``/page``.

The page uses the API where the API has what it needs: the list of queues, and a whole entry. The
rest is here, outside of ``/v2``. The API cannot count failed entries, list handled ones or search;
a retry over it takes two calls for each entry, in which the crawl may change it; and whoever lists
or adds requests over it counts as a client, which would tell a crawl that it is not alone.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any, Final, NamedTuple

from aiohttp import hdrs, web

from scrapy_apify_rq.backends.sqlite.store import Store
from scrapy_apify_rq.server.access import PageAccess
from scrapy_apify_rq.server.calls import Calls, Operation
from scrapy_apify_rq.server.page_changes import Changes
from scrapy_apify_rq.server.page_views import Views
from scrapy_apify_rq.server.project import Project

_FILES: Final = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
# Entries hold what strangers wrote. If a text of theirs became a part of the page all the same, it
# could load and run nothing, and send nothing elsewhere.
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    hdrs.CACHE_CONTROL: "no-cache",
}


class Page(NamedTuple):
    """``token`` is what the page has to send: the server's own, or one that is made at each start.
    ``project`` is whose queues they are.
    """

    token: str
    project: Project


def page_routes(
    store: Store, page: Page, host: str, *, has_servers_token: bool
) -> list[web.RouteDef]:
    """The page ``has_servers_token`` if the server has one."""
    calls = Calls(store, PageAccess(page.token, host, is_servers=has_servers_token))
    views, changes = Views(store, page.project), Changes(store, page.project)
    operations: dict[str, dict[str, Any]] = {
        "": {"GET": views.overview},
        "/history": {"GET": views.history},
        "/entries": {"GET": views.entries},
        "/failures": {"GET": views.failures},
        "/entries/{id}": {"GET": views.entry},
        "/export": {"GET": views.export},
        "/count": {"POST": changes.count},
        "/retry": {"POST": changes.retry},
        "/add": {"POST": changes.add},
        "/purge": {"POST": changes.purge},
    }
    return [
        *(web.get(path, _file(name, kind)) for path, (name, kind) in _FILES.items()),
        *(
            web.route(
                "*",
                f"/page/queues/{{queue}}{path}",
                calls.handler(
                    f"/page{path}",
                    {verb: Operation(answer, client=False) for verb, answer in by_verb.items()},
                ),
            )
            for path, by_verb in operations.items()
        ),
    ]


def _file(name: str, kind: str) -> Any:
    """Serve a file to anybody: it holds no data, and a browser asks for it without a token."""
    text = files("scrapy_apify_rq.server").joinpath("static", name).read_text(encoding="utf-8")

    async def handle(_: web.Request) -> web.Response:
        return web.Response(text=text, content_type=kind, charset="utf-8", headers=_HEADERS)

    return handle
