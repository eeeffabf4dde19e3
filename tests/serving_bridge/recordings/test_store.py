"""Recorded sessions on both engines: withdrawn and expired consent, what comes late, and several gateways."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serving_bridge.database import DatabaseError
from serving_bridge.recordings import Recorder, RecordingError
from serving_bridge.recordings import recorder as recorder_module
from serving_bridge.sessions import ChatMessage
from serving_bridge.text import Tokenizer
from tests.support.recording_world import Recordings, request, told
from tests.support.session_world import tokenizer

__all__ = ["tokenizer"]

DAY_S = 86_400.0
HELLO = ChatMessage("user", "hello")


@pytest.fixture
def recordings(tmp_path: Path, tokenizer: Tokenizer, database_url: str) -> Iterator[Recordings]:
    found = Recordings(tokenizer, tmp_path, database_url)
    yield found
    assert found.database is not None
    found.database.close()


def recorded(recordings: Recordings, work: Callable[[Recorder], Awaitable[Any]], **settings: Any) -> Any:
    """What `work` gives, called with a recorder that has written all when it returns."""

    async def run() -> Any:
        recorder = recordings.recorder(**settings)
        async with recorder.running():
            return await work(recorder)

    return asyncio.run(run())


async def said(recorder: Recorder, tokenizer: Tokenizer, user: str = "", text: str = "hi", **fields: Any) -> str:
    """One recorded answer; returns the session's id."""
    recording = await recorder.begin(request(HELLO, user=user, **fields))
    assert recording is not None
    await told(recording, tokenizer, text)
    return recording.session_id


def test_a_withdrawal_reaches_what_is_stored_and_what_is_on_its_way(recordings: Recordings) -> None:
    async def work(recorder: Recorder) -> None:
        kept = await said(recorder, recordings.tokenizer, "jane")
        other = await said(recorder, recordings.tokenizer, "joe")
        assert await recorder.flush()
        late = await said(recorder, recordings.tokenizer, "jane", "late")  # in the journal when the consent ends
        assert late == kept
        assert recordings.store.withdraw(tenant="acme", user="jane") == [kept]
        assert await recorder.flush()
        assert recordings.store.counts() == {"kept": 1, "withdrawn": 1, "expired": 0, "answers": 1}
        assert [row.session_id for row in recordings.store.listed(tenant="acme", user="joe")] == [other]
        assert recordings.store.read(kept).texts == {}
        again = await said(recorder, recordings.tokenizer, "jane")  # a new request consents anew
        assert again != kept
        assert await recorder.flush()
        assert recordings.store.counts()["kept"] == 2

    recorded(recordings, work)


def test_a_tenants_withdrawal_reaches_all_its_users(recordings: Recordings) -> None:
    async def work(recorder: Recorder) -> None:
        for user in ("jane", ""):
            await said(recorder, recordings.tokenizer, user)
        other = await said(recorder, recordings.tokenizer, tenant="others")
        assert len(recordings.store.withdraw(tenant="acme")) == 0  # nothing is written yet
        assert await recorder.flush()
        assert [row.session_id for row in recordings.store.listed()] == [other]

    recorded(recordings, work)


def test_one_session_is_withdrawn_for_good(recordings: Recordings) -> None:
    async def work(recorder: Recorder) -> None:
        kept = await said(recorder, recordings.tokenizer)
        assert await recorder.flush()
        assert recordings.store.withdraw(session_id=kept) == [kept]
        assert await said(recorder, recordings.tokenizer) == kept
        assert await recorder.flush()
        assert recordings.store.counts() == {"kept": 0, "withdrawn": 1, "expired": 0, "answers": 0}

    recorded(recordings, work)


def test_sessions_end_with_their_time(recordings: Recordings) -> None:
    async def work(recorder: Recorder) -> None:
        await said(recorder, recordings.tokenizer)
        await said(recorder, recordings.tokenizer, tenant="short", retention_days=1)
        assert await recorder.flush()
        recordings.clock.now_s += 2 * DAY_S
        assert recordings.store.purge() == 1
        assert recordings.store.counts() == {"kept": 1, "withdrawn": 0, "expired": 1, "answers": 1}
        recordings.clock.now_s += 30 * DAY_S
        assert recordings.store.purge() == 1
        assert recordings.store.listed()[0].tenant == "acme"  # the other one is forgotten

    recorded(recordings, work)


def test_a_database_that_is_away(recordings: Recordings) -> None:
    """A session that is known goes on; a new one is answered and not kept, since nobody knows of its consent."""

    async def work(recorder: Recorder) -> None:
        store, real = recorder._store, recorder._store.write

        def away(*_: Any, **__: Any) -> Any:
            raise DatabaseError("away")

        await said(recorder, recordings.tokenizer)
        store.write, find, store.find = away, store.find, away  # type: ignore[assignment, method-assign]
        await said(recorder, recordings.tokenizer, text="more")
        assert await recorder.begin(request(HELLO, user="new")) is None
        assert not await recorder.flush()
        assert recorder.figures()["sessions_pending"] == 2
        store.write, store.find = real, find  # type: ignore[method-assign]

    recorded(recordings, work)
    (kept,) = recordings.store.each()
    assert len(kept.answers) == 2


def test_a_full_session_is_followed_by_another(recordings: Recordings) -> None:
    async def work(recorder: Recorder) -> list[str]:
        return [await said(recorder, recordings.tokenizer) for _ in range(5)]

    names = recorded(recordings, work, max_answers=2)
    assert [names.index(name) for name in names] == [0, 0, 2, 2, 4]


def test_an_explored_share_has_its_propensity(recordings: Recordings) -> None:
    async def work(recorder: Recorder) -> None:
        for number in range(60):
            await said(recorder, recordings.tokenizer, f"user-{number}", free_temperature=True)
        recording = await recorder.begin(request(HELLO))
        assert recording is not None
        assert (recording.temperature, recording.propensity) == (None, 1.0)  # the request names a temperature

    recorded(recordings, work, explore_share=0.25)
    chosen = [answer.propensity for kept in recordings.store.each() for answer in kept.answers]
    assert set(chosen) == {0.25, 0.75}
    assert 5 <= chosen.count(0.25) <= 25


def test_nobody_is_named(recordings: Recordings) -> None:
    with pytest.raises(RecordingError, match="whose consent"):
        recordings.store.withdraw()
    with pytest.raises(RecordingError, match="name the tenant"):
        recordings.store.listed(user="jane")
    with pytest.raises(RecordingError, match="there is no session 'x'"):
        recordings.store.withdraw(session_id="x")


def test_a_session_goes_on_as_long_as_it_is_gone_on_with(recordings: Recordings) -> None:
    """`sessions.resume_s` counts from its last answer, in memory as in the database."""

    async def work(recorder: Recorder) -> list[str]:
        names = []
        for pause_s in (0, 60, 60, 101):
            recordings.clock.now_s += pause_s
            names.append(await said(recorder, recordings.tokenizer))
        return names

    names = recorded(recordings, work, resume_s=100)
    assert [names.index(name) for name in names] == [0, 0, 0, 3]


def test_a_kept_session_is_given_however_many_were_withdrawn_after_it(recordings: Recordings) -> None:
    async def work(recorder: Recorder) -> str:
        return await said(recorder, recordings.tokenizer)

    name = recorded(recordings, work)
    database, late_s = recordings.database, recordings.clock.now_s + 1
    assert database is not None
    empty = [(f"gone-{number}", late_s, late_s, late_s) for number in range(10_001)]
    database.write(
        lambda session: session.executemany(
            "INSERT INTO recorded_sessions VALUES (?, 'acme', '', '', '0.0', 'withdrawn', ?, ?, ?)", empty
        )
    )
    assert [kept.row.session_id for kept in recordings.store.each()] == [name]
    assert [kept.row.session_id for kept in recordings.store.each(tenant="acme")] == [name]


def test_a_journal_that_is_never_idle_stays_small(recordings: Recordings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that come while the database writes: what it has leaves the journal, and what it lacks stays."""
    monkeypatch.setattr(recorder_module, "_JOURNAL_BYTES", 2000)

    async def work() -> tuple[int, int]:
        recorder = recordings.recorder()

        async def busy(call: Any, *arguments: Any) -> Any:
            if arguments:
                await said(recorder, recordings.tokenizer)
            return call(*arguments)

        recorder._blocking = busy
        await said(recorder, recordings.tokenizer)
        for _ in range(20):
            assert not await recorder.flush()
        size = recorder._journal.num_bytes
        recorder._journal.close(remove=False)  # killed
        return size, len(recorder._pending)

    size, pending = asyncio.run(work())
    assert (size < 5000, pending) == (True, 1)
    recorded(recordings, lambda recorder: recorder.flush())
    (kept,) = recordings.store.each()
    assert len(kept.answers) == 21
