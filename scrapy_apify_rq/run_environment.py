"""What an Actor run finds in its environment, on the platform and under ``apify run``.

https://docs.apify.com/platform/actors/development/programming-interface/environment-variables

``apify run`` gives a run on the user's machine a storage folder, the key of the input and, when
the user is logged in, a token; but no ids, and not ``APIFY_IS_AT_HOME``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Final

from scrapy_apify_rq.setting_readers import (
    LOCAL_DEFAULT_STORAGE,
    RUN_ID_VARIABLES,
    STORAGE_DIR_VARIABLES,
    STORE_VARIABLES,
    Source,
    is_at_home,
    storage_folder,
    wrong,
)

# The newer name first. The CLI sets all three.
_INPUT_KEY_VARIABLES: Final = ("ACTOR_INPUT_KEY", "APIFY_INPUT_KEY", "CRAWLEE_INPUT_KEY")
_PURGE_VARIABLES: Final = ("CRAWLEE_PURGE_ON_START", "APIFY_PURGE_ON_START")
_CHARGE_VARIABLES: Final = ("ACTOR_MAX_TOTAL_CHARGE_USD", "APIFY_MAX_TOTAL_CHARGE_USD")
_PROXY_HOST: Final = "proxy.apify.com"
_PROXY_PORT: Final = "8000"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnvironment:
    """Everything is None or a default outside of a run."""

    id: str | None
    """On the platform only."""
    input_key: str
    key_value_store_id: str | None
    """On the platform only: where the input is."""
    local_folder: Path | None
    """The storage folder of a run on the user's machine."""
    purge: bool | None
    """Whether ``apify run`` asks for a fresh crawl. False does not say that it has not emptied the
    storages itself; None: there is no such run."""
    max_charge: Decimal | None
    """In US dollars: where the user wants the run to stop."""
    proxy_password: str | None = field(repr=False)
    secrets_key: str | None = field(repr=False)
    """It opens encrypted fields of the input: PEM in base64."""
    secrets_passphrase: str | None = field(repr=False)
    proxy_address: str
    """Of Apify Proxy, without a password."""


def read(source: Source) -> RunEnvironment:
    id = source.variable(RUN_ID_VARIABLES)
    key = source.variable(_INPUT_KEY_VARIABLES)
    store = source.variable(STORE_VARIABLES)
    is_elsewhere = store is not None and store[1] != LOCAL_DEFAULT_STORAGE
    folder = None if is_at_home(source) else source.variable(STORAGE_DIR_VARIABLES)
    purge = source.variable(_PURGE_VARIABLES)
    password = source.variable(["APIFY_PROXY_PASSWORD"])
    secrets_key = source.variable(["APIFY_INPUT_SECRETS_PRIVATE_KEY_FILE"])
    passphrase = source.variable(["APIFY_INPUT_SECRETS_PRIVATE_KEY_PASSPHRASE"])
    host = source.variable(["APIFY_PROXY_HOSTNAME"]) or ("", _PROXY_HOST)
    port = source.variable(["APIFY_PROXY_PORT"]) or ("", _PROXY_PORT)
    return RunEnvironment(
        id=id[1] if id else None,
        input_key=key[1] if key else "INPUT",
        key_value_store_id=store[1] if store is not None and is_elsewhere else None,
        local_folder=storage_folder(*folder) if folder else None,
        purge=purge[1].lower() in ("1", "true") if folder and purge else None,
        max_charge=_max_charge(source),
        proxy_password=password[1] if password else None,
        secrets_key=secrets_key[1] if secrets_key else None,
        secrets_passphrase=passphrase[1] if passphrase else None,
        proxy_address=f"http://{host[1]}:{port[1]}",
    )


def _max_charge(source: Source) -> Decimal | None:
    variable = source.variable(_CHARGE_VARIABLES)
    if variable is None:
        return None
    try:
        amount = Decimal(variable[1])
    except InvalidOperation:
        raise wrong(*variable, "write an amount of dollars, or unset the variable") from None
    # As in Apify's SDKs, 0 is no limit.
    return amount if amount.is_finite() and amount > 0 else None
