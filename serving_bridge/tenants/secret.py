"""The deployment's secret, which no database holds: it hashes API keys and makes each tenant's cache salt."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from serving_bridge.access import kept_secret

SECRET_FILE = "tenants.key"

_ADVICE = "give the folder of the deployment's secret (--secret), which only this user may read"


class DeploymentSecret:
    """256 bits, from which a key is derived for each purpose.

    Whoever has the database alone can neither check a guessed API key nor name a salt. All gateways of a deployment
    have the same secret; with another one every API key is unknown.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) != 32:
            raise ValueError(f"the secret has {len(secret)} bytes, expected 32")
        self._hashing = _derived(secret, "weir-api-key-1")
        self._salting = _derived(secret, "weir-cache-salt-1")

    @classmethod
    def in_folder(cls, folder: str | Path, *, make: bool = False) -> DeploymentSecret:
        """The secret in `tenants.key` of a private folder.

        Args:
          make: makes it where it is missing; several processes may do so at once, and all get the same one.

        Raises:
          AccessError: it is missing, open to others, or can't be made.
        """
        return cls(kept_secret(folder, SECRET_FILE, make=make, advice=_ADVICE))

    def digest(self, api_key: str) -> bytes:
        """What is stored of an API key: HMAC-SHA-256, 32 bytes."""
        return hmac.digest(self._hashing, api_key.encode(), hashlib.sha256)

    def cache_salt(self, tenant: str, generation: int) -> str:
        """The tenant's `cache_salt` for vLLM: 64 hexadecimal digits, the same until its generation is raised."""
        return hmac.digest(self._salting, f"{tenant}\0{generation}".encode(), hashlib.sha256).hex()


def _derived(secret: bytes, purpose: str) -> bytes:
    return hmac.digest(secret, purpose.encode(), hashlib.sha256)
