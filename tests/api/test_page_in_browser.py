"""The page in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from scrapy.http import Response
from scrapy.settings import Settings

from scrapy_apify_rq.commands.served_project import ServedProject
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from scrapy_apify_rq.server.page import Page
from tests.support.crawling import Crawls
from tests.support.queues import NAME, Queue, serving
from tests.support.spiders import SiteSpider
from tests.support.website import Held, Site, begun, let_go, links

_BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_TOKEN = "madeAtThisStart"
# If any of these texts were taken for HTML, or for a script's address, it would say so.
_EVIL = "<img src=x onerror=\"document.title='hit'\"><script>document.title='hit'</script>"
_EVIL_URL = f"javascript:document.title='hit'//{_EVIL}"


@asynccontextmanager
async def browsing(url: str, **options: Any) -> AsyncIterator[Any]:
    """A page of a browser at this address. What it complains about is an error."""
    playwright = pytest.importorskip("playwright.async_api", reason="Playwright is not there")
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser is there: none of {', '.join(_BROWSERS)}")
    complaints: list[str] = []
    async with playwright.async_playwright() as driver:
        chromium = await driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = await chromium.new_page(**options)
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: said.type == "error" and complaints.append(said.text))
        await page.goto(url)
        yield page
        await chromium.close()
    # Browsers ask for an icon.
    assert not [one for one in complaints if "404" not in one]


class _Shop(SiteSpider):
    def parse(self, response: Response) -> Iterator[Any]:
        yield {"page": response.url}
        yield from response.follow_all(css="a")


async def test_people_watch_and_repair_a_crawl(site: Site, queue: Queue, crawls: Crawls) -> None:
    held = Held("<html>the last one</html>")
    site.serve({"/": links("/shoes", "/gone", "/held"), "/shoes": "x", "/gone": [404, "back"]})
    site.serve({"/held": held})
    crawl = await crawls.start(_Shop, {"CONCURRENT_REQUESTS": 1}, queue=queue, site=site.url)
    await begun(held)
    with serving(queue.folder, None, Page(_TOKEN, ServedProject(Settings()))) as served:
        # As narrow as it gets: nothing may lie outside.
        size = {"width": 320, "height": 640}
        async with browsing(f"{served.api.url}/#token={_TOKEN}", viewport=size) as page:
            numbers = page.locator("#numbers")
            await page.locator("#name", has_text=NAME).wait_for()
            assert _TOKEN not in page.url
            width = "document.documentElement.scrollWidth"
            assert await page.evaluate(width) == 320
            await page.set_viewport_size({"width": 1280, "height": 800})
            await numbers.get_by_text("Failed").locator("xpath=../dd", has_text="1").wait_for()
            # What a crawl that is alone has in progress is not known, and the page says why.
            busy = numbers.get_by_text("In progress").locator("xpath=../dd")
            await busy.get_by_text("\u2013").wait_for()
            await page.keyboard.press("3")
            await page.locator("#list", has_text="Only workers in shared access").wait_for()
            # By keys: the failures, with what went wrong, and the entry with its request.
            await page.keyboard.press("6")
            await page.locator("pre.error", has_text="404").wait_for()
            await page.keyboard.press("j")
            await page.keyboard.press("Enter")
            await page.locator("#entry .pairs", has_text="/gone").wait_for()
            await page.keyboard.press("Escape")
            # All that match go back, with the number first.
            await page.keyboard.press("5")
            await page.locator("#query").fill("/gone")
            await page.get_by_role("button", name="Retry all").click()
            await page.get_by_role("button", name="Retry 1", exact=True).click()
            await page.locator("#notice", has_text="1 entry went back").wait_for()
            await page.get_by_role("button", name="Add").click()
            await page.locator("#ask textarea").fill(f"{site.url}/added")
            await page.locator("#ask-yes").click()
            await page.locator("#notice", has_text="1 added").wait_for()
            # The crawl does it, and the page follows.
            let_go(held)
            await crawl.end()
            handled = numbers.get_by_text("Handled").locator("xpath=../dd")
            await handled.get_by_text(re.compile("^5$")).wait_for()
            await page.get_by_role("button", name="Purge").click()
            assert await page.locator("#ask-yes").is_disabled()
            await page.locator("#ask input").fill(NAME)
            await page.locator("#ask-yes").click()
            await page.locator("#notice", has_text="empty").wait_for()
    assert crawl.paths.count("/gone") == 2
    assert "/added" in crawl.paths
    assert (await queue.info()).total == 0


async def test_no_text_of_an_entry_is_taken_for_code(queue: Queue) -> None:
    fields = {
        "url": _EVIL_URL,
        "method": _EVIL,
        "payload": _EVIL,
        "headers": {_EVIL: _EVIL},
        "userData": {"label": _EVIL, _EVIL: [_EVIL]},
        "errorMessages": [_EVIL],
        "loadedUrl": _EVIL_URL,
    }
    done = Entry(
        id=request_id(_EVIL), unique_key=_EVIL, handled_at="2026-01-02T03:04:05Z", **fields
    )
    pending = Entry(id=request_id("b"), unique_key="b", **(fields | {"errorMessages": []}))
    await queue.add(done, pending)
    with serving(queue.folder, None, Page(_TOKEN, ServedProject(Settings()))) as served:
        served_queue = (await queue.info()).id
        async with browsing(f"{served.api.url}/#token={_TOKEN}") as page:
            await page.locator("tbody tr").nth(1).wait_for()
            # The title of a queue, and the key of a client, come from others, too.
            change = "([path, headers, body]) => fetch(path, {method: 'PUT', headers, body})"
            path = f"/v2/request-queues/{served_queue}"
            headers = {"Authorization": f"Bearer {_TOKEN}", "Content-Type": "application/json"}
            title = json.dumps({"title": _EVIL})
            await page.evaluate(change, [path, headers, title])
            await page.evaluate(
                "([path, headers]) => fetch(path, {method: 'POST', headers})",
                [f"{path}/head/lock?lockSecs=60&clientKey=%3Cb%20id%3Dhit%3E", headers],
            )
            await page.locator("#about", has_text="<img").wait_for()
            for key in "1256":
                await page.keyboard.press(key)
                await page.locator("tbody .open", has_text="<img").first.wait_for()
                await page.locator("tbody .open").first.click()
                await page.locator("#entry[open] h2", has_text="<script>").wait_for()
                assert not await page.locator("#entry a").count()
                await page.keyboard.press("Escape")
            await page.keyboard.press("7")
            await page.locator("tbody", has_text="<b id=hit>").wait_for()
            found = "document.querySelectorAll('img, script:not([src]), #hit').length"
            assert await page.evaluate(found) == 0
            assert "hit" not in await page.title()
            # It says at once that it loads an entry; who closes it meanwhile has closed it.
            held: list[Any] = []
            await page.route("**/page/queues/*/entries/*", lambda call: held.append(call))
            await page.keyboard.press("1")
            await page.locator("tbody .open").first.click()
            await page.locator("#entry[open] h2", has_text="Loading").wait_for()
            await page.keyboard.press("Escape")
            async with page.expect_response("**/page/queues/*/entries/*"):
                await held[0].continue_()
            assert not await page.locator("#entry[open]").count()
        served.api.complaints.clear()  # no client could have added such entries
