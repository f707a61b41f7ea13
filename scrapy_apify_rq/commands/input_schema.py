"""``scrapy rq input-schema``: write the input schema of an Actor from a spider's arguments."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from scrapy.exceptions import UsageError
from scrapy.settings import Settings
from scrapy.spiderloader import get_spider_loader

from scrapy_apify_rq.actor.input_schema import input_schema
from scrapy_apify_rq.commands import output

NAME = "input-schema"
HELP = (
    "Write the input schema of an Actor from the arguments of a spider. The types are those of the"
    " type hints of its __init__; an argument without one is a text"
)
EXAMPLE = "scrapy rq input-schema myspider"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spider", help="the name of the spider")
    parser.add_argument(
        "-o",
        "--output",
        default=".actor/input_schema.json",
        metavar="FILE",
        help="where to write it; - is the standard output (default: %(default)s)",
    )


def run(settings: Settings, options: argparse.Namespace) -> None:
    loader = get_spider_loader(settings)
    if options.spider not in loader.list():
        known = ", ".join(sorted(loader.list())) or "none; run this in the folder of the project"
        raise UsageError(f"there is no spider {options.spider!r} here. Spiders: {known}")
    schema = input_schema(loader.load(options.spider), f"Input of {options.spider}")
    if options.output != "-":
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    with output.writing(options.output) as file:
        file.write(f"{json.dumps(schema, indent=4, ensure_ascii=False)}\n".encode())
