"""All hosts get equally many places among the entries that are claimed."""

from __future__ import annotations

import pytest

from scrapy_apify_rq.backends.fairness import choose_fairly


@pytest.mark.parametrize(
    ("lines", "limit", "share", "known", "chosen", "more"),
    [
        (["aaaa", "bb", "c"], 7, 9, "", "aaaabbc", False),
        (["aaaa", "bb", "c"], 6, 9, "", "aaabbc", True),
        (["aaaa", "bb", "c"], 3, 9, "", "abc", True),
        (["aaaa", "bb"], 1, 9, "", "a", True),
        (["aaaa", "bb"], 9, 2, "", "aabb", True),
        (["aaa", "bbb"], 2, 9, "a", "bb", True),  # known ones take places of their host
        (["aaa", "bbb"], 9, 2, "a", "bb", True),
        (["aaa", "bbb"], 9, 9, "ab", "", False),
        (["", "a"], 1, 1, "", "a", True),
        ([], 5, 5, "", "", False),
    ],
)
def test_choice(
    lines: list[str], limit: int, share: int, known: str, chosen: str, more: bool
) -> None:
    found = choose_fairly(map(iter, lines), limit, share, lambda one: one not in known)
    assert ("".join(sorted(found[0])), found[1]) == (chosen, more)
