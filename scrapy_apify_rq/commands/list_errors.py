"""``scrapy rq errors``: show why entries failed."""

from __future__ import annotations

import argparse
from typing import Final

from scrapy.settings import Settings

from scrapy_apify_rq.commands import output, queues
from scrapy_apify_rq.entries.models import Entry

NAME = "errors"
HELP = "Group the failed entries by their last error message, with one example per group"
EXAMPLE = "scrapy rq errors"
# Messages that contain their page's URL are all different. This keeps memory bounded.
_MAX_GROUPS: Final = 10_000
_OTHER_MESSAGES: Final = "(other messages)"
# An entry fails without a message if another client has written a negative retryCount.
_NO_MESSAGE: Final = "(no message)"


def add_options(parser: argparse.ArgumentParser) -> None:
    queues.add_options(parser)
    output.add_json_option(parser, "one object per line, with count, message, id and url")


def run(settings: Settings, options: argparse.Namespace) -> None:
    groups = queues.run(_groups(settings, options))
    if not groups:
        output.say("no entry has failed")
        return
    ordered = sorted(groups.items(), key=lambda group: -group[1][0])
    if options.json:
        for message, (count, example) in ordered:
            output.print_json(
                {"count": count, "message": message, "id": example.id, "url": example.url}
            )
    else:
        rows = [(count, message, example.url) for message, (count, example) in ordered]
        output.show(output.table(("COUNT", "MESSAGE", "FOR EXAMPLE"), rows))


async def _groups(settings: Settings, options: argparse.Namespace) -> dict[str, tuple[int, Entry]]:
    """For each message, the number of entries and the first of them."""
    groups: dict[str, tuple[int, Entry]] = {}
    async with queues.opened(settings, options, purpose="read") as queue:
        async for entry in output.with_progress(queue.backend.list("failed"), "reading", None):
            message = entry.error_messages[-1] if entry.error_messages else _NO_MESSAGE
            if message not in groups and len(groups) >= _MAX_GROUPS:
                message = _OTHER_MESSAGES
            count, example = groups.get(message, (0, entry))
            groups[message] = (count + 1, example)
    return groups
