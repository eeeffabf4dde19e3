"""Conversations through a gateway that records them: consent, exact ids, follow-ups, redaction, kills."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving_bridge.gateway import Arms, Split
from serving_bridge.recordings import Recorded, ids_of, message_of, versions_of
from serving_bridge.registry import Cohort
from serving_bridge.text import Tokenizer
from tests.support.gateway_world import Script, World, running_gateway, text_of
from tests.support.recording_world import Recordings
from tests.support.session_world import ADD, CALL, tokenizer

__all__ = ["tokenizer"]

QUESTION = {"role": "user", "content": "What is 5 + 7?"}
MORE = {"role": "user", "content": "And one more?"}


@pytest.fixture
def recordings(tmp_path: Path, tokenizer: Tokenizer) -> Recordings:
    return Recordings(tokenizer, tmp_path)


def played(
    recordings: Recordings, test: Callable[[World], Awaitable[None]], script: Script | None = None, **settings: Any
) -> list[Recorded]:
    """The sessions that were kept when the gateway has ended."""

    async def play() -> None:
        recorder = recordings.recorder(**settings)
        async with running_gateway(
            recordings.folder, recordings.tokenizer, script or Script(), recorder=recorder
        ) as world:
            await test(world)

    asyncio.run(play())
    return list(recordings.store.each())


def spelled(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text, letter by letter: never those that encoding it gives."""
    return [i for letter in text for i in tokenizer.backend.encode(letter, add_special_tokens=False).ids]


def test_nothing_is_kept_without_consent(recordings: Recordings) -> None:
    async def test(world: World) -> None:
        assert "session" not in (await world.ask())[1]["weir"]
        assert "session" not in (await world.ask(store=False))[1]["weir"]
        assert "session" not in (await world.ask(metadata={"weir_consent": "no"}))[1]["weir"]
        body = {"model": "policy", "messages": [QUESTION], "store": True}
        url = f"{world.url}/v1/chat/completions"
        async with world.session.post(url, json=body, headers={"X-Weir-Consent": "no"}) as refused:
            assert refused.status == 200
            assert "x-weir-session" not in refused.headers

    script = Script()
    assert played(recordings, test, script) == []
    assert ["logprobs" in asked["sampling_params"] for asked in script.asked] == [False] * 4
    assert not list((recordings.folder / "spool").glob("*.journal"))


@pytest.mark.parametrize("consent", [{"store": True}, {"metadata": {"weir_consent": "yes"}}], ids=["store", "metadata"])
def test_a_kept_answer_is_what_the_engine_saw(recordings: Recordings, consent: dict[str, Any]) -> None:
    script = Script("It is twelve.")

    async def test(world: World) -> None:
        status, answer = await world.ask(**consent, temperature=0.7, user="jane", max_tokens=50)
        assert (status, answer["weir"]["recorded"]) == (200, "new")
        assert answer["choices"][0]["logprobs"] is None

    (kept,) = played(recordings, test, script)
    (asked,), (turn,), (answer,) = script.asked, kept.turns, kept.answers
    assert turn.tokens is not None
    assert ids_of(turn.tokens) == asked["token_ids"]
    want = recordings.tokenizer.backend.encode("It is twelve.", add_special_tokens=False).ids
    assert answer.tokens is not None
    assert answer.logprobs is not None
    assert ids_of(answer.tokens) == [*want, recordings.tokenizer.eos_ids[0]]
    assert np.frombuffer(answer.logprobs, "<f4").tolist() == [-0.5] * (len(want) + 1)
    assert versions_of(answer).tolist() == [3] * (len(want) + 1)
    assert (answer.arm, answer.temperature, answer.bent, answer.max_tokens) == ("stable", 0.7, (), 50)
    assert [message_of(kept.texts[digest]).content for digest in turn.texts] == [QUESTION["content"]]
    assert message_of(kept.texts[answer.text]).content == "It is twelve."
    assert kept.row.user not in ("", "jane")


def test_a_follow_up_goes_on_from_recorded_ids_on_any_gateway(recordings: Recordings) -> None:
    """The sampled ids are spelled out: encoding the text again would give others."""
    tokenizer = recordings.tokenizer
    first = spelled(tokenizer, "It is twelve.")
    script = Script(tokens=first)
    told: list[Any] = []

    async def begin(world: World) -> None:
        events = await world.stream(store=True)
        told.append({"role": "assistant", "content": text_of(events)})

    async def go_on(world: World) -> None:
        _, answer = await world.ask(messages=[QUESTION, told[0], MORE], store=True)
        assert answer["weir"]["recorded"] == "continued"

    played(recordings, begin, script)
    (kept,) = played(recordings, go_on, script)  # another process: it has the session from the database
    before = [*script.asked[0]["token_ids"], *first, tokenizer.eos_ids[0]]
    assert script.asked[1]["token_ids"][: len(before)] == before
    assert [turn.parent for turn in kept.turns] == ["", kept.answers[0].answer_id]
    contents = [message_of(text).content for text in kept.texts.values()]
    assert sorted(contents) == sorted([QUESTION["content"], MORE["content"], "It is twelve."])  # said twice, kept once
    assert len(kept.answers) == 2


def test_what_can_not_be_matched_begins_a_branch_and_says_so(recordings: Recordings) -> None:
    script = Script("It is twelve.")

    async def test(world: World) -> None:
        _, answer = await world.ask(store=True)
        changed = {"role": "assistant", "content": "It is thirteen."}
        _, branch = await world.ask(messages=[QUESTION, changed, MORE], store=True)
        assert branch["weir"]["recorded"] == "rebuilt"
        assert branch["weir"]["session"] == answer["weir"]["session"]
        _, again = await world.ask(store=True)
        assert again["weir"]["recorded"] == "new"

    (kept,) = played(recordings, test, script)
    assert [turn.rebuilt for turn in kept.turns] == [False, True]  # asked again: the same turn
    assert len(kept.answers) == 3
    contents = [message_of(text).content for text in kept.texts.values()]
    assert len(contents) == len(set(contents)) == 4


def test_personal_data_is_redacted_and_has_no_ids(recordings: Recordings) -> None:
    secret = "Write to jane.doe@example.com, please."
    script = Script("I wrote to jane.doe@example.com.")

    async def test(world: World) -> None:
        asked = [{"role": "user", "content": secret}]
        _, answer = await world.ask(messages=asked, store=True)
        said = answer["choices"][0]["message"]
        assert said["content"] == script.text  # who asks sees the answer
        script.text = "Done."
        _, more = await world.ask(messages=[*asked, said, MORE], store=True)
        assert more["weir"]["recorded"] == "continued"  # while this process lives, the ids are in its memory

    (kept,) = played(recordings, test, script)
    assert [turn.tokens is None for turn in kept.turns] == [True, False]
    assert [(answer.tokens is None, answer.logprobs is None) for answer in kept.answers] == [
        (True, True),
        (False, False),
    ]
    assert "jane.doe" not in str(kept)
    assert "<EMAIL_1>" in str(kept.texts)
    for path in recordings.folder.rglob("*"):
        assert not path.is_file() or b"jane.doe" not in path.read_bytes(), path


def test_a_cut_answer_is_kept_and_not_gone_on_from(recordings: Recordings) -> None:
    script = Script("It is twelve. I am sure.")

    async def test(world: World) -> None:
        _, answer = await world.ask(store=True, stop="I am")
        said = answer["choices"][0]["message"]
        assert said["content"] == "It is twelve. "
        _, more = await world.ask(messages=[QUESTION, said, MORE], store=True)
        assert more["weir"]["recorded"] == "rebuilt"

    (kept,) = played(recordings, test, script)
    assert [(answer.goes_on, answer.bent) for answer in kept.answers] == [(False, ("stop",)), (True, ())]


def test_calls_of_tools_and_several_choices(recordings: Recordings) -> None:
    script = Script(CALL)

    async def test(world: World) -> None:
        _, answer = await world.ask(store=True, tools=[ADD], n=2)
        said = answer["choices"][1]["message"]
        (call,) = said["tool_calls"]
        result = {"role": "tool", "content": "3", "tool_call_id": call["id"]}
        _, more = await world.ask(messages=[QUESTION, said, result], store=True, tools=[ADD])
        assert more["weir"]["recorded"] == "continued"

    (kept,) = played(recordings, test, script)
    assert [answer.answer_id[-2:] for answer in kept.answers] == ["/0", "/1", "/0"]
    assert len(kept.turns) == 2  # two choices of one turn


def test_an_answer_that_ended_is_not_lost_when_the_process_is_killed(recordings: Recordings) -> None:
    """The database is away; the process ends without a word; the next one of this host has the answer."""
    from serving_bridge.database import DatabaseError

    async def die() -> None:
        recorder = recordings.recorder()

        def away(lines: Any) -> list[str]:
            raise DatabaseError("away")

        recorder._store.write = away  # type: ignore[method-assign]
        async with running_gateway(recordings.folder, recordings.tokenizer, Script(), recorder=recorder) as world:
            _, answer = await world.ask(store=True)
            assert answer["weir"]["session"]
            recorder._journal.close(remove=False)  # the kernel closes a dead process's files

    async def live(world: World) -> None:
        await asyncio.sleep(0)

    asyncio.run(die())
    assert list(recordings.store.each()) == []
    (kept,) = played(recordings, live)
    assert len(kept.answers) == 1
    assert not list((recordings.folder / "spool").glob("*.journal"))


def test_completions_are_kept_by_their_ids(recordings: Recordings) -> None:
    script = Script("twelve.")

    async def test(world: World) -> None:
        url = f"{world.url}/v1/completions"
        for prompt in ("It is", [*recordings.tokenizer.encode("It is")]):
            body = {"model": "policy", "prompt": prompt}
            async with world.session.post(url, json=body, headers={"X-Weir-Consent": "yes"}) as answer:
                assert answer.status == 200, await answer.text()

    sessions = played(recordings, test, script)
    turns = [turn for kept in sessions for turn in kept.turns]
    assert [turn.is_chat for turn in turns] == [False, False]
    assert {turn.tokens for turn in turns} == {np.asarray(script.asked[0]["token_ids"], "<i4").tobytes()}


@pytest.mark.parametrize(
    "headers", [{"X-Weir-Consent": "maybe"}, {"X-Weir-Session": "é"}, {"X-Weir-Session": "x" * 300}]
)
def test_wrong_headers(recordings: Recordings, headers: dict[str, str]) -> None:
    async def test(world: World) -> None:
        body = {"model": "policy", "messages": [QUESTION]}
        async with world.session.post(f"{world.url}/v1/chat/completions", json=body, headers=headers) as refused:
            assert refused.status == 400
            error = (await refused.json())["error"]
            assert next(iter(headers)).lower() in error["message"]

    assert played(recordings, test) == []


def test_an_arm_has_the_propensity_of_its_deal(recordings: Recordings) -> None:
    split = Split(stable=3, canary=4, canary_share=0.25)
    arms = Arms(split)
    assert [arms.propensity(arm) for arm in ("stable", "canary")] == [0.75, 0.25]
    whole = Arms(replace(split, cohort=Cohort(frozenset({"acme"}))))
    assert [whole.propensity("canary", tenant) for tenant in ("acme", "local")] == [1.0, 0.0]
    assert Arms().propensity("stable") == 1.0

    async def play() -> None:
        recorder = recordings.recorder()
        script = Script(version="3", row_version=3)
        async with running_gateway(
            recordings.folder, recordings.tokenizer, script, recorder=recorder, read_split=lambda: split
        ) as world:
            for number in range(8):
                await world.ask(store=True, prompt_cache_key=f"c{number}")

    asyncio.run(play())
    found = {(a.arm, a.propensity) for kept in recordings.store.each() for a in kept.answers}
    assert found == {("stable", 0.75), ("stable", 0.25)}  # the canary has no replica: stable answered in its place
