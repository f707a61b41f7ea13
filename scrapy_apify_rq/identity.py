"""Which queue does a crawl use if the settings name none? One for each bot, spider and arguments.

    bot-spider                   without arguments
    bot-spider-{8 hex digits}    the same, where a queue cannot have that name
    bot-spider-{12 hex digits}   with arguments, or where the name could be read in two ways

Version 0.1.0 knew no arguments, and only the first two forms. Its names stand where they are
unambiguous: the bot ends at the first hyphen, and the last part does not look like our digits.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Final, NamedTuple

from scrapy_apify_rq.limits import NAME_LENGTH, is_name

_FIRST_EDITION_DIGITS: Final = 8
_DIGITS: Final = 12
_WITH_DIGITS: Final = re.compile(rf"-[0-9a-f]{{{_FIRST_EDITION_DIGITS}}}|-[0-9a-f]{{{_DIGITS}}}")
# Arguments may hold a password, and whoever sees the name of a queue could try all likely ones.
# With this many rounds a try takes 0.05 s, and so does the start of a crawl with arguments. Not
# scrypt, which OpenSSL lacks in its FIPS mode.
_ROUNDS: Final = 100_000


class Arguments(NamedTuple):
    """The arguments of a spider. ``entries.arguments`` makes it."""

    canonical: str = ""
    """The same text for the same arguments, empty if there are none. It may hold secrets."""
    names: str = ""
    """For people: "site, token"."""
    shown: str = ""
    """For the user only: "site='a', token=***"."""
    vague: str = ""
    """Names of arguments of which only the type counts."""

    def __repr__(self) -> str:
        return f"Arguments({self.names})"


NO_ARGUMENTS: Final = Arguments()


def default_name(bot: str, spider: str, arguments: str = "") -> str:
    """``arguments`` is their canonical text."""
    plain = f"{bot}-{spider}"
    if not arguments and "-" not in bot:
        if not is_name(plain):
            digest = hashlib.sha256(plain.encode()).hexdigest()
            return _with_digits(plain, digest[:_FIRST_EDITION_DIGITS])
        if not _ends_with_digits(plain):
            return plain
    salt = json.dumps([bot, spider]).encode()
    digest = hashlib.pbkdf2_hmac("sha256", arguments.encode(), salt, _ROUNDS).hex()
    return _with_digits(plain, digest[:_DIGITS])


def may_belong_to(name: str, bot: str, spider: str) -> bool:
    """Whether ``name`` may be the default name of this spider with any arguments."""
    digits = name[-_DIGITS:]
    return name == default_name(bot, spider) or (
        _ends_with_digits(name) and name == _with_digits(f"{bot}-{spider}", digits)
    )


def _ends_with_digits(name: str) -> bool:
    return _WITH_DIGITS.fullmatch(name, max(name.rfind("-"), 0)) is not None


def _with_digits(plain: str, digits: str) -> str:
    readable = re.sub(r"[^a-zA-Z0-9-]", "-", plain)[: NAME_LENGTH - len(digits) - 1]
    return f"{readable.strip('-')}-{digits}".lstrip("-")
