"""``scrapy rq queues``: list the queues that there are."""

from __future__ import annotations

import argparse

from scrapy.settings import Settings

from scrapy_apify_rq.commands import output, queues

NAME = "queues"
HELP = (
    "List the request queues that have names, the newest first. They are those of the account, or"
    " those in APIFY_RQ_STORAGE_DIR if there is no token"
)
EXAMPLE = "scrapy rq queues"


def add_options(parser: argparse.ArgumentParser) -> None:
    queues.add_spider_option(parser)
    output.add_json_option(parser, "one object per line, with name, about, total and pending")


def run(settings: Settings, options: argparse.Namespace) -> None:
    known, location = queues.run(queues.existing(settings, options))
    if options.json:
        for queue in known:
            output.print_json(queue._asdict())
    elif known:
        rows = [(queue.name, queue.total, queue.pending, queue.about or "") for queue in known]
        output.show(output.table(("NAME", "TOTAL", "PENDING", "ABOUT"), rows))
    else:
        output.say(f"there is no queue with a name in {location}")
