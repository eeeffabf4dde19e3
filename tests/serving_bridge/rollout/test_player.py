"""Episodes and groups as they are played: what is sent, what is kept and what it becomes."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rewards.contracts import Outcome, RewardRequest, RewardResult
from rewards.environments import FeedbackEnvironment
from serving_bridge.rollout.episodes import EpisodeError
from serving_bridge.rollout.player import Player
from serving_bridge.rollout.sampling import Prefix
from serving_bridge.text.tokenizer import Tokenizer
from tests.support.player_table import Table, says
from tests.support.qwen_tokenizer import qwen as qwen
from tests.support.qwen_tokenizer import qwen_folder as qwen_folder
from tests.support.rollout_world import AdditionTask, FakeReplica, choice, reply, virtually


def test_a_dialog_ends_with_the_right_answer_and_pays_at_the_turn_that_gave_it(qwen: Tokenizer) -> None:
    async def story() -> None:
        replica = FakeReplica(script=[says(qwen, "one"), says(qwen, "two", "2")])
        table = Table(qwen, {"a": replica}, turns=3)
        replica.script.append(says(qwen, table.problem.answer, "3"))
        episode = await table.play()
        sent = [body["token_ids"] for body in replica.bodies]
        said = qwen.backend.encode(f" noexpected '{table.problem.answer}'\n", add_special_tokens=False).ids
        answers = [turn.answer.tokens.tolist() for turn in episode.turns]
        assert sent[0] == table.prompt
        assert sent[1] == [*table.prompt, *answers[0], *said]
        assert sent[2] == [*table.prompt, *answers[0], *said, *answers[1], *said]
        found = table.trajectory(episode)
        assert found.tokens.tolist() == [*sent[2], *answers[2]]
        lengths = [(len(table.prompt), len(answers[0])), (len(said), len(answers[1])), (len(said), len(answers[2]))]
        assert found.turn.tolist() == [t for t, (a, b) in enumerate(lengths) for _ in range(a + b)]
        assert found.loss_mask.tolist() == [m for a, b in lengths for m in [False] * a + [True] * b]
        assert found.policy_version.tolist() == [v for t, (a, b) in enumerate(lengths) for v in [-1] * a + [t + 1] * b]
        assert not found.behavior_logprobs[~found.loss_mask].any()
        assert set(found.behavior_logprobs[found.loss_mask].tolist()) == {-0.5}
        assert found.rewards.tolist() == [0.0] * (len(found.tokens) - 1) + [0.25]
        assert found.reward_parts == {"right": 1.0, "turns": 3.0}
        assert (found.tokenizer, found.oldest_version, table.count["environment_turns"]) == ("fingerprint", 1, 2)

    virtually(story())


def test_a_right_first_answer_ends_the_dialog_at_full_reward(qwen: Tokenizer) -> None:
    async def story() -> None:
        replica = FakeReplica()
        table = Table(qwen, {"a": replica}, turns=3)
        replica.script.append(says(qwen, table.problem.answer))
        found = table.trajectory(await table.play())
        assert (found.rewards[-1], found.turn.max(), len(replica.bodies)) == (1.0, 0, 1)

    virtually(story())


def test_a_dialog_ends_where_its_room_ends_and_where_an_answer_is_cut(qwen: Tokenizer) -> None:
    async def story() -> None:
        replica = FakeReplica(script=[says(qwen, "one"), says(qwen, "two"), says(qwen, "three")])
        table = Table(qwen, {"a": replica}, turns=3, max_episode_tokens=30)
        assert len((await table.play()).turns) == 2
        replica.script = [lambda _: reply(choice([7] * 8, "length"))]
        episode = await table.play()
        assert (len(episode.turns), episode.turns[0].answer.finish_reason) == (1, "length")

    virtually(story())


def test_an_observation_that_is_too_long_is_an_error_that_says_what_to_set(qwen: Tokenizer) -> None:
    async def story() -> None:
        replica = FakeReplica(script=[says(qwen, "one")])
        table = Table(qwen, {"a": replica}, turns=2, max_prompt_tokens=3)
        with pytest.raises(EpisodeError, match=r"has \d+ tokens, expected 1 to 3: raise rollout.max_prompt_tokens"):
            await table.play()

    virtually(story())


def test_what_was_sampled_is_never_encoded_again(qwen: Tokenizer, shared_data: Path) -> None:
    """A real case: the ids that a policy sampled, and the other ids that encoding the same text gives."""
    golden = json.loads((shared_data / "rl_golden_vectors" / "nemo_rl_vllm_retokenization_merge.json").read_text())
    seen, again = golden["seen_token_ids"], golden["output_prompt_token_ids"]
    first = next(i for i, (a, b) in enumerate(zip(seen, again, strict=False)) if a != b)
    sampled, eos = seen[first - 40 : first + 40], qwen.eos_ids[0]
    assert eos not in sampled
    assert qwen.encode(qwen.backend.decode(sampled, skip_special_tokens=False)) != sampled

    async def story() -> None:
        replica = FakeReplica(script=[lambda _: reply(choice([*sampled, eos], logprobs=[-1.0] * 81))])
        table = Table(qwen, {"a": replica}, turns=2, max_tokens=100, max_prompt_tokens=20)
        replica.script.append(says(qwen, table.problem.answer))
        found = table.trajectory(await table.play())
        start = len(table.prompt)
        assert found.tokens[start : start + 81].tolist() == [*sampled, eos]
        assert replica.bodies[1]["token_ids"][start : start + 81] == [*sampled, eos]

    virtually(story())


def test_a_group_in_one_request_is_completed_answer_by_answer(qwen: Tokenizer) -> None:
    async def story() -> None:
        eos = qwen.eos_ids[0]
        replica = FakeReplica(
            script=[
                lambda _: reply(choice([5, eos], index=1, logprobs=[-1.0, -1.0]), choice([6], "abort", index=0)),
                lambda _: reply(choice([7, eos], logprobs=[-1.0, -1.0])),
            ]
        )
        table = Table(qwen, {"a": replica})
        first, second = await table.player.play_together(table.problem, table.prompt, 2)
        assert first.turns[0].answer.tokens.tolist() == [6, 7, eos]
        assert second.turns[0].answer.tokens.tolist() == [5, eos]
        assert [body["sampling_params"]["n"] for body in replica.bodies] == [2, 1]

    virtually(story())


def test_samples_of_a_group_and_turns_of_an_episode_stay_with_their_prefix(qwen: Tokenizer) -> None:
    async def story() -> None:
        replicas = {name: FakeReplica(token_s=1.0, eos=qwen.eos_ids[0]) for name in "abcd"}
        table = Table(qwen, replicas, turns=3, min_concurrency=512)
        shared = Prefix()
        played = [table.player.play(table.problem, table.prompt, shared) for _ in range(4)]
        await asyncio.gather(*played)
        assert sorted(len(replica.bodies) > 0 for replica in replicas.values()) == [False, False, False, True]

    virtually(story())


def test_answers_of_one_request_keep_their_own_rewards(qwen: Tokenizer) -> None:
    async def story() -> None:
        replica = FakeReplica()
        table = Table(qwen, {"a": replica}, group_size=4)
        texts = ["none", table.problem.answer, "7", "8"]  # the same from neither end
        answers = [[*qwen.encode(text), qwen.eos_ids[0]] for text in texts]
        replica.script.append(
            lambda _: reply(*(choice(ids, index=i, logprobs=[-1.0] * len(ids)) for i, ids in enumerate(answers)))
        )
        episodes = await table.player.play_group(table.problem, table.prompt, 4)
        assert [episode.turns[0].answer.tokens.tolist() for episode in episodes] == answers
        assert [episode.turns[0].outcome.reward for episode in episodes] == [0.0, 1.0, 0.0, 0.0]
        group = table.group(*episodes)
        assert [float(found.rewards.sum()) for found in group] == [0.0, 1.0, 0.0, 0.0]
        assert [found.tokens[found.loss_mask].tolist() for found in group] == answers

    virtually(story())


def test_a_dialog_ends_as_its_last_answer_did(qwen: Tokenizer) -> None:
    async def story() -> None:
        replica = FakeReplica(script=[says(qwen, "one"), lambda _: reply(choice([7] * 8, "length"))])
        table = Table(qwen, {"a": replica}, turns=3)
        episode = await table.play()
        assert [turn.answer.finish_reason for turn in episode.turns] == ["stop", "length"]
        assert table.trajectory(episode).finish_reason == "length"

    virtually(story())


class Meeting(AdditionTask):
    """No verdict comes before all answers of a group are being judged at the same time."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size)

    def score(self, request: RewardRequest) -> RewardResult:
        self._barrier.wait(timeout=20)
        return super().score(request)


class Stuck(AdditionTask):
    """The first answer to come is never judged; counts those that are."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.asked: list[str] = []

    def score(self, request: RewardRequest) -> RewardResult:
        self.asked.append(request.response)
        if len(self.asked) == 1:
            self.release.wait(20)
        return super().score(request)


def judged_together(qwen: Tokenizer, task: AdditionTask, answers: int, **options: Any) -> list[Outcome]:
    """The outcomes of one request's answers, which are 0, 1, ...; judged in real threads and real time."""

    async def story() -> list[Outcome]:
        replica = FakeReplica()
        table = Table(qwen, {"a": replica}, **options)
        ids = [[*qwen.backend.encode(str(i), add_special_tokens=False).ids, qwen.eos_ids[0]] for i in range(answers)]
        replica.script.append(lambda _: reply(*(choice(tokens, index=i) for i, tokens in enumerate(ids))))
        with ThreadPoolExecutor(table.settings.reward_threads) as threads:
            player = Player(
                FeedbackEnvironment(task),
                table.encoder,
                table.sampler,
                table.settings,
                scoring=threads,
                count=table.count,
            )
            try:
                problem = replace(table.problem, answer="2")
                episodes = await player.play_together(problem, table.prompt, answers)
            finally:
                if isinstance(task, Stuck):
                    task.release.set()
        return [episode.turns[-1].outcome for episode in episodes]

    return asyncio.run(story())


def test_slow_verdicts_on_a_group_are_made_at_the_same_time(qwen: Tokenizer) -> None:
    outcomes = judged_together(qwen, Meeting(6), 6, reward_threads=8)
    assert [outcome.reward for outcome in outcomes] == [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]


def test_one_thread_judges_a_group_alone(qwen: Tokenizer) -> None:
    outcomes = judged_together(qwen, AdditionTask(), 4, reward_threads=1)
    assert [outcome.reward for outcome in outcomes] == [0.0, 0.0, 1.0, 0.0]


def test_an_answer_that_hangs_costs_its_own_verdict_alone(qwen: Tokenizer) -> None:
    task = Stuck()
    outcomes = judged_together(qwen, task, 4, reward_threads=4, reward_timeout_s=0.3)
    assert [outcome.verdict for outcome in outcomes] == ["timeout", "fail", "pass", "fail"]
    assert len(task.asked) == 4


def test_after_the_time_of_a_group_no_thread_goes_on_with_it(qwen: Tokenizer) -> None:
    task = Stuck()
    outcomes = judged_together(qwen, task, 4, reward_threads=1, reward_timeout_s=0.1)
    assert {outcome.verdict for outcome in outcomes} == {"timeout"}
    assert len(task.asked) == 1
