"""Answers that break off, or come in segments: taken up where they ended, as often as the settings say."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from serving_bridge.settings import VLLM_PRIORITY
from serving_bridge.text.tokenizer import Tokenizer
from serving_bridge.vllm.answers import Rejected, Unreachable
from tests.support.player_table import Table
from tests.support.qwen_tokenizer import qwen as qwen
from tests.support.qwen_tokenizer import qwen_folder as qwen_folder
from tests.support.rollout_world import FakeReplica, choice, reply, virtually


def test_an_aborted_answer_is_taken_up_where_it_broke_off_by_another_replica(qwen: Tokenizer) -> None:
    async def story() -> None:
        eos = qwen.eos_ids[0]
        replicas = {name: FakeReplica() for name in "ab"}
        broken = reply(choice([5, 6, 7], "abort", spans=[("1", 0, 2), ("2", 2, 3)]))
        dead = reply(choice([], "abort"))
        whole = reply(choice([8, eos], logprobs=[-0.25, -0.5], spans=[("3", 0, 2)]))
        script = [broken, dead, whole]
        for replica in replicas.values():
            replica.script = [lambda _: script.pop(0)] * 3
        table = Table(qwen, replicas)
        (turn,) = (await table.play()).turns
        bodies = sorted((b for r in replicas.values() for b in r.bodies), key=lambda body: len(body["token_ids"]))
        assert [len(b["token_ids"]) - len(table.prompt) for b in bodies] == [0, 3, 3]
        assert bodies[2]["token_ids"] == [*table.prompt, 5, 6, 7]
        assert [body["sampling_params"]["max_tokens"] for body in bodies] == [8, 5, 5]
        assert turn.answer.tokens.tolist() == [5, 6, 7, 8, eos]
        assert turn.answer.policy_version.tolist() == [1, 1, 2, 3, 3]
        np.testing.assert_allclose(turn.answer.logprobs, [-0.05, -0.06, -0.07, -0.25, -0.5])
        assert turn.answer.finish_reason == "stop"
        assert (table.count["resumed"], table.count["retries"]) == (1, 1)
        assert set(table.dispatcher.loads().values()) == {(0, 32)}

    virtually(story())


@pytest.mark.parametrize("ending", ["stop", "length"])
def test_an_answer_aborted_at_its_very_end_has_ended(qwen: Tokenizer, ending: str) -> None:
    async def story() -> None:
        tokens = [5, 6, qwen.eos_ids[0]] if ending == "stop" else [5] * 8
        replica = FakeReplica(script=[lambda _: reply(choice(tokens, "abort", logprobs=[-1.0] * len(tokens)))])
        table = Table(qwen, {"a": replica})
        (turn,) = (await table.play()).turns
        assert (turn.answer.finish_reason, len(replica.bodies)) == (ending, 1)

    virtually(story())


def test_users_go_first_where_a_replica_is_shared(qwen: Tokenizer) -> None:
    async def story() -> None:
        replica = FakeReplica(script=[lambda _: reply(choice([5, qwen.eos_ids[0]], logprobs=[-1.0, -1.0]))])
        await Table(qwen, {"a": replica}).play()
        (body,) = replica.bodies
        assert body["priority"] == VLLM_PRIORITY["training"] > VLLM_PRIORITY["evaluation"] > VLLM_PRIORITY["free"]

    virtually(story())


def test_long_answers_are_sampled_in_segments_up_to_the_budget(qwen: Tokenizer) -> None:
    async def story() -> None:
        replica = FakeReplica(stop=0.0)
        table = Table(qwen, {"a": replica}, segment_tokens=3)
        (turn,) = (await table.play()).turns
        assert [body["sampling_params"]["max_tokens"] for body in replica.bodies] == [3, 3, 2]
        assert replica.bodies[2]["token_ids"] == [*table.prompt, *turn.answer.tokens.tolist()[:6]]
        assert (len(turn.answer), turn.answer.finish_reason, table.count["segments"]) == (8, "length", 2)
        assert table.trajectory(await table.play()).finish_reason == "length"

    virtually(story())


def test_a_lost_segment_costs_no_more_than_itself(qwen: Tokenizer) -> None:
    async def story() -> None:
        def lost(_: Any) -> Any:
            raise ConnectionResetError

        replica = FakeReplica(stop=0.0)
        table = Table(qwen, {"a": replica}, segment_tokens=3)
        replica.script = [lambda _: reply(choice([5, 6, 7], "length")), lost]
        (turn,) = (await table.play()).turns
        assert turn.answer.tokens.tolist()[:3] == [5, 6, 7]
        assert [len(body["token_ids"]) - len(table.prompt) for body in replica.bodies] == [0, 3, 3, 6]

    virtually(story())


def test_requests_are_given_up_after_so_many_tries_in_a_row(qwen: Tokenizer) -> None:
    async def story() -> None:
        replica = FakeReplica(script=[lambda _: (500, b"no")] * 3)
        table = Table(qwen, {"a": replica}, failures_to_avoid=9)
        with pytest.raises(Unreachable, match="500 no"):
            await table.play()
        assert (len(replica.bodies), table.count["retries"]) == (3, 3)
        replica.script = [lambda _: (400, b"too long")]
        with pytest.raises(Rejected, match="400 too long"):
            await table.play()
        assert len(replica.bodies) == 4

    virtually(story())


def test_a_cancelled_request_gives_its_place_back_and_counts_as_neither(qwen: Tokenizer) -> None:
    async def story() -> None:
        table = Table(qwen, {"a": FakeReplica(token_s=30.0)})
        playing = asyncio.create_task(table.play())
        await asyncio.sleep(1)
        assert table.dispatcher.loads() == {"a": (1, 32)}
        playing.cancel()
        await asyncio.gather(playing, return_exceptions=True)
        assert table.dispatcher.loads() == {"a": (0, 32)}
        assert table.dispatcher.totals() == {}

    virtually(story())


def test_what_failed_is_asked_of_another_replica_wherever_the_prefix_is(qwen: Tokenizer) -> None:
    async def story() -> None:
        script: list[Any] = [lambda _: (500, b"no")]
        replicas = {name: FakeReplica(script=script, stop=0.0) for name in "ab"}
        table = Table(qwen, replicas, failures_to_avoid=9)
        await table.play()
        assert [len(replica.bodies) for replica in replicas.values()] == [1, 1]

    virtually(story())


def test_tries_wait_twice_as_long_each_time_up_to_ten_seconds(qwen: Tokenizer) -> None:
    async def story() -> None:
        asked_s: list[float] = []

        def fails(_: Any) -> Any:
            asked_s.append(asyncio.get_running_loop().time())
            return 500, b"no"

        table = Table(qwen, {"a": FakeReplica(script=[fails] * 9)}, max_attempts=9, failures_to_avoid=99)
        with pytest.raises(Unreachable, match="500 no"):
            await table.play()
        pauses = np.diff(asked_s)
        longest = [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
        assert all(0.5 * most <= pause <= most for pause, most in zip(pauses, longest, strict=True)), pauses

    virtually(story())
