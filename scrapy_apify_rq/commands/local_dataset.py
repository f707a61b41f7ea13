"""A dataset in the layout of Apify's local storage: what its SDK and ``apify run`` read and go on
with.
"""

from __future__ import annotations

import json
import secrets
import shutil
import string
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from scrapy_apify_rq.errors import RequestQueueError
from scrapy_apify_rq.limits import ID_LENGTH

_METADATA: Final = "__metadata__.json"


@contextmanager
def writing(storage: str) -> Iterator[Callable[[bytes], None]]:
    """Write the default dataset of this folder, item by item. It is there once it is complete.

    Raises RequestQueueError if there is one with items: they may be of a run.
    """
    folder = Path(storage) / "datasets" / "default"
    part = folder.with_name(f"{folder.name}.part")
    count = 0

    def write(item: bytes) -> None:
        nonlocal count
        count += 1
        (part / f"{count:09}.json").write_bytes(item)

    try:
        _check(folder)
        shutil.rmtree(part, ignore_errors=True)  # of an export that was killed
        part.mkdir(parents=True)
        yield write
        (part / _METADATA).write_text(_metadata(count))
        _check(folder)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except OSError as error:
        raise RequestQueueError(f"cannot write {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check(folder: Path) -> None:
    if folder.exists() and any(file.name != _METADATA for file in folder.iterdir()):
        raise RequestQueueError(
            f"{folder} has items already: remove it, or choose another folder with --storage"
        )


def _metadata(count: int) -> str:
    alphabet = string.ascii_letters + string.digits
    now = str(datetime.now(UTC))
    data = {
        "id": "".join(secrets.choice(alphabet) for _ in range(ID_LENGTH)),
        "name": None,
        "accessed_at": now,
        "created_at": now,
        "modified_at": now,
        "item_count": count,
    }
    return json.dumps(data, indent=2)
