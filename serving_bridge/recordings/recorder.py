"""Records conversations beside their answers: finds the session, gives the prompt's ids, keeps what was sampled.

What one request adds is a line of this process's journal before the answer's end is sent, by one write to the kernel;
the database has it a moment later. So a process that is killed loses no answer that had ended. A request without
consent touches nothing of this; one whose consent can't be looked up in time is answered and not kept.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from learner_jax.runtime import WeirError
from serving_bridge.processes import Journal, left_journals
from serving_bridge.recordings.asked import Made, Request, Sampled
from serving_bridge.recordings.left_behind import lines_of
from serving_bridge.recordings.lines import Lines
from serving_bridge.recordings.live import Live, completion_of
from serving_bridge.recordings.records import (
    Kept,
    SessionHead,
    int32,
    name_of,
    text_of,
    user_of,
)
from serving_bridge.recordings.redaction import Redaction
from serving_bridge.recordings.store import RecordingStore
from serving_bridge.sessions import Place, Text, Tree
from serving_bridge.settings import SessionsSettings
from serving_bridge.text import TokenizerError

#: Longer conversations are rendered in a thread, so that other requests go on.
_INLINE_CHARS = 16_384
_FLUSH_EVERY_S, _RETRY_S = 5.0, 1.0
_PURGE_EVERY_S = 60.0
#: Lines that wait for a database that is away; further requests are not kept.
_MAX_PENDING = 20_000
#: A journal that is never idle is written anew from here on, without what the database has.
_JOURNAL_BYTES = 32 * 2**20

Blocking = Callable[..., Awaitable[Any]]


class Recorder:
    """Records the sessions of one gateway process. For one event loop.

    Args:
      spool: folder on a local disk for the journals of this host's gateways.
      name: of this process; never used twice.
      draws: chooses the explored share.
      blocking: runs a call that blocks, away from the event loop.

    Attributes:
      counts: what happened, for metrics.
    """

    def __init__(
        self,
        settings: SessionsSettings,
        text: Text,
        store: RecordingStore,
        spool: Path,
        redaction: Redaction,
        *,
        name: str = "",
        clock: Callable[[], float] = time.time,
        draws: random.Random | None = None,
        blocking: Blocking = asyncio.to_thread,
    ) -> None:
        self._settings, self._text, self._store = settings, text, store
        self._lines = Lines(text, redaction, clock)
        self._clock, self._draws, self._blocking = clock, draws or random.Random(), blocking
        self._spool = spool
        self._journal = Journal(spool, name or f"sessions-{secrets.token_hex(8)}")
        self._pending: list[Kept] = []
        self._live: OrderedDict[str, Live] = OrderedDict()
        self._finding: dict[str, asyncio.Future[Live | None]] = {}
        self._is_due = asyncio.Event()
        self.counts: Counter[str] = Counter()

    @property
    def retention_days(self) -> int:
        """Days for which a session is kept at most."""
        return self._settings.retention_days

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keeps the database in step; takes over what killed processes of this host left."""
        self._adopt()
        loops = [asyncio.ensure_future(self._follow()), asyncio.ensure_future(self._purging())]
        try:
            yield
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            is_written = await self.flush()
            self._journal.close(remove=is_written)

    async def begin(self, request: Request) -> Recording | None:
        """Where a request stands in its session; None where it is not kept."""
        if len(self._pending) >= _MAX_PENDING:
            self.counts["unkept"] += 1
            return None
        live = await self._session(request)
        if live is None:
            self.counts["unkept"] += 1
            return None
        place = None
        if request.messages:
            place = await self._place(live.tree, request)
            if place is None:  # the template refuses the dialog: the request will be refused, too
                return None
            self.counts["rebuilt"] += place.rebuilt
        temperature, propensity = self._explored(request)
        return Recording(self, live, request, place, temperature, propensity)

    async def flush(self) -> bool:
        """Writes what is pending to the database; whether nothing is left."""
        lines = list(self._pending)
        if not lines:
            return True
        try:
            refused = await self._blocking(self._store.write, lines)
        except (WeirError, OSError):
            self.counts["failed_writes"] += 1
            return False
        del self._pending[: len(lines)]
        self.counts["withdrawn"] += len(refused)
        self._forget(set(refused))
        if not self._pending:
            self._journal.clear()  # what is in the database may be withdrawn there, and must not stand here
        elif self._journal.num_bytes > _JOURNAL_BYTES:
            with suppress(OSError):  # it stays as it is, and is tried again
                self._journal.replace(msgspec.json.encode(line) for line in self._pending)
        return not self._pending

    def figures(self) -> dict[str, Any]:
        """What a gateway's event says of recorded sessions."""
        told = {f"sessions_{name}": number for name, number in self.counts.items()}
        self.counts = Counter()
        return {**told, "sessions_pending": len(self._pending), "sessions_live": len(self._live)}

    # Pieces of the above, and of `Recording`.

    async def _session(self, request: Request) -> Live | None:
        """The session of a request, in memory or from the database, or a new one."""
        tenant, user = request.tenant, user_of(request.tenant, request.user)
        named = ("session", request.session) if request.session else ("conversation", request.conversation)
        key = name_of(tenant, user, *named)
        if (finding := self._finding.get(key)) is not None:
            await asyncio.wait([finding], timeout=self._settings.lookup_timeout_s)
        live = self._live.get(key)
        if live is None:
            self._finding[key] = made = asyncio.get_running_loop().create_future()
            try:
                live = await self._found(request, user, key)
            finally:
                self._finding.pop(key, None)
                made.set_result(None)
        elif len(live.tree.answers) >= self._settings.max_answers or self._is_old(live):
            live = self._new(request, user, key, live.head.generation)
        if live is not None:
            self._live[key] = live
            self._live.move_to_end(key)
            while len(self._live) > self._settings.cached:
                self._live.popitem(last=False)
        return live

    async def _found(self, request: Request, user: str, key: str) -> Live | None:
        try:
            async with asyncio.timeout(self._settings.lookup_timeout_s):
                found = await self._blocking(
                    lambda: self._store.find(request.tenant, user, key, resume_s=self._settings.resume_s)
                )
        except (TimeoutError, WeirError, OSError):
            return None
        recorded = found.recorded
        if recorded is None or len(recorded.answers) >= self._settings.max_answers:
            return self._new(request, user, key, found.generation)
        head = self._head(request, user, key, found.generation, recorded.row.session_id, recorded.row.created_s)
        return Live.of(recorded, head, self._text)

    def _new(self, request: Request, user: str, key: str, generation: str) -> Live:
        session_id = f"session-{secrets.token_hex(12)}"
        return Live(self._head(request, user, key, generation, session_id, self._clock()), Tree(self._text))

    def _head(
        self, request: Request, user: str, key: str, generation: str, session_id: str, created_s: float
    ) -> SessionHead:
        days = min(self._settings.retention_days, request.retention_days)
        return SessionHead(session_id, request.tenant, user, key, generation, created_s, days)

    def _is_old(self, live: Live) -> bool:
        return self._clock() - max(live.head.created_s, live.last_s) > self._settings.resume_s

    async def _place(self, tree: Tree, request: Request) -> Place | None:
        size = sum(len(message.content) for message in request.messages)
        for find in (tree.place, tree.place_anew):
            with suppress(TokenizerError):
                if size > _INLINE_CHARS:
                    return await asyncio.to_thread(find, request.messages, request.tools)
                return find(request.messages, request.tools)
        return None

    def _explored(self, request: Request) -> tuple[float | None, float]:
        """(temperature to sample at in place of the request's, probability of this choice)."""
        share = self._settings.explore_share
        if not share or not request.free_temperature:
            return None, 1.0
        if self._draws.random() < share:
            self.counts["explored"] += 1
            return self._settings.explore_temperature, share
        return None, 1.0 - share

    async def keep(self, recording: Recording, made: Made, prompt: Sequence[int], choices: Sequence[Sampled]) -> None:
        """Adds an answer to its session; called by `Recording.ended`."""
        live, place = recording.live, recording.place
        if place is None:
            place = live.tree.place_ids(prompt)
        line = await self._lines.line(live, place, recording.request, made, choices, recording.propensity)
        try:
            self._journal.append(msgspec.json.encode(line))
        except OSError:
            self.counts["unkept"] += 1
            return
        live.known.update(digest for digest, _ in line.texts)
        for answer, choice in zip(line.answers, choices, strict=True):
            # In memory the tree has the texts as they came: a follow-up brings them so.
            exact = completion_of(msgspec.structs.replace(answer, tokens=int32(choice.tokens), logprobs=None, spans=()))
            live.take(place, exact, answer, text_of(choice.message))
        self._pending.append(line)
        self.counts["answers"] += len(choices)
        self.counts["redacted"] += (line.turn.tokens is None) + sum(answer.tokens is None for answer in line.answers)
        self._is_due.set()

    def _forget(self, session_ids: set[str]) -> None:
        for key in [key for key, live in self._live.items() if live.head.session_id in session_ids]:
            del self._live[key]

    def _adopt(self) -> None:
        for left in left_journals(self._spool):
            for content, line in lines_of(left):
                self._journal.append(content)
                self._pending.append(line)
                self.counts["adopted"] += 1
            left.remove()
        self._is_due.set()

    async def _follow(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_FLUSH_EVERY_S):
                    await self._is_due.wait()
            self._is_due.clear()
            if not await self.flush():
                await asyncio.sleep(_RETRY_S)
                self._is_due.set()

    async def _purging(self) -> None:
        while True:
            with suppress(WeirError, OSError):
                self.counts["expired"] += await self._blocking(self._store.purge)
            await asyncio.sleep(_PURGE_EVERY_S)


@dataclass(frozen=True)
class Recording:
    """One request that is kept.

    Attributes:
      place: in the session's tree; None for a text completion, whose place its ids say.
      temperature: to sample at in place of the request's; None for that.
      propensity: probability of that choice.
    """

    recorder: Recorder
    live: Live
    request: Request
    place: Place | None
    temperature: float | None = None
    propensity: float = 1.0

    @property
    def session_id(self) -> str:
        return self.live.head.session_id

    @property
    def prompt(self) -> list[int] | None:
        """The token ids to sample from; None where they are the request's own."""
        if self.place is None:
            return None
        return [*self.live.tree.ids(self.place.parent), *self.place.given]

    @property
    def begins(self) -> str:
        """How it stands to what was recorded: "continued", "new", or "rebuilt" where it could not be matched."""
        if self.place is None:
            return "new"
        if self.place.rebuilt:
            return "rebuilt"
        return "new" if self.place.parent is None else "continued"

    async def ended(self, made: Made, prompt: Sequence[int], choices: Sequence[Sampled]) -> None:
        """Keeps the answer; called when its last token is there, before its end is told."""
        await self.recorder.keep(self, made, prompt, choices)
