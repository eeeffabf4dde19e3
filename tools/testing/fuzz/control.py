"""Malformed control messages: manifests, answers of a replica, rows and orders of the fleet, lines of metrics."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from learner_jax.checkpoints import CHECKPOINT_SCHEMA, ITEM, CheckpointError, read_manifest
from learner_jax.contracts import ContractError, decode_manifest, encode_manifest
from serving_bridge.fleet import FleetStatus, OrderBook, Orders
from serving_bridge.routing import ReplicaRegistry, ReplicaRow
from serving_bridge.telemetry import MetricsTail
from serving_bridge.vllm import Completion, ReplicaError, VllmClient
from tools.testing.fuzz.mutations import Rng, damaged_bytes, damaged_field, damaged_value

_MAX_TOKENS = 4
_PROMPT = [5, 6, 7]


@dataclass(frozen=True)
class Message:
    """A kind of message.

    Attributes:
      valid: a record that its reader takes.
      read: reads bytes in its place; returns why they were refused, None if they were taken. What it raises is a crash.
      encode: a record as it is sent. Raises `TypeError` for one that can't be.
    """

    name: str
    valid: Any
    read: Callable[[bytes], str | None]
    encode: Callable[[Any], bytes] = lambda record: json.dumps(record).encode()


def damaged(rng: Rng, message: Message) -> bytes:
    """The message's record with a field damaged, or its bytes."""
    if isinstance(message.valid, bytes):
        return damaged_bytes(rng, message.valid)
    if rng.random() < 0.3:
        return damaged_bytes(rng, message.encode(message.valid))
    try:
        damage = damaged_field if isinstance(message.valid, Mapping) else damaged_value
        return message.encode(damage(rng, message.valid, non_finite=False))
    except (TypeError, OverflowError):  # bytes have no place in JSON, and long integers none in msgpack
        return damaged_bytes(rng, message.encode(message.valid))


def messages(folder: Path, run: Callable[[Coroutine[Any, Any, None]], None]) -> list[Message]:
    """Every kind; readers of files use `folder`, those of a replica's answers are run by `run`."""
    registry, book = ReplicaRegistry(folder / "registry"), OrderBook(folder / "registry", "fleet")
    registry.report("r", url="http://r", state="healthy", version=1, step=1)
    registry.report_requests("w", {"r": (1, 0)})
    return [
        Message("weight manifest", _MANIFEST, _manifest),
        Message("checkpoint manifest", _CHECKPOINT, _checkpoint_reader(folder / "checkpoint")),
        Message("replica row", _plain(ReplicaRow("r", "http://r", "healthy", 1, 1, 1.0)),
                _file_reader(folder / "registry" / "r.json", lambda: _rows(registry))),
        Message("requests of a worker", {"worker": "w", "totals": {"r": [1, 0]}},
                _file_reader(folder / "registry" / "requests" / "w.json", lambda: registry.all_request_totals() != {})),
        Message("orders to a fleet", _plain(Orders("1", 2, "1")),
                _file_reader(folder / "registry" / "fleets" / "fleet.orders.json", lambda: book.orders() is not None)),
        Message("status of a fleet", _plain(FleetStatus("fleet", 2, "1", "", "", 1.0)),
                _file_reader(folder / "registry" / "fleets" / "fleet.status.json", lambda: book.status() is not None)),
        Message("line of metrics", {"t": 1.0, "process": "learner", "event": "step", "step": 1},
                _file_reader(folder / "metrics.jsonl", lambda: MetricsTail(folder / "metrics.jsonl").read() != [])),
        Message("answer", _ANSWER, _client_reader(run, _generate), msgspec.msgpack.encode),
        Message("log-probs of a prompt", _PROBE, _client_reader(run, _probe), msgspec.msgpack.encode),
        Message("status of workers", {"results": [_WORKER, _WORKER]}, _client_reader(run, _status)),
        Message("whether paused", {"is_paused": True}, _client_reader(run, lambda client: client.is_paused())),
        Message("name of the weights", {"weight_version": "7"},
                _client_reader(run, lambda client: client.weight_version())),
        Message("metrics of a replica", _METRICS, _client_reader(run, lambda client: client.num_requests())),
    ]  # fmt: skip


def _plain(record: Any) -> Any:
    return msgspec.to_builtins(record)


_MANIFEST: Mapping[str, Any] = {
    "schema": 2, "version": 3, "base_version": None, "format": "full", "step": 2, "parent": 2, "run": "fuzz",
    "content_sha256": "0" * 64, "num_changed": None,
    "files": [{"name": "a.bin", "num_bytes": 4, "sha256": "0" * 64}],
    "tensors": [{"name": "a", "shape": [1], "dtype": "float32", "xxh3_128": "0" * 32}],
    "golden": [{"tokens": [1, 2], "logprobs": [-0.25]}],
}  # fmt: skip
_CHECKPOINT: Mapping[str, Any] = {
    "schema": CHECKPOINT_SCHEMA,
    "position": {
        "completed_steps": 4, "trained_version": 5, "prompt_cursor": 9, "consumed_trajectory_ids": ["fuzz/0/0"],
        "kl_coefficient": 0.1, "steps_of_versions": [[5, 4]],
    },
    "run": "fuzz", "config": {"a": 1},
    "code": {"version": "0.1.0", "commit": None},
    "arrays": {"state": {"params.a": {"shape": [1], "dtype": "float32"}}},
}  # fmt: skip
_TOKENS, _LOGPROBS = np.array([1, 2, 3], "<i4").tobytes(), np.full(3, -0.5, "<f4").tobytes()
#: a `PackedAnswer` of two choices
_ANSWER = [[[index, "stop", _TOKENS, _LOGPROBS, [["4", 0, 2], ["5", 2, 3]]] for index in range(2)]]
_PROBE = [[[0, "length", _TOKENS[:4], _LOGPROBS[:4], [["4", 0, 1]]]], _LOGPROBS[:8]]
_WORKER: Mapping[str, Any] = {
    "state": "staged", "staged": 3, "error": "", "damaged": False, "applied": 2, "intact": True
}  # fmt: skip
_METRICS = b'# TYPE x gauge\nvllm:num_requests_running{engine="0"} 3.0\nvllm:num_requests_waiting{engine="0"} 1.0\n'


def _manifest(payload: bytes) -> str | None:
    try:
        manifest = decode_manifest(payload)
    except ContractError as error:
        return str(error)
    assert decode_manifest(encode_manifest(manifest)) == manifest
    return None


def _checkpoint_reader(folder: Path) -> Callable[[bytes], str | None]:
    file = folder / ITEM / "metadata"
    file.parent.mkdir(parents=True)

    def read(payload: bytes) -> str | None:
        file.write_bytes(payload)
        try:
            read_manifest(folder)
        except CheckpointError as error:
            return str(error)
        return None

    return read


def _file_reader(file: Path, taken: Callable[[], bool]) -> Callable[[bytes], str | None]:
    """A file whose reader leaves out what it can't read; its writer writes it again."""
    file.parent.mkdir(parents=True, exist_ok=True)

    def read(payload: bytes) -> str | None:
        file.write_bytes(payload)
        return None if taken() else "left out"

    return read


def _rows(registry: ReplicaRegistry) -> bool:
    registry.ready()
    return registry.replicas() != []


class _Session:
    """Answers every request with the same bytes, as `aiohttp.ClientSession` would."""

    status = 200

    def __init__(self, payload: bytes) -> None:
        self._payload = payload

    async def read(self) -> bytes:
        return self._payload

    @asynccontextmanager
    async def request(self, *_: Any, **__: Any) -> AsyncIterator[_Session]:
        yield self


def _client_reader(
    run: Callable[[Coroutine[Any, Any, None]], None], call: Callable[[VllmClient], Coroutine[Any, Any, Any]]
) -> Callable[[bytes], str | None]:
    def read(payload: bytes) -> str | None:
        client = VllmClient("http://r", _Session(payload))
        try:
            run(call(client))
        except ReplicaError as error:
            return str(error) or type(error).__name__
        return None

    return read


async def _generate(client: VllmClient) -> None:
    answers = await client.generate(_PROMPT, n=2, max_tokens=_MAX_TOKENS, stop_token_ids=[3], timeout_s=1.0)
    assert len(answers) == 2
    for answer in answers:
        _check_sample(answer)


def _check_sample(answer: Completion) -> None:
    """An answer that becomes a sample keeps these, value by value."""
    length = len(answer.tokens)
    assert 1 <= length <= _MAX_TOKENS, answer
    assert len(answer.logprobs) == len(answer.policy_version) == length, answer
    assert answer.finish_reason in ("stop", "length"), answer
    for token, logprob, version in zip(
        answer.tokens.tolist(), answer.logprobs.tolist(), answer.policy_version.tolist(), strict=True
    ):
        assert token >= 0, answer
        assert -float("inf") < logprob <= 1e-3, answer
        assert version >= 0, answer


async def _probe(client: VllmClient) -> None:
    values = await client.prompt_logprobs(_PROMPT, timeout_s=1.0)
    assert values.shape == (2,), values
    assert values.dtype == np.float32, values


async def _status(client: VllmClient) -> None:
    status = await client.worker_status()
    assert status.state in ("failed", "idle", "reading", "staged", "applied"), status
    assert isinstance(status.error, str), status
    assert isinstance(status.damaged, bool), status
    assert isinstance(status.intact, bool), status
    assert status.staged is None or isinstance(status.staged, int), status
