"""A reward server: answers are sent over HTTP in batches, tried again within their deadline, and bounded in number.

A request is `POST` of `{"items": [{"prompt": ..., "answer": ..., "row": ...}, ...]}`, the reply
`{"scores": [...]}` with a number, or an object of named numbers, for each item in its order.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Any

from rewards.contracts import RewardResult, TaskError, failed, scored
from rewards.sandbox import printable, read_score

_BATCH_ITEMS = 64
_BATCH_WAIT_S = 0.01
_MAX_WAITING = 4096
_MAX_REPLY_BYTES = 16 << 20
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_MAX_SAID = 200


@dataclass(frozen=True)
class _Item:
    fields: Mapping[str, Any]
    until: float
    result: Future[RewardResult] = field(default_factory=Future)


class ServerReward:
    """Asks a server; implements `rewards.tasks.row_reward.RowReward`.

    Args:
      url: of the server, http or https.
      key_name: environment variable with its key, sent as "Authorization: Bearer"; empty for none.
      deadline_s: for one answer, with all tries and the wait for its turn.
      num_senders: requests at a time.

    Raises:
      TaskError: the address or the key can't be used.
    """

    def __init__(self, url: str, *, key_name: str, deadline_s: float, num_senders: int) -> None:
        self._url = _checked(url)
        self._headers = {"Content-Type": "application/json", **_authorization(key_name)}
        self._deadline_s = deadline_s
        self._waiting: queue.Queue[_Item | None] = queue.Queue(_MAX_WAITING)
        self._closed = threading.Event()
        # A proxy of the environment would see the answers and the key; redirects could lead them anywhere.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects())
        self._senders = [threading.Thread(target=self._send_for_ever, daemon=True) for _ in range(num_senders)]
        for sender in self._senders:
            sender.start()

    @property
    def version(self) -> str:
        return self._url

    def score(self, prompt: str, answer: str, row: Mapping[str, Any]) -> RewardResult:
        item = _Item({"prompt": prompt, "answer": answer, "row": row}, time.monotonic() + self._deadline_s)
        try:
            json.dumps(item.fields, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            return failed(f"the row can't be sent as JSON: {error}", "refused")
        try:
            self._waiting.put(item, timeout=self._deadline_s)
            return item.result.result(max(0.0, item.until - time.monotonic()))
        except (queue.Full, FutureTimeoutError):
            return failed(f"no reply within {self._deadline_s:g} s", "timeout")

    def refusal(self, row: Mapping[str, Any]) -> str:
        return ""

    def close(self) -> None:
        self._closed.set()
        for sender in self._senders:
            sender.join(self._deadline_s + 1)

    def _send_for_ever(self) -> None:
        while not self._closed.is_set():
            if batch := self._batch():
                results = self._asked(batch)
                for item, result in zip(batch, results, strict=True):
                    item.result.set_result(result)

    def _batch(self) -> list[_Item]:
        """Items that wait, at most one batch; those whose deadline has passed are left out."""
        batch: list[_Item] = []
        wait_s = 0.2
        while len(batch) < _BATCH_ITEMS:
            try:
                item = self._waiting.get(timeout=wait_s)
            except queue.Empty:
                break
            if item is not None and item.until > time.monotonic():
                batch.append(item)
            wait_s = _BATCH_WAIT_S
        return batch

    def _asked(self, batch: Sequence[_Item]) -> list[RewardResult]:
        payload = json.dumps({"items": [item.fields for item in batch]}).encode()
        until, pause_s = max(item.until for item in batch), _FIRST_PAUSE_S
        while True:
            left_s = until - time.monotonic()
            if left_s <= 0 or self._closed.is_set():
                return [failed("no reply in time", "timeout")] * len(batch)
            try:
                return _read(self._post(payload, left_s), len(batch))
            except _RetryError as error:
                if until - time.monotonic() <= pause_s:
                    return [failed(str(error), "timeout")] * len(batch)
            except _ServerError as error:
                return [failed(str(error))] * len(batch)
            self._closed.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _post(self, payload: bytes, timeout_s: float) -> bytes:
        request = urllib.request.Request(self._url, payload, self._headers)
        try:
            with self._opener.open(request, timeout=timeout_s) as reply:
                body: bytes = reply.read(_MAX_REPLY_BYTES + 1)
        except urllib.error.HTTPError as error:
            said = f"the reward server replied {error.code}"
            error.close()
            raise (_RetryError if error.code in _AGAIN else _ServerError)(said) from None
        except (OSError, http.client.HTTPException) as error:
            raise _RetryError(f"the reward server can't be reached: {printable(str(error))[:_MAX_SAID]}") from None
        if len(body) > _MAX_REPLY_BYTES:
            raise _ServerError(f"the reward server's reply has more than {_MAX_REPLY_BYTES} bytes")
        return body


class _ServerError(Exception):
    """The server's reply is of no use, and would be no other a second time."""


class _RetryError(Exception):
    """The server may reply when it is asked again."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _read(body: bytes, count: int) -> list[RewardResult]:
    try:
        reply = json.loads(body)
        scores = reply["scores"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _ServerError('the reward server\'s reply is no JSON object with "scores"') from None
    if not isinstance(scores, list) or len(scores) != count:
        found = len(scores) if isinstance(scores, list) else type(scores).__name__
        raise _ServerError(f"the reward server gave {found} scores for {count} answers")
    return [_result(value) for value in scores]


def _result(value: Any) -> RewardResult:
    try:
        read = read_score(value)
    except (TypeError, ValueError) as error:
        return failed(printable(str(error)))
    parts = {printable(name): number for name, number in read.get("parts", {}).items()}
    return scored(read["score"], parts)


def _checked(url: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise TaskError(f"task.reward {printable(url)[:_MAX_SAID]!r} is no address of a server")
    if parts.username or parts.password:
        raise TaskError(
            "task.reward holds a user's name or password: put the key into an environment variable and name it in "
            "task.reward_key"
        )
    return url


def _authorization(key_name: str) -> dict[str, str]:
    if not key_name:
        return {}
    key = os.environ.get(key_name, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise TaskError(f"task.reward_key: the environment variable {key_name} is not set, or no key for a header")
    return {"Authorization": f"Bearer {key}"}
