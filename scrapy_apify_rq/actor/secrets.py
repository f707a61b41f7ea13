"""Fields of an input that the platform has encrypted, because its schema says ``isSecret``.

https://docs.apify.com/platform/actors/development/actor-definition/input-schema/secret-input

Such a value is a text: ``ENCRYPTED_VALUE:`` or ``ENCRYPTED_JSON:``, perhaps a digest of the schema,
a password that only the run's private key opens (RSA-OAEP), and what that password opens (AES-GCM).
Only runs on the platform have the key.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from scrapy_apify_rq.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    from scrapy_apify_rq.run_environment import RunEnvironment

_BASE64: Final = "[A-Za-z0-9+/]+={0,2}"
_ENCRYPTED: Final = re.compile(
    f"(ENCRYPTED_VALUE|ENCRYPTED_JSON):(?:{_BASE64}:)?({_BASE64}):({_BASE64})"
)
# Bytes of the key in the password. The rest is AES-GCM's nonce.
_KEY: Final = 32


def decrypted(values: Mapping[str, Any], run: RunEnvironment) -> dict[str, Any]:
    """The same input in clear text. Raises ConfigError, which names the field."""
    secrets = {
        name: match
        for name, value in values.items()
        if isinstance(value, str) and (match := _ENCRYPTED.fullmatch(value))
    }
    if not secrets:
        return dict(values)
    key = _private_key(next(iter(secrets)), run)
    return {**values, **{name: _open(name, match, key) for name, match in secrets.items()}}


def _private_key(name: str, run: RunEnvironment) -> RSAPrivateKey:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if run.secrets_key is None or run.secrets_passphrase is None:
        raise ConfigError(
            f"{name}: it is encrypted, and this run has no key to open it, as only runs on the"
            " platform have. Elsewhere, write the value itself into the input"
        )
    try:
        pem = base64.b64decode(run.secrets_key)
        key = load_pem_private_key(pem, run.secrets_passphrase.encode())
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, RSAPrivateKey):
        raise ConfigError(
            f"{name}: it is encrypted, and the key of this run is not valid, which the variables"
            " APIFY_INPUT_SECRETS_PRIVATE_KEY_FILE and APIFY_INPUT_SECRETS_PRIVATE_KEY_PASSPHRASE"
            " hold. Start another run"
        )
    return key


def _open(name: str, match: re.Match[str], key: RSAPrivateKey) -> Any:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA1

    kind, sealed_password, sealed = match.groups()
    try:
        padding = OAEP(MGF1(SHA1()), SHA1(), None)
        password = key.decrypt(base64.b64decode(sealed_password), padding)
        opened = AESGCM(password[:_KEY]).decrypt(password[_KEY:], base64.b64decode(sealed), None)
        text = opened.decode()
        return json.loads(text) if kind == "ENCRYPTED_JSON" else text
    except (ValueError, InvalidTag):
        # Without the error, which may quote the secret.
        raise ConfigError(
            f"{name}: it is encrypted, and not for the key of this run. Enter the value once more"
        ) from None
