"""Which items of a dataset count: each once, and of each page those of the visit that was acked.

A dataset is only ever appended to, and an item is in it before its page is acked. So a push whose
answer was lost is there twice, and a page that was fetched again after a kill has the items of both
visits. An item therefore names its turn: a visit of a page, counted in each run.

* Of the turns of one page (and one retry of it), that one counts which the entry names: its update,
  the ack or that of the retry, has come. GETs are exact, so no lag of a list matters, nor what a
  killed run pushes late.
* An item also says up to where the turns of its run were acked, so few entries are looked at: those
  of turns that are not known to be. Where nothing else is known, the last acked turn counts.
* Of a single turn, items count once, by their numbers, which grow.

What is known grows with the number of pages, so it is in a temporary file.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Mapping
from typing import Final, NamedTuple

from scrapy_apify_rq.entries.dataset_form import About, turn_name

_SCHEMA: Final = """
    CREATE TABLE pages (name TEXT PRIMARY KEY, turn TEXT NOT NULL, seen INTEGER NOT NULL)
    WITHOUT ROWID
"""


class Page(NamedTuple):
    """One try of an entry, of which there may be several turns."""

    entry: str
    retry: int

    @property
    def name(self) -> str:
        return f"{self.entry}:{self.retry}"


class ValidItems:
    """``note`` all items in their order, then ``settle``, then ask whether each ``counts``."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)  # SQLite deletes the file by itself
        self._db.execute(_SCHEMA)
        self._db.execute("BEGIN")
        self.keys: set[str] = set()
        """Those of items without an entry."""
        self._done: defaultdict[str, int] = defaultdict(int)
        """By run: all its turns before this one were acked."""
        self._open: defaultdict[str, dict[int, Page]] = defaultdict(dict)
        """By run: its later turns."""
        self._repeated: defaultdict[Page, list[str]] = defaultdict(list)
        """The turns of pages that have several."""

    def close(self) -> None:
        self._db.close()

    def note(self, about: About) -> None:
        name, turn = _names(about)
        found = self._db.execute("SELECT turn FROM pages WHERE name = ?", (name,)).fetchone()
        if found is None:
            self._db.execute("INSERT INTO pages VALUES (?, ?, -1)", (name, turn))
        if about.entry is None:
            self.keys.add(about.key or "")
            return
        page = Page(about.entry, about.retry)
        if found is not None and found[0] != turn:
            turns = self._repeated[page]
            turns += [one for one in (found[0], turn) if one not in turns]
        if about.done > self._done[about.run]:
            self._done[about.run] = about.done
            before = self._open[about.run]
            later = {turn: page for turn, page in before.items() if turn >= about.done}
            self._open[about.run] = later
        if about.turn >= self._done[about.run]:
            self._open[about.run][about.turn] = page

    def open_entries(self) -> set[str]:
        """Return the ids of entries that are not known to be acked."""
        return {page.entry for pages in self._open.values() for page in pages.values()}

    def settle(self, valid: Mapping[str, Mapping[str, str] | None]) -> None:
        """Decide which turns count. ``valid`` are those that the open entries name, by try; None
        for an entry that was deleted, whose items stay.
        """
        open_turns = {
            turn_name(run, turn): page
            for run, turns in self._open.items()
            for turn, page in turns.items()
        }
        pages = dict(self._repeated)
        for turn, page in open_turns.items():
            pages.setdefault(page, [turn])
        for page, turns in pages.items():
            acked = [turn for turn in turns if turn not in open_turns]
            best = acked[-1] if acked else ""
            named = valid.get(page.entry)
            if named is not None and named.get(str(page.retry)) in turns:
                best = named[str(page.retry)]
            elif named is None and not acked:
                best = turns[-1]
            self._db.execute("UPDATE pages SET turn = ? WHERE name = ?", (best, page.name))

    def counts(self, about: About) -> bool:
        """Return whether the item counts and was not asked about before."""
        name, turn = _names(about)
        query = "UPDATE pages SET seen = ? WHERE name = ? AND turn = ? AND seen < ?"
        values = (about.number, name, turn, about.number)
        return self._db.execute(query, values).rowcount == 1


def _names(about: About) -> tuple[str, str]:
    """The page of an item, and its turn. An item without a page has only a key."""
    if about.entry is None:
        return f"*{about.key}", ""
    return Page(about.entry, about.retry).name, turn_name(about.run, about.turn)
