"""Those of ``project_settings``, for projects whose queue is behind the API."""

from scrapy_apify_rq.backends.apify.queue import ApifyBackend
from tests.support.project_settings import *  # noqa: F403

# Our server's answers lag only when told to; the real delay would cost each crawl three seconds.
ApifyBackend.consistency_delay = 0.2
