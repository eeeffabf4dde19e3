"""The routes of feedback at a gateway: what is stored, what is refused, and the session calls of agents."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from serving_bridge.database import DatabaseError
from serving_bridge.text import Tokenizer
from tests.support.gateway_world import World, running_gateway
from tests.support.recording_world import Recordings
from tests.support.session_world import tokenizer

__all__ = ["tokenizer"]


@pytest.fixture
def recordings(tmp_path: Path, tokenizer: Tokenizer) -> Recordings:
    return Recordings(tokenizer, tmp_path)


def played(recordings: Recordings, test: Callable[[World], Awaitable[None]], *, records: bool = True) -> None:
    async def play() -> None:
        more: dict[str, Any] = {}
        if records:
            more = {"recorder": recordings.recorder(), "feedback": recordings.feedback()}
        async with running_gateway(recordings.folder, recordings.tokenizer, **more) as world:
            await test(world)

    asyncio.run(play())


async def post(world: World, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    async with world.session.post(world.url + path, json=body, headers=headers) as answer:
        return answer.status, await answer.json()


def test_feedback_one_by_one_and_in_batches(recordings: Recordings) -> None:
    async def test(world: World) -> None:
        _, answer = await world.ask(store=True)
        one = {"kind": "thumbs", "value": "up", "response_id": answer["id"], "rater": "jane", "position": 0}
        status, told = await post(world, "/v1/feedback", one)
        assert (status, told["outcome"]) == (200, "joined")
        assert (await post(world, "/v1/feedback", {**one, "id": told["id"]}))[1]["outcome"] in ("duplicate", "conflict")
        edit = {"kind": "edit", "text": "Twelve.", "response_id": answer["id"]}
        copied = {"kind": "copy", "response_id": answer["id"]}
        status, told = await post(world, "/v1/feedback", {"feedback": [one, edit, copied, {**copied, "choice": 7}]})
        assert (status, told["outcomes"]) == (200, ["duplicate", "joined", "joined", "unknown"])
        async with openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key="none", max_retries=0) as client:
            found = await client.post("/feedback", body=copied, cast_to=object)
            assert found["outcome"] == "duplicate"  # type: ignore[index]

    played(recordings, test)
    kinds = [(one.kind, one.source) for one in reversed(recordings.feedback().listed())]
    assert kinds == [("thumbs", "explicit"), ("edit", "explicit"), ("copy", "implicit"), ("copy", "implicit")]


def test_an_agents_session(recordings: Recordings) -> None:
    async def test(world: World) -> None:
        _, begun = await post(world, "/rl/start_session", {})
        name = begun["session_id"]
        body = {"model": "policy", "messages": [{"role": "user", "content": "What is 5 + 7?"}]}
        status, _ = await post(world, "/v1/chat/completions", body, **begun["headers"])
        assert status == 200
        told = await post(world, "/rl/set_reward", {"session_id": name, "reward": 0.5})
        assert told[0] == 200
        assert await post(world, "/rl/end_session", {"session_id": name}) == (200, {"session_id": name, "ended": True})
        for path, wrong, status in (
            ("/rl/start_session", {"session": name}, 409),
            ("/rl/end_session", {"session_id": "nobody"}, 404),
            ("/rl/end_session", {}, 400),
            ("/rl/set_reward", {"reward": 1.0}, 400),
            ("/rl/set_reward", {"session_id": name, "reward": 1e9}, 400),
            ("/rl/set_reward", {"session_id": name}, 400),
            ("/rl/start_session", {"session": "\n"}, 400),
        ):
            got, error = await post(world, path, wrong)
            assert (got, set(error["error"])) == (status, {"message", "type", "param", "code"}), (path, wrong, error)

    played(recordings, test)
    store = recordings.feedback()
    store.settle()
    ((found,),) = store.of_answers().values()
    assert (found.kind, found.value) == ("outcome", 0.5)


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        {"kind": "thumbs"},
        {"feedback": []},
        {"feedback": [{}]},
        {"feedback": [{}] * 1001},
        "x",
        {"feedback": {}},
    ],
    ids=["list", "empty", "no-answer", "none", "no-piece", "many", "text", "object"],
)
def test_what_is_no_feedback(recordings: Recordings, body: Any) -> None:
    async def test(world: World) -> None:
        status, told = await post(world, "/v1/feedback", body)
        assert (status, set(told["error"])) == (400, {"message", "type", "param", "code"})

    played(recordings, test)
    assert recordings.feedback().listed() == []


def test_where_nothing_is_recorded(recordings: Recordings) -> None:
    async def test(world: World) -> None:
        status, told = await post(world, "/v1/feedback", {"kind": "copy", "response_id": "r"})
        assert (status, told["error"]["code"]) == (404, "unsupported_endpoint")
        async with world.session.get(f"{world.url}/v1/feedback") as answer:
            assert answer.status == 405

    played(recordings, test, records=False)


def test_a_database_that_is_away(recordings: Recordings) -> None:
    async def test(world: World) -> None:
        store = world.gateway._feedback
        assert store is not None

        def away(*_: Any) -> Any:
            raise DatabaseError("away")

        store.add = away  # type: ignore[method-assign]
        status, told = await post(world, "/v1/feedback", {"kind": "copy", "response_id": "r"})
        assert (status, told["error"]["code"]) == (503, "unavailable")

    played(recordings, test)
