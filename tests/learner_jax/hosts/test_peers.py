"""What a host concludes of the others from what it hears, and from silence: without sockets, in virtual time."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from learner_jax.hosts import peers as module
from learner_jax.hosts.peers import Peers
from learner_jax.hosts.wire import Beat, Bye, Failed, Message, WireError
from tests.support.heard_hosts import BEAT_S, HEARTBEAT_S, Host, Line, begun, now
from tests.support.virtual_time import run


def test_all_are_here_once_the_last_has_come() -> None:
    async def program() -> None:
        host = Host(3)
        waiting = asyncio.create_task(host.peers.all_here())
        await asyncio.sleep(1)
        host.joins(2)
        await asyncio.sleep(1)
        assert not waiting.done()
        host.joins(1)
        await asyncio.wait_for(waiting, 1)

    run(program())


def test_the_first_connection_counts_while_hosts_come_and_the_last_one_afterwards() -> None:
    async def program() -> None:
        host = Host(2)
        first, second = host.joins(1), host.joins(1)
        host.peers.begin()
        await host.peers.tell(Bye())
        assert (first.told, second.told) == ([Bye()], [])
        third = host.joins(1)
        await host.peers.tell(Bye())
        assert (first.told, second.told, third.told) == ([Bye()], [], [Bye()])
        for replaced in (first, second):  # what it was replaced for is no end of the host
            replaced.says(EOFError())
        await asyncio.sleep(0.1)
        assert host.ends == []

    run(program())


def test_an_end_before_all_have_come_is_for_the_roll_call_to_tell() -> None:
    async def program() -> None:
        host = Host(2)
        host.joins(1).says(EOFError())
        await asyncio.sleep(1)
        assert host.ends == []

    run(program())


@pytest.mark.parametrize("error", [EOFError(), OSError("reset"), WireError("no message")])
def test_a_connection_that_ends_ends_this_host_and_tells_the_others_first(error: Exception) -> None:
    async def program() -> None:
        host = begun(3)
        host.lines[1].says(error)
        await asyncio.sleep(0.1)
        ((text, _),) = host.ends
        assert text.startswith("host 0 of 3 stops, because host 1 died: its process was killed")
        (told,) = host.lines[2].told
        assert isinstance(told, Failed)
        assert (told.host, told.message.startswith("host 1 died:")) == (1, True)
        assert host.lines[1].told == []

    run(program())


def test_a_host_that_has_finished_is_missed_by_nobody() -> None:
    async def program() -> None:
        host = begun(3)
        host.all_beat(2)
        host.lines[1].says(Bye())
        await asyncio.sleep(0.1)
        host.lines[1].says(EOFError())
        await asyncio.sleep(5 * HEARTBEAT_S)
        assert host.ends == []
        assert host.lines[1].told == [], "nothing is said to who has left"
        assert host.lines[2].told

    run(program())


def test_what_another_host_says_of_its_end_is_passed_on_once_and_quoted() -> None:
    async def program() -> None:
        host = begun(3)
        host.lines[2].says(Failed(1, "host 1 failed: no disk\x1b[31m"))
        await asyncio.sleep(0.1)
        host.lines[1].says(Failed(1, "host 1 failed: something else"))
        await asyncio.sleep(0.1)
        assert [text for text, _ in host.ends] == [
            "host 0 of 3 stops, because host 1 failed: no disk\\x1b[31m",
        ]
        for line in host.lines.values():
            assert line.told == [Failed(1, "host 1 failed: no disk\\x1b[31m")]

    run(program())


def test_a_host_that_others_gave_up_says_who() -> None:
    async def program() -> None:
        host = begun(3)
        host.lines[2].says(Failed(0, "host 1 heard nothing from host 0"))
        await asyncio.sleep(0.1)
        ((text, _),) = host.ends
        assert text == (
            "host 0 of 3 stops, because host 2 gave it up: host 1 heard nothing from host 0; was this process stopped?"
        )

    run(program())


def test_hosts_hear_beats_and_a_question_is_answered_with_its_number() -> None:
    async def program() -> None:
        host = begun(2)
        host.lines[1].says(Beat(ask=7))
        await asyncio.sleep(0.1)
        assert host.lines[1].told == [Beat(answer=7)]
        await asyncio.sleep(3 * BEAT_S)
        assert host.lines[1].told == [Beat(answer=7), *[Beat()] * 3]

    run(program())


def test_a_silent_host_is_given_up_at_the_bound() -> None:
    async def program() -> None:
        host = begun(3)
        host.all_beat(2)
        await asyncio.sleep(HEARTBEAT_S - BEAT_S / 2)
        assert host.ends == []
        await asyncio.sleep(BEAT_S)
        ((text, at_s),) = host.ends
        assert at_s == pytest.approx(HEARTBEAT_S)
        heard = "heard nothing from host 1 for 8 s (learner.hosts.heartbeat_timeout_s)"
        likely = "its process or machine is stopped, or cut off"
        assert text == f"host 0 of 3 stops, because it {heard}: {likely}"
        assert host.lines[2].told_but_beats() == [Failed(1, f"host 0 {heard}: {likely}")]

    run(program())


def test_silence_counts_from_the_beginning_and_not_from_when_a_host_came() -> None:
    async def program() -> None:
        host = Host(2)
        host.joins(1)
        await asyncio.sleep(3 * HEARTBEAT_S)
        host.peers.begin()
        await asyncio.sleep(HEARTBEAT_S - BEAT_S / 2)
        assert host.ends == []

    run(program())


def test_who_hears_nobody_of_several_was_cut_off_itself() -> None:
    async def program(count: int) -> str:
        host = begun(count)
        if count > 2:  # their last beats are a little apart
            await asyncio.sleep(1.5 * BEAT_S)
            host.lines[2].says(Beat())
        await asyncio.sleep(2 * HEARTBEAT_S)
        return host.ends[0][0]

    assert "from hosts 1, 2 for 8 s" in run(program(3))
    assert run(program(3)).endswith("this host was cut off from the network")
    assert run(program(2)).endswith("its process or machine is stopped, or cut off")


def test_hosts_that_fell_silent_later_are_not_named() -> None:
    async def program() -> None:
        host = begun(4)
        host.all_beat(3)
        for _ in range(5):
            await asyncio.sleep(BEAT_S)
            host.lines[2].says(Beat())
        await asyncio.sleep(HEARTBEAT_S)
        assert "heard nothing from host 1 for" in host.ends[0][0]

    run(program())


def test_a_host_that_was_stopped_itself_does_not_judge_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async def program() -> None:
        host = begun(2)
        await asyncio.sleep(4.5 * BEAT_S)
        stopped_s = HEARTBEAT_S + BEAT_S  # the clock went on, and nothing of this process did
        monkeypatch.setattr(module, "_now_s", lambda: now() + stopped_s)
        await asyncio.sleep(HEARTBEAT_S - 2 * BEAT_S)
        assert host.ends == []
        await asyncio.sleep(4 * BEAT_S)
        assert len(host.ends) == 1

    run(program())


def test_a_host_that_fails_tells_the_others_at_once_and_is_ended_if_it_does_not_end() -> None:
    async def program() -> None:
        host = begun(3)
        await host.peers.fail("no disk")
        for line in host.lines.values():
            assert line.told == [Failed(0, "host 0 failed: no disk")]
        assert host.ends == []
        await asyncio.sleep(module._UNWIND_S + 0.1)
        assert [text for text, _ in host.ends] == ["host 0 of 3 failed: no disk"]
        host.lines[1].says(EOFError())  # the others end because of it
        await asyncio.sleep(0.1)
        assert len(host.ends) == 1
        again = asyncio.create_task(host.peers.fail("another reason"))
        await asyncio.sleep(100)
        assert not again.done()
        again.cancel()
        assert host.lines[2].told_but_beats() == [Failed(0, "host 0 failed: no disk")]

    run(program())


def test_telling_takes_no_longer_than_a_moment() -> None:
    async def program() -> None:
        host = begun(3)
        host.lines[1].is_slow = True
        started_s = now()
        await host.peers.tell(Bye())
        assert now() - started_s == pytest.approx(module._TELL_S)
        assert host.lines[2].told_but_beats() == [Bye()]

    run(program())


def test_settled_is_who_heard_every_host_after_it_asked() -> None:
    async def program() -> None:
        host = begun(4)
        host.lines[3].says(Bye())
        await asyncio.sleep(0.1)
        settling = asyncio.create_task(host.peers.settle())
        await asyncio.sleep(0.1)
        assert [line.told for line in host.lines.values()] == [[Beat(ask=1)]] * 3
        for heard in (Beat(), Beat(answer=2), Beat(ask=1)):
            host.lines[2].says(heard)
        host.lines[1].says(Beat(answer=1))
        await asyncio.sleep(0.1)
        assert not settling.done()
        host.lines[2].says(Beat(answer=1))
        await asyncio.wait_for(settling, 0.1)
        again = asyncio.create_task(host.peers.settle())
        await asyncio.sleep(0.1)
        for index in (1, 2):
            assert host.lines[index].told[-1] == Beat(ask=2)
            host.lines[index].says(Beat(answer=1))
        await asyncio.sleep(0.1)
        assert not again.done(), "that was the answer to the question before"
        again.cancel()

    run(program())


def test_nobody_is_settled_while_the_process_ends() -> None:
    async def program() -> None:
        host = begun(2)
        await host.peers.over(1, "host 1 died")
        settling = asyncio.create_task(host.peers.settle())
        host.lines[1].says(Beat(answer=1))
        await asyncio.sleep(1)
        assert not settling.done()
        settling.cancel()

    run(program())


@pytest.mark.parametrize("last", [Bye(), EOFError()], ids=["bye", "end"])
def test_who_leaves_waits_until_all_have_left(last: Message | Exception) -> None:
    async def program() -> None:
        host = begun(3)
        leaving = asyncio.create_task(host.peers.leave())
        await asyncio.sleep(0.1)
        assert [line.told_but_beats() for line in host.lines.values()] == [[Bye()], [Bye()]]
        host.lines[1].says(last)
        await asyncio.sleep(1)
        assert not leaving.done()
        host.lines[2].says(last)
        await asyncio.wait_for(leaving, 0.1)
        assert host.ends == []

    run(program())


def test_who_leaves_waits_for_the_others_no_longer_than_the_bound_and_judges_nobody() -> None:
    async def program() -> None:
        host = begun(2)
        started_s = now()
        await host.peers.leave()
        assert now() - started_s == pytest.approx(HEARTBEAT_S)
        await asyncio.sleep(3 * HEARTBEAT_S)
        host.lines[1].says(EOFError())
        await asyncio.sleep(0.1)
        assert host.ends == []

    run(program())


def test_the_end_waits_for_the_log() -> None:
    async def program() -> None:
        host = begun(2)

        def log(event: str, **fields: Any) -> None:
            time.sleep(0.05)
            host.ends.append((event, 0.0))

        host.peers.log = log
        host.lines[1].says(EOFError())
        await asyncio.sleep(0.1)
        assert [text.split()[0] for text, _ in host.ends] == ["host_failed", "host"]

    run(program())


def test_the_reason_is_logged_and_a_log_that_hangs_or_fails_does_not_keep_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_TELL_S", 0.05)
    logged: list[Any] = []

    def hangs(event: str, **fields: Any) -> None:
        logged.append((event, fields))
        threading.Event().wait(5)

    def fails(event: str, **fields: Any) -> None:
        logged.append((event, fields))
        raise OSError("no disk")

    async def program(log: Any) -> None:
        host = begun(2)
        host.peers.log = log
        host.lines[1].says(Failed(1, "host 1 failed: no disk"))
        await asyncio.sleep(0.1)
        assert len(host.ends) == 1
        assert logged.pop() == ("host_failed", {"host": 1, "error": host.ends[0][0]})

    run(program(hangs))
    run(program(fails))


def test_a_watch_that_breaks_ends_its_process() -> None:
    async def breaks() -> None:
        raise ValueError("a bug")

    async def program() -> None:
        host = begun(2)
        host.peers.keep(breaks())
        await asyncio.sleep(0.1)
        assert [text for text, _ in host.ends] == ["host 0 of 2 can't watch the others any more: ValueError: a bug"]

    run(program())


@pytest.mark.parametrize(("heartbeat_s", "beat_s"), [(4.0, 0.5), (8.0, 1.0), (100.0, 1.0)])
def test_there_are_eight_beats_to_a_bound_and_one_a_second_at_least(heartbeat_s: float, beat_s: float) -> None:
    async def program() -> None:
        line: Any = Line()
        peers = Peers(1, 2, heartbeat_s=heartbeat_s, end=lambda text: None)
        peers.add(0, line)
        peers.begin()
        await asyncio.sleep(3.5 * beat_s)
        assert line.told == [Beat()] * 3

    run(program())
