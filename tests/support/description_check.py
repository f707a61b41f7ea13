"""A checked ``scrapy rq serve``. It goes with tests/server.py, which alone uses it."""

from __future__ import annotations

import sys
from pathlib import Path

from scrapy import cmdline

from scrapy_apify_rq.server import application as server
from tests.support.api_description import checked

application = server.application


def _application(*args, **options):
    app = application(*args, **options)
    checked(app, lambda complaint: print(complaint, file=sys.stderr, flush=True))
    return app


if __name__ == "__main__":
    server.application = _application
    sys.argv[0] = str(Path(sys.argv[0]).with_name("scrapy"))
    cmdline.execute(["scrapy", "rq", "serve", *sys.argv[1:]])
