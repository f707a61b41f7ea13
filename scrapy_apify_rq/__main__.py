"""``python -m scrapy_apify_rq`` is ``scrapy crawl`` of the project in this folder.

``apify run`` starts a module that ``scrapy.cfg`` names, and this can be it:

    [apify]
    mainpy_location = scrapy_apify_rq
    spider = shop

Without the last line it is the project's only spider. What follows on the command line are options
of ``scrapy crawl``.
"""

from __future__ import annotations

import sys

from scrapy import cmdline
from scrapy.spiderloader import get_spider_loader
from scrapy.utils.conf import get_config
from scrapy.utils.project import get_project_settings


def main() -> None:
    settings = get_project_settings()
    if not (spider := get_config().get("apify", "spider", fallback="").strip()):
        spiders = get_spider_loader(settings).list()
        if len(spiders) != 1:
            known = ", ".join(sorted(spiders)) or "none"
            sys.exit(_fail(f"write spider = NAME below [apify] in scrapy.cfg. Spiders: {known}"))
        (spider,) = spiders
    cmdline.execute(["scrapy", "crawl", spider, *sys.argv[1:]])


def _fail(text: str) -> int:
    print(f"scrapy_apify_rq: {text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
