"""A process of its own that does with a queue what each line of its standard input names."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from tests.support.backends import PLENTY, Queues, handled, numbered

CONTESTED = 200
LARGE = 2 * 1024 * 1024


async def do_open(backend: Any) -> bool:
    return True


async def do_store(backend: Any) -> None:
    await backend.fill("a", "b", "c")
    await backend.ack("b")


async def do_add(backend: Any) -> list[str]:
    """Add what another process adds, too; the ids that were new."""
    answers = await backend.fill(*numbered(CONTESTED))
    return [answer.id for answer in answers if not answer.was_already_present]


async def do_claim(backend: Any) -> list[str]:
    """Claim half of the entries, of which another process claims half, too."""
    ids: list[str] = []
    while len(ids) < CONTESTED / 2:
        ids += [one.entry.id for one in (await backend.claim(5, (), PLENTY)).entries]
    return ids


async def do_handle(backend: Any) -> tuple[int, int]:
    """Handle all: how many there were, and by how many bytes the memory of this process grew."""
    done: set[str] = set()
    before = most_memory()
    more = True
    while more:
        answer = await backend.claim(1000, done, 4 * LARGE)
        more = answer.more
        for claimed in answer.entries:
            claimed.entry.handled_at = handled("").handled_at
            await backend.put(claimed.entry)
            done.add(claimed.entry.id)
    return len(done), most_memory() - before


def most_memory() -> int:
    """So far, in bytes. In ``ru_maxrss`` a process starts with what its parent had."""
    (kilobytes,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(kilobytes)


async def main(kind: str, folder: str, url: str, prefix: str, lock_secs: str) -> None:
    queues = Queues(kind, Path(folder), url, os.environ["APIFY_TOKEN"], prefix)
    async with queues.open(lock_secs=int(lock_secs) or None) as backend:
        for line in sys.stdin:
            print(json.dumps(await globals()[f"do_{line.strip()}"](backend)), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
