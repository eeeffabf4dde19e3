"""Who may ask a replica for what: two keys that a run keeps, and the tokens that every start of a server gets by them.

A token is HMAC(key, role, URL, start). The registry names URL and start, so whoever may read a key can ask that server,
and a token that is sent to a wrong address opens no other one.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from learner_jax.runtime import WeirError

Role = Literal["control", "inference"]
ROLES: tuple[Role, ...] = ("control", "inference")

_KEY_BYTES = 32
_KEY = re.compile(rb"[0-9a-f]{64}\n?")


class AccessError(WeirError, ValueError):
    """A key is missing, or others than its owner could have read or made it; says what to do."""


class Keys(Protocol):
    """Gives the tokens of servers."""

    def token(self, role: Role, url: str, start: str) -> str:
        """The token for one start of the server at `url`. Raises `AccessError` where the key can't be had."""


class FreshKeys:
    """Keys of one process for servers that nobody else asks; they end with it."""

    def __init__(self) -> None:
        self._keys = {role: secrets.token_bytes(_KEY_BYTES) for role in ROLES}

    def token(self, role: Role, url: str, start: str) -> str:
        return derived_token(self._keys[role], role, url, start)


class FleetKeys:
    """Keys in a folder that the run's own processes see: `control.key` and `inference.key`, mode 0600 in mode 0700.

    A process reads a key when it first needs it; rollout workers need `inference.key` only.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._keys: dict[Role, bytes] = {}

    def make(self) -> None:
        """Makes the keys that are not there; several hosts may do so at once, and all get the same ones.

        Raises:
          AccessError: folder or keys are open to others, or can't be made.
        """
        _make_keys(self._folder, [f"{role}.key" for role in ROLES], "the replicas' keys", _ADVICE)
        for role in ROLES:
            self._key(role)

    def token(self, role: Role, url: str, start: str) -> str:
        return derived_token(self._key(role), role, url, start)

    def _key(self, role: Role) -> bytes:
        if role not in self._keys:
            missing = f"the replicas answer nobody without it: tools.serve makes it when it starts; or {_ADVICE}"
            self._keys[role] = _read_key(self._folder, f"{role}.key", missing=missing, advice=_ADVICE)
        return self._keys[role]


def kept_secret(folder: str | Path, name: str, *, make: bool, advice: str) -> bytes:
    """32 secret bytes that are kept in a file of a private folder, mode 0600 in mode 0700.

    Args:
      make: makes it where it is missing; several processes may do so at once, and all get the same one.
      advice: ends errors: what to do.

    Raises:
      AccessError: it is missing, open to others, or can't be made.
    """
    folder = Path(folder)
    if make:
        _make_keys(folder, [name], name, advice)
    return _read_key(folder, name, missing=f"nothing can be done without it: {advice}", advice=advice)


def _make_keys(folder: Path, names: Sequence[str], what: str, advice: str) -> None:
    """Makes the keys that are not there; `what` names them in an error."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _Folder(folder) as opened:
            for name in names:
                opened.make(name, f"{secrets.token_hex(_KEY_BYTES)}\n".encode())
    except OSError as error:
        raise AccessError(f"{what} can't be made in {folder}: {error}; {advice}") from error


def _read_key(folder: Path, name: str, *, missing: str, advice: str) -> bytes:
    try:
        with _Folder(folder) as opened:
            content = opened.read(name)
    except FileNotFoundError as error:
        raise AccessError(f"{folder / name} is missing, and {missing}") from error
    except OSError as error:
        raise AccessError(f"{folder / name} can't be read: {error}; {advice}") from error
    if not _KEY.fullmatch(content):
        raise AccessError(f"{folder / name} holds {len(content)} bytes, expected 64 hexadecimal digits")
    return bytes.fromhex(content.decode().strip())


_ADVICE = "set serving.keys to a folder with control.key and inference.key that only this user may read"


class _Folder:
    """An open folder that nobody else can write to or read; all access goes through its descriptor."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> _Folder:
        self._fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _check_private(self._path, os.fstat(self._fd), "700")
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._fd)

    def make(self, name: str, content: bytes) -> None:
        """Writes a file whole, unless it is there."""
        temporary = f".{name}.{secrets.token_hex(8)}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._fd)
        try:
            with open(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(fd)
            # A link, unlike a rename, leaves the key that another host was quicker to make.
            os.link(temporary, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except FileExistsError:
            return
        finally:
            os.unlink(temporary, dir_fd=self._fd)
        os.fsync(self._fd)

    def read(self, name: str) -> bytes:
        # Not blocking: a pipe in the file's place must not hold the process up.
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._fd)
        with open(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise AccessError(f"{self._path / name} is not a regular file")
            _check_private(self._path / name, found, "600")
            return file.read(2 * _KEY_BYTES + 2)


def _check_private(path: Path, found: os.stat_result, mode: str) -> None:
    if found.st_uid != os.geteuid():
        raise AccessError(f"{path} belongs to user {found.st_uid}, expected {os.geteuid()}; {_ADVICE}")
    if found.st_mode & 0o077:
        raise AccessError(
            f"{path} has mode {stat.S_IMODE(found.st_mode):o}, so others may know the keys: remove the keys, "
            f"chmod {mode} {path}, and start the fleets again"
        )


def new_start() -> str:
    """Names one start of a server; never repeated."""
    return secrets.token_hex(16)


def derived_token(key: bytes, role: Role, url: str, start: str) -> str:
    """64 hexadecimal digits."""
    return hmac.new(key, "\0".join(("weir-token-1", role, url, start)).encode(), hashlib.sha256).hexdigest()
