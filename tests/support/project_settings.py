"""Settings of all projects whose processes are tested; each has a ``settings.py`` with its own."""

import os

from scrapy_apify_rq.actor import events
from scrapy_apify_rq.backends.apify.queue import ApifyBackend

ADDONS = {"scrapy_apify_rq.Addon": 500}
APIFY_RQ_RETRY_DELAY = 0
EXTENSIONS = {
    "tests.support.stats_file.StatsFile": 0,
    # Newer versions of Scrapy import a web server for it.
    "scrapy.extensions.remote_control.RemoteControl": None,
}
# For each page, Scrapy makes as many tasks as this, 100 by default.
CONCURRENT_ITEMS = 8
ROBOTSTXT_OBEY = False
TELNETCONSOLE_ENABLED = False
LOG_LEVEL = "DEBUG"

# Our server's answers lag only when told to; the real delay would cost each crawl three seconds.
ApifyBackend.consistency_delay = float(os.environ.get("TESTS_CONSISTENCY_DELAY", "0.2"))
# Seconds that an Actor run has to stop, which are 30 otherwise.
events._TIME_TO_STOP = 3.0
