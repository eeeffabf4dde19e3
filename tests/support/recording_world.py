"""A recorder over a database that tests may cut off, and requests that are recorded without a gateway."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from serving_bridge.database import MEMORY, Database, open_database
from serving_bridge.database.migrations import migrate
from serving_bridge.feedback import FEEDBACK, Datasets, FeedbackStore, clean_datasets, forget_sessions
from serving_bridge.recordings import (
    RECORDINGS,
    Made,
    Recorder,
    Recording,
    RecordingStore,
    Redaction,
    Request,
    Sampled,
    Span,
)
from serving_bridge.safety import Checker, RulesForTraining, TrainingGuard
from serving_bridge.sessions import ChatMessage
from serving_bridge.settings import FeedbackSettings, SafetySettings, SessionsSettings
from serving_bridge.text import Tokenizer
from tests.support.queue_engines import Clock


async def at_once(call: Callable[..., Any], *arguments: Any) -> Any:
    """In place of a thread."""
    return call(*arguments)


@dataclass
class Recordings:
    """A database of recorded sessions, and gateways that record in it."""

    tokenizer: Tokenizer
    folder: Path
    url: str = MEMORY
    clock: Clock = field(default_factory=Clock)
    database: Database | None = None
    _gateways: int = 0

    def __post_init__(self) -> None:
        self.database = open_database(self.url, schema=RECORDINGS)
        self.database.write(lambda session: migrate(session, self.url, FEEDBACK))

    @property
    def store(self) -> RecordingStore:
        assert self.database is not None
        after = [partial(clean_datasets, self.database)]
        return RecordingStore(self.database, clock=self.clock, also=[forget_sessions], after=after)

    def datasets(self, guard: TrainingGuard | None = None, **fields: Any) -> Datasets:
        assert self.database is not None
        guard = guard or RulesForTraining(Checker(SafetySettings()))
        return Datasets(self.database, self.store, self.feedback(), guard, tokenizer="t", clock=self.clock, **fields)

    def feedback(self, *, redact: bool = True, **settings: Any) -> FeedbackStore:
        assert self.database is not None
        checker = Checker(SafetySettings()) if redact else None
        return FeedbackStore(self.database, FeedbackSettings(**settings), checker=checker, clock=self.clock)

    def recorder(self, *, redact: bool = True, **settings: Any) -> Recorder:
        self._gateways += 1
        return Recorder(
            SessionsSettings(record=True, **settings),
            self.tokenizer,
            self.store,
            self.folder / "spool",
            Redaction(Checker(SafetySettings()) if redact else None),
            name=f"gateway-{self._gateways}",
            clock=self.clock,
            draws=random.Random(0),
            blocking=at_once,
        )


def request(*messages: ChatMessage, user: str = "", **fields: Any) -> Request:
    """A chat request of tenant acme; its conversation is named by its first message."""
    given = {"tenant": "acme", "conversation": messages[0].key, "retention_days": 30, **fields}
    return Request(user=user, messages=messages, **given)


def sampled(tokenizer: Tokenizer, text: str, *, index: int = 0, version: int = 3, calls: Any = ()) -> Sampled:
    """A choice whose tokens are single characters': never the ids that encoding its text gives."""
    tokens = [i for character in text for i in tokenizer.backend.encode(character, add_special_tokens=False).ids]
    tokens.append(tokenizer.eos_ids[0])
    logprobs = (-(np.asarray(tokens) % 97) / 100).astype("<f4").tobytes()
    spans = (Span(version, 0, len(tokens)),)
    return Sampled(index, ChatMessage("assistant", text, tuple(calls)), tokens, logprobs, spans, "stop", True)


_numbers = iter(range(10**9))


async def told(recording: Recording, tokenizer: Tokenizer, *texts: str, **fields: Any) -> str:
    """Answers a request with choices; returns the response's id."""
    response_id = fields.pop("response_id", f"r{next(_numbers)}")
    made = Made(response_id, "stable", "policy", 1.0, 100, **fields)
    choices = [sampled(tokenizer, text, index=index) for index, text in enumerate(texts)]
    await recording.ended(made, recording.prompt or (), choices)
    return response_id


def answer(recordings: Recordings, *texts: str, **fields: Any) -> tuple[str, str]:
    """(id of the session, id of the response) of an answer that is recorded."""

    async def record() -> tuple[str, str]:
        recorder = recordings.recorder()
        async with recorder.running():
            recording = await recorder.begin(request(ChatMessage("user", "hello"), **fields))
            assert recording is not None
            return recording.session_id, await told(recording, recordings.tokenizer, *(texts or ("hi",)))

    return asyncio.run(record())
