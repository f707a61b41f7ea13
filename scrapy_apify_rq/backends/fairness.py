"""Which pending entries to claim, so that no host gets all the room."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

_T = TypeVar("_T")


def choose_fairly(
    lines: Iterable[Iterator[_T]], limit: int, share: int, is_new: Callable[[_T], bool]
) -> tuple[list[_T], bool]:
    """Take up to ``limit`` new ones from the heads of these lines, and say whether there are more.

    The lines get equally many places, up to ``share``, as far as they have so many; those of theirs
    that are not new take places, too.
    """
    left = [(line, 0) for line in lines]
    chosen: list[_T] = []
    is_cut = False
    while left and len(chosen) < limit:
        quota = max((limit - len(chosen)) // len(left), 1)
        longer = []
        for line, before in left:
            asked = min(quota, share - before)
            found = list(islice(line, asked))
            chosen += filter(is_new, found)
            if len(found) < asked:
                continue
            if before + asked < share:
                longer.append((line, before + asked))
            else:
                is_cut = True
        left = longer
    more = is_cut or len(chosen) > limit or any(is_new(one) for line, _ in left for one in line)
    return chosen[:limit], more
