"""Settings of all projects whose processes are tested; each has a ``settings.py`` with its own.

A process imports what they name, so they name what a crawl on the embedded queue needs, no more.
"""

import os

from scrapy.settings import default_settings

ADDONS = {"scrapy_apify_rq.Addon": 500}
APIFY_RQ_RETRY_DELAY = 0
# Newer versions of Scrapy have an extension that imports a web server, even if it is disabled.
EXTENSIONS_BASE = {
    name: order
    for name, order in default_settings.EXTENSIONS_BASE.items()
    if not name.endswith(".RemoteControl")
}
EXTENSIONS = {"tests.support.stats_file.StatsFile": 0}
# For each page, Scrapy makes as many tasks as this, 100 by default.
CONCURRENT_ITEMS = 8
ROBOTSTXT_OBEY = False
TELNETCONSOLE_ENABLED = False
LOG_LEVEL = "DEBUG"

if "ACTOR_EVENTS_WEBSOCKET_URL" in os.environ:
    from scrapy_apify_rq.actor import events

    # Seconds that an Actor run has to stop, which are 30 otherwise.
    events._TIME_TO_STOP = 3.0
