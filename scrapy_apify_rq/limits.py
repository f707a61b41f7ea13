"""What the platform allows. Our client keeps to it, and our server refuses anything else.

Sources: https://docs.apify.com/platform/storage/request-queue#rate-limiting,
https://docs.apify.com/api/v2/storage-request-queues, and, for names, the checks of its
clients (@apify/consts).
"""

from __future__ import annotations

import re
from typing import Final

# Calls per second and queue: those for one entry; batches and head/lock; all others.
CRUD_RATE: Final = 400
BATCH_RATE: Final = 40
OTHER_RATE: Final = 60
# Entries in a batch; also the most that one call locks.
MAX_BATCH: Final = 25
# Bytes of an uncompressed body.
MAX_BODY: Final = 9 * 1024 * 1024
METHODS: Final = frozenset(
    ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
)
# Characters.
NAME_LENGTH: Final = 63
CLIENT_KEY_LENGTH: Final = 32
ID_LENGTH: Final = 17

_NAME: Final = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?")
_ID: Final = re.compile(rf"[a-zA-Z0-9]{{{ID_LENGTH}}}")


def is_name(text: str) -> bool:
    """Return whether a queue can have this name."""
    return len(text) <= NAME_LENGTH and _NAME.fullmatch(text) is not None


def is_id(text: str) -> bool:
    """Return whether a queue can have this id."""
    return _ID.fullmatch(text) is not None
