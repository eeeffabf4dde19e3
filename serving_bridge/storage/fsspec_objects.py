"""Object storage through fsspec: one try of a request, tried again while that can help, and one clear error."""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from serving_bridge.storage.objects import StorageError, StorageSetupError, StorageTimeouts, check_key, url_problem
from serving_bridge.storage.providers import provider_of, said

Result = TypeVar("Result")

_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.2, 5.0
#: Packages whose errors say that storage, or the way to it, failed.
_CLIENTS = frozenset(
    {"aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "requests", "urllib3"}
)


class FsspecObjects:
    """Implements `ObjectStore` for what fsspec has an implementation of.

    Args:
      url: e.g. s3://bucket/prefix. Credentials and endpoint come from the environment, for S3 from AWS_*.
      sleep: pauses between tries.

    Raises:
      StorageSetupError: no URL of object storage, or the package for it is missing.
    """

    def __init__(
        self,
        url: str,
        *,
        timeouts: StorageTimeouts | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if problem := url_problem(url):
            raise StorageSetupError(problem)
        self.url = url.rstrip("/")
        self._timeouts = timeouts or StorageTimeouts()
        self._sleep, self._clock = sleep, clock
        self._scheme, _, self._root = self.url.partition("://")
        self._provider = provider_of(self._scheme)
        self._is_conditional = True
        self._client: tuple[int, Any] | None = None
        self._require()

    def put(self, key: str, content: bytes) -> None:
        path = self._path(key)
        self._asked(f"writing {key}", lambda fs: fs.pipe_file(path, content))

    def put_new(self, key: str, content: bytes) -> bool:
        path = self._path(key)
        try:
            self._asked(f"writing {key}", lambda fs: self._create(fs, path, content))
        except FileExistsError:
            # The answer to a try that had succeeded may have been lost.
            return self._holds(key, content)
        except _NotConditionalError:
            self._is_conditional = False
            if self.size(key) is not None:
                return self._holds(key, content)
            self.put(key, content)
            return self._holds(key, content)
        return True

    def _holds(self, key: str, content: bytes) -> bool:
        try:
            return self.get(key, max_bytes=len(content)) == content
        except (FileNotFoundError, ValueError):
            return False

    def put_file(self, key: str, path: Path) -> None:
        target, num_bytes = self._path(key), path.stat().st_size
        self._asked(f"writing {key} ({num_bytes} bytes)", lambda fs: self._upload(fs, path, target))

    def get(self, key: str, *, max_bytes: int) -> bytes:
        path = self._path(key)
        # One byte more than may be there says that there is too much, without a request for the size.
        content: bytes = self._asked(f"reading {key}", lambda fs: self._read(fs, path, 0, max_bytes + 1))
        if len(content) > max_bytes:
            raise ValueError(f"{self.url}/{key} has more than {max_bytes} bytes")
        return content

    def get_range(self, key: str, start: int, num_bytes: int) -> bytes:
        path = self._path(key)
        return self._asked(f"reading {key}", lambda fs: self._read(fs, path, start, start + num_bytes))

    def size(self, key: str) -> int | None:
        path = self._path(key)
        try:
            found: Mapping[str, Any] = self._asked(f"looking for {key}", lambda fs: fs.info(path))
        except FileNotFoundError:
            return None
        return int(found["size"]) if found.get("type") == "file" else None

    def list(self, prefix: str = "") -> dict[str, int]:
        if prefix:
            check_key(prefix.removesuffix("/"))
        folder = f"{self._root}/{prefix}".rstrip("/")
        found = self._asked(f"listing {prefix or 'it'}", lambda fs: self._listed(fs, folder))
        start = len(self._root) + 1
        return {name[start:]: size for name, size in found.items() if name.startswith(f"{self._root}/")}

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            with contextlib.suppress(FileNotFoundError):
                self._delete(key)

    def _delete(self, key: str) -> None:
        path = self._path(key)
        self._asked(f"deleting {key}", lambda fs: fs.rm_file(path))

    def probe(self) -> bool:
        """Writes, reads and deletes an object; says whether a second conditional write of it was refused.

        Raises:
          StorageSetupError, StorageError: one of that can't be done.
        """
        key, content = f"probe-{secrets.token_hex(8)}", secrets.token_bytes(16)
        try:
            if not self.put_new(key, content) or self.get(key, max_bytes=len(content)) != content:
                raise StorageError(f"{self.url}/{key} does not hold what was just written to it")
            return not self.put_new(key, secrets.token_bytes(16)) and self._is_conditional
        finally:
            with contextlib.suppress(StorageError):
                self.delete([key])

    def _path(self, key: str) -> str:
        return f"{self._root}/{check_key(key)}"

    def _asked(self, what: str, request: Callable[[Any], Result]) -> Result:
        """Makes a request until it succeeds, is refused, or `give_up_s` have passed."""
        began, pause_s, tries = self._clock(), _FIRST_PAUSE_S, 0
        while True:
            tries += 1
            try:
                return request(self._filesystem())
            except StorageSetupError:
                raise
            except (FileNotFoundError, FileExistsError) as error:
                if refusal := self._provider.refusal(error):
                    raise StorageSetupError(f"{self.url}, {what}: {refusal}") from None
                raise
            except Exception as error:
                if refusal := self._provider.refusal(error):
                    raise StorageSetupError(f"{self.url}, {what}: {refusal}") from None
                if not _is_storages(error):
                    raise
                failure = said(error)
            waited_s = self._clock() - began
            if waited_s + pause_s > self._timeouts.give_up_s:
                raise StorageError(
                    f"{self.url} failed at {what}: {tries} tries in {waited_s:.1f} s, the last with {failure}; is it "
                    f"reachable from here? (store.storage_timeout_s = {self._timeouts.give_up_s:g})"
                )
            # Many processes that failed together come back one by one.
            self._sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    def _upload(self, fs: Any, path: Path, target: str) -> None:
        fs.put_file(str(path), target, **self._provider.upload)
        expected, arrived = path.stat().st_size, fs.info(target)["size"]
        if arrived != expected:
            raise OSError(f"{arrived} bytes arrived of {expected}")

    def _require(self) -> None:
        with self._clear_setup():
            importlib.import_module("fsspec").get_filesystem_class(self._scheme)

    def _filesystem(self) -> Any:
        """fsspec's client of this process; one that was made before a fork is left alone."""
        process = os.getpid()
        if self._client is None or self._client[0] != process:
            with self._clear_setup():
                made = self._provider.make(self._scheme, self._timeouts)
            self._client = process, made
        return self._client[1]

    @contextmanager
    def _clear_setup(self) -> Iterator[None]:
        try:
            yield
        except ImportError as error:
            package = self._provider.package
            raise StorageSetupError(f"{self.url} needs {package}: pip install {package} ({error})") from None
        except ValueError as error:
            raise StorageSetupError(f"{self.url}: {error}") from None

    def _create(self, fs: Any, path: str, content: bytes) -> None:
        try:
            fs.pipe_file(path, content, mode="create")
        except FileExistsError:
            raise
        except Exception as error:
            if self._provider.is_unconditional(error):
                raise _NotConditionalError from None
            raise

    def _read(self, fs: Any, path: str, start: int, end: int) -> bytes:
        try:
            content: bytes = fs.cat_file(path, start=start, end=end)
        except Exception as error:
            if self._provider.is_beyond_end(error):  # it ends before, as an empty object does
                return b""
            raise
        return content

    def _listed(self, fs: Any, folder: str) -> dict[str, int]:
        try:
            found: Mapping[str, Mapping[str, Any]] = fs.find(folder, detail=True)
        except FileNotFoundError as error:
            if self._provider.code(error):  # the bucket is missing, not what it would hold
                raise
            return {}
        return {name.lstrip("/"): int(info["size"]) for name, info in found.items() if info.get("type") == "file"}


class _NotConditionalError(Exception):
    """Storage knows no conditional writes."""


def _is_storages(error: BaseException) -> bool:
    """Whether an error is of storage or of the way to it, not of this program."""
    modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return isinstance(error, OSError) or not modules.isdisjoint(_CLIENTS)
