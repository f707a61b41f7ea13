"""``scrapy rq input-schema``: write the input schema of an Actor from a spider's arguments."""

from __future__ import annotations

import argparse
import json

from scrapy.settings import Settings
from scrapy.spiderloader import get_spider_loader

from scrapy_apify_rq.actor.input_schema import input_schema
from scrapy_apify_rq.commands import output, queues

NAME = "input-schema"
HELP = (
    "Write the input schema of an Actor from the arguments of a spider. The types are those of the"
    " type hints of its __init__; an argument without one is a text"
)
EXAMPLE = "scrapy rq input-schema --spider myspider"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--spider", metavar="NAME", help="the spider; needed if the project has several spiders"
    )
    parser.add_argument(
        "-o",
        "--output",
        default=".actor/input_schema.json",
        metavar="FILE",
        help="where to write it; - is the standard output (default: %(default)s)",
    )


def run(settings: Settings, options: argparse.Namespace) -> None:
    spider = queues.checked_spider(settings, options.spider)
    schema = input_schema(get_spider_loader(settings).load(spider), f"Input of {spider}")
    with output.writing(options.output, make_folder=True) as file:
        file.write(f"{json.dumps(schema, indent=4, ensure_ascii=False)}\n".encode())
