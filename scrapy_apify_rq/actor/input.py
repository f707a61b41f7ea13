"""The input of an Actor run: one JSON object, read and checked before the crawl begins.

On the platform it is a record of the run's key-value store. Under ``apify run`` it is a file below
the storage folder. https://docs.apify.com/platform/actors/development/actor-definition/input-schema
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from scrapy_apify_rq.actor.secrets import decrypted
from scrapy_apify_rq.entries.mending import well_formed_json
from scrapy_apify_rq.errors import BackendError, ConfigError

if TYPE_CHECKING:
    from scrapy_apify_rq.config import Config

# Which file of a record it is depends on who wrote it.
_ENDINGS: Final = ("", ".json", ".bin")
_EXAMPLE: Final = 'Write an object, such as {"maxRequestsPerCrawl": 100}'
_NOT_BEGUN: Final = "The crawl has not begun, since it would not be the one that was asked for."


def has_input(config: Config) -> bool:
    """Whether this process is an Actor run, and whether the project wants its input."""
    run = config.run
    return config.input and (_is_remote(config) or run.local_folder is not None)


def read_input(config: Config) -> dict[str, Any]:
    """Return the input; empty if the run has none.

    Raises ConfigError if it is not a JSON object, BackendError if it cannot be read.
    """
    body = _remote(config) if _is_remote(config) else _local(config)
    if body is None:
        return {}
    name = f"The input (record {config.run.input_key!r})"
    try:
        # Lone surrogates could neither be sent to a site nor stored.
        value = json.loads(well_formed_json(body))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is not JSON: {error}. {_EXAMPLE}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{name} is not a JSON object. {_EXAMPLE}")
    return decrypted(value, config.run)


def _is_remote(config: Config) -> bool:
    return config.run.key_value_store_id is not None and config.token is not None


def _remote(config: Config) -> bytes | None:
    # Imported late: a run on the user's machine has no use for it.
    from scrapy_apify_rq.backends.apify import blocking

    store, key = str(config.run.key_value_store_id), config.run.input_key
    url = f"{config.api_base_url}/v2/key-value-stores/{quote(store, '')}/records/{quote(key, '')}"
    try:
        return blocking.get(url, what=f"The run's input (record {key!r})", token=config.token)
    except BackendError as error:
        raise BackendError(
            f"{error}. {_NOT_BEGUN} See that APIFY_TOKEN may read it, and start the run again."
        ) from None


def _local(config: Config) -> bytes | None:
    folder, key = config.run.local_folder, config.run.input_key
    if folder is None or "/" in key or "\\" in key:
        return None
    for ending in _ENDINGS:
        path = folder / "key_value_stores" / "default" / f"{key}{ending}"
        try:
            return path.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise BackendError(
                f"{path} cannot be read: {error.strerror}. {_NOT_BEGUN} Make it a file that this"
                " user may read, and run it again."
            ) from None
    return None
