"""Encrypted fields of an input, as the SDK encrypts them, and the platform."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from scrapy.settings import Settings

from scrapy_apify_rq.actor.secrets import decrypted
from scrapy_apify_rq.config import Config
from scrapy_apify_rq.errors import ConfigError

PASSPHRASE = "passphrase"


def test_secrets() -> None:
    crypto = pytest.importorskip("apify._crypto")
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(PASSPHRASE.encode()),
    )

    def sealed(kind: str, text: str) -> str:
        parts = crypto.public_encrypt(text, public_key=private.public_key())
        return f"{kind}:{parts['encrypted_password']}:{parts['encrypted_value']}"

    key = base64.b64encode(pem).decode()
    no_key = Config.from_settings(Settings(), {}, None).run
    run = replace(no_key, secrets_key=key, secrets_passphrase=PASSPHRASE)
    clear = {"password": "päss", "proxies": {"a": [1]}, "plain": "ENCRYPTED_VALUE:", "n": 3}
    given = {**clear, "password": sealed("ENCRYPTED_VALUE", "päss")}
    given["proxies"] = sealed("ENCRYPTED_JSON", '{"a": [1]}').replace(":", ":c2NoZW1h:", 1)
    assert decrypted(given, run) == clear
    assert decrypted(clear, no_key) == clear
    assert key not in repr(run)
    broken = {**given, "password": given["password"][:-8] + "AAAAAAA="}
    for values, environment, problem in (
        (given, no_key, "password: it is encrypted, and this run has no key"),
        (given, replace(run, secrets_passphrase="other"), "password: .* key of this run is not va"),
        (broken, run, "password: it is encrypted, and not for the key of this run"),
    ):
        with pytest.raises(ConfigError, match=problem):
            decrypted(values, environment)
