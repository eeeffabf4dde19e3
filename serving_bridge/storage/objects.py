"""What Weir asks of object storage: whole objects under keys, written at once, listed by prefix.

What an implementation must give: an object appears whole or not at all, and a read that begins after a write has
returned finds it. Amazon S3, Google Cloud Storage and Azure do. Lists may lag: no caller relies on a list being new.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from learner_jax.runtime import WeirError

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")
_KEY = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")
#: Schemes that fsspec knows and that hosts do not share.
_NOT_SHARED = {"memory": "every process would have one of its own", "file": "give the folder's path instead"}
#: Variables by which the clients of object storage find credentials and endpoints.
_PREFIXES = ("AWS_", "AZURE_CLIENT_", "AZURE_STORAGE_", "BOTO_", "FSSPEC_", "GCSFS_", "GOOGLE_")
_VARIABLES = frozenset(
    {
        "AZURE_AUTHORITY_HOST",
        "AZURE_FEDERATED_TOKEN_FILE",
        "AZURE_TENANT_ID",
        "CLOUDSDK_CONFIG",
        "STORAGE_EMULATOR_HOST",
    }
)


class StorageError(WeirError, OSError):
    """Object storage can't be reached, or keeps failing; says what was asked of it and how often."""


class StorageSetupError(StorageError):
    """A URL, credentials or a package are not what object storage needs: trying again can't help."""

    can_heal = False


@dataclass(frozen=True)
class StorageTimeouts:
    """How long object storage is waited for, in seconds.

    Attributes:
      give_up_s: a request that fails is tried again, with growing pauses, until so long after its first try.
      connect_s: for a connection.
      read_s: for the next bytes of an answer.
    """

    give_up_s: float = 60.0
    connect_s: float = 5.0
    read_s: float = 20.0


class ObjectStore(Protocol):
    """Objects below one URL. Safe to use from several threads, and after a fork.

    Every method raises `StorageError` when storage does not answer in time, `StorageSetupError` when it refuses.
    """

    url: str

    def put(self, key: str, content: bytes) -> None:
        """Writes an object, in place of one that is there."""

    def put_new(self, key: str, content: bytes) -> bool:
        """Writes an object unless there is one; returns whether `content` is what is there now by this call.

        Where storage has no conditional writes, two callers at the same time may both be told yes.
        """

    def put_file(self, key: str, path: Path) -> None:
        """Writes a file's content as an object; a failed upload leaves no object."""

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """An object's content. Raises `FileNotFoundError`; `ValueError` if it has more than `max_bytes`."""

    def get_range(self, key: str, start: int, num_bytes: int) -> bytes:
        """Bytes of an object from `start` on, fewer at its end. Raises `FileNotFoundError`."""

    def size(self, key: str) -> int | None:
        """Bytes of an object, None if there is none."""

    def list(self, prefix: str = "") -> dict[str, int]:
        """Key -> bytes of the objects whose keys begin with `prefix`, which ends with / or is empty."""

    def delete(self, keys: Sequence[str]) -> None:
        """Deletes objects, in this order; those that are not there are no error."""


def is_url(place: object) -> bool:
    """Whether a place is named by a URL, such as s3://bucket/prefix, and not by a path."""
    return _SCHEME.match(str(place)) is not None


def url_problem(url: str) -> str | None:
    """Why a URL names no object storage, without telling a secret in it; None if nothing is wrong."""
    scheme, _, rest = url.partition("://")
    if "@" in rest.partition("/")[0] or "?" in rest:
        return (
            f"{scheme}://... holds credentials or options, which would stand in command lines and config.toml: "
            f"expected {scheme}://bucket/prefix, with credentials in the environment (for S3 AWS_*)"
        )
    parts = urlsplit(url)
    if not parts.netloc or not _KEY.fullmatch(parts.path.strip("/") or "prefix"):
        return f"{url[:200]!a} names no place in object storage, expected {scheme}://bucket/prefix"
    return None


def unshared(url: str) -> str | None:
    """Why the storage behind a URL is none that hosts share, None if it may be."""
    scheme = url.partition("://")[0]
    return f"{scheme}://...: {_NOT_SHARED[scheme]}" if scheme in _NOT_SHARED else None


def check_key(key: str) -> str:
    """The key, which must be of plain names: no key that another process wrote leads out of the store's own prefix."""
    if not _KEY.fullmatch(key) or any(set(name) == {"."} for name in key.split("/")):
        raise ValueError(f"{key[:200]!a} is no key of an object, expected plain names between slashes")
    return key


def storage_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables by which clients of object storage find credentials and endpoints; secrets are among them."""
    return {name: value for name, value in environment.items() if name.startswith(_PREFIXES) or name in _VARIABLES}
