"""Credentials of the clients in the measurements: keys, tokens, and garbage that looks like a token."""

import base64
import hashlib
import json
import os
import secrets
import string
import time
import uuid
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain
from multiprocessing import get_context

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

TOKEN_LIFE_S = 3600
# Tokens that one process signs. A signature takes about a millisecond, and a process half a second to start.
SHARE = 2_000


def base62(length: int) -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(length))


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def signing_key_pem() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    encoding = serialization.Encoding.PEM
    return key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()


def new_api_key() -> str:
    return f"apx_live_sk_{base62(32)}"


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _sign(private_key_pem: bytes, signed_texts: list[str]) -> list[str]:
    key = serialization.load_pem_private_key(private_key_pem, password=None)
    return [
        f"{text}.{base64url(key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()))}" for text in signed_texts
    ]


class Issuer:
    """An issuer that signs tokens with one RSA key of 2048 bits: the gateway or an identity provider."""

    def __init__(self, url: str, kid: str, typ: str, claims: dict, life_s: int = TOKEN_LIFE_S) -> None:
        self.url = url
        self.life_s = life_s
        self.header = {"alg": "RS256", "typ": typ, "kid": kid}
        self.claims = {"iss": url} | claims
        self.private_key_pem = signing_key_pem()
        self._tokens: list[str] = []

    def jwks(self) -> dict:
        key = serialization.load_pem_private_key(self.private_key_pem.encode(), password=None)
        numbers = key.public_key().public_numbers()
        public = {"n": base64url(numbers.n.to_bytes(256, "big")), "e": base64url(numbers.e.to_bytes(3, "big"))}
        return {"keys": [{"kty": "RSA", "use": "sig", "alg": "RS256", "kid": self.header["kid"]} | public]}

    def _signed_text(self, **claims) -> str:
        now = int(time.time())
        payload = self.claims | {"iat": now, "exp": now + self.life_s, "jti": str(uuid.uuid4())} | claims
        return ".".join(base64url(json.dumps(part, separators=(",", ":")).encode()) for part in (self.header, payload))

    def token(self, **claims) -> str:
        return _sign(self.private_key_pem.encode(), [self._signed_text(**claims)])[0]

    def tokens(self, count: int) -> list[str]:
        """Returns distinct tokens. They are signed once for each issuer, and all rows share them."""
        missing = [self._signed_text() for _ in range(count - len(self._tokens))]
        shares = [missing[start : start + SHARE] for start in range(0, len(missing), SHARE)]
        sign = partial(_sign, self.private_key_pem.encode())
        if len(shares) > 1:
            # `spawn`, because a process with threads must not be forked.
            with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
                signed = list(pool.map(sign, shares))
        else:
            signed = map(sign, shares)
        self._tokens += chain.from_iterable(signed)
        return self._tokens[:count]

    def forged_token(self) -> str:
        """A token with a wrong signature. It is below the modulus, so only the whole of RSA shows that it is wrong."""
        return f"{self._signed_text()}.{base64url(bytes(1) + os.urandom(255))}"


def garbage_token() -> str:
    """Three unreadable parts, as long as those of a real token."""
    return ".".join(base64url(os.urandom(length)) for length in (48, 192, 256))
