"""Episodes: what is sent, what is kept and what it becomes; the tokenizer is real, replicas are scripted."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner_jax.contracts.weights import Trajectory
from learner_jax.runtime.waits import Waits
from rewards.contracts.environment import Reply
from rewards.environments import FeedbackEnvironment, create_environment
from rewards.settings.task import TaskSettings
from serving_bridge.evaluation.skill import PromptEncoder
from serving_bridge.rollout.episodes import Episode, EpisodeError
from serving_bridge.rollout.groups import GroupError, complete_group, is_final
from serving_bridge.rollout.player import Player
from serving_bridge.rollout.sampling import Prefix, Sampler
from serving_bridge.rollout.trajectories import Origin, make_trajectories
from serving_bridge.routing.dispatch import Dispatcher
from serving_bridge.routing.registry import ReplicaRow
from serving_bridge.settings.serving import RolloutSettings
from serving_bridge.text.tokenizer import Tokenizer, TokenizerError, load_tokenizer
from serving_bridge.vllm.answers import Rejected, Unreachable
from serving_bridge.vllm.client import VllmClient
from tests.serving_bridge.text.test_tokenizer import KEEP_THINKING_TEMPLATE, QWEN2_TEMPLATE, QWEN3_TEMPLATE
from tests.support.rollout_world import AdditionTask, FakeReplica, FakeSession, Inline, choice, reply, virtually

CHATML_END = "<|im_end|>"
#: what the templates of `test_tokenization` leave out that have no generation prompt
ASSISTANT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.fixture(scope="module")
def qwen_folder(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen")
    shutil.copy(shared_data / "tokenizer_qwen" / "tokenizer.json", folder / "tokenizer.json")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [151645, 151643]}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": KEEP_THINKING_TEMPLATE}))
    return folder


@pytest.fixture(scope="module")
def qwen(qwen_folder: Path) -> Tokenizer:
    return load_tokenizer(qwen_folder)


def with_template(tokenizer: Tokenizer, template: str) -> Tokenizer:
    from dataclasses import replace

    from serving_bridge.text.chat_template import environment

    return replace(tokenizer, chat_template=environment().from_string(template))


# Rendering


@pytest.mark.parametrize("template", [QWEN2_TEMPLATE, KEEP_THINKING_TEMPLATE + ASSISTANT])
@pytest.mark.parametrize("answer", ["b", "<think>\nmock thinking\n</think>\n\nb", "naïve 東京 "])
def test_turns_rendered_one_by_one_are_the_template_s_own_text(qwen: Tokenizer, template: str, answer: str) -> None:
    tokenizer = with_template(qwen, template)
    messages = [{"role": "user", "content": "a"}]
    ids = tokenizer.encode_prompt("a", chat=True)
    end = tokenizer.backend.token_to_id(CHATML_END)
    for said in ("1", "wrong, try <again>\n", "2"):
        ids += [*tokenizer.backend.encode(answer, add_special_tokens=False).ids, end]
        ids += tokenizer.encode_observation(said, chat=True, after=end)
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": said}]
    assert tokenizer.backend.decode(ids, skip_special_tokens=False) == tokenizer.render_chat(messages)


def test_a_template_that_forgets_thoughts_changes_nothing_of_what_was_sampled(qwen: Tokenizer) -> None:
    """Only the stock template's text of the last turn has them; the ids keep all."""
    tokenizer = with_template(qwen, QWEN3_TEMPLATE)
    end = tokenizer.eos_ids[0]
    observation = tokenizer.encode_observation("1", chat=True, after=end)
    assert tokenizer.backend.decode(observation, skip_special_tokens=False) == (
        "\n<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n"
    )


def test_an_end_token_is_there_once_whichever_the_answer_ended_with(qwen: Tokenizer) -> None:
    tokenizer = with_template(qwen, QWEN2_TEMPLATE)
    first, second = (tokenizer.encode_observation("1", chat=True, after=end) for end in tokenizer.eos_ids)
    assert first == second
    unended = tokenizer.encode_observation("1", chat=True, after=5)
    assert unended == [tokenizer.backend.token_to_id(CHATML_END), *first]


def test_a_template_that_hides_answers_is_refused(qwen: Tokenizer) -> None:
    tokenizer = with_template(qwen, "{% for m in messages %}{{ m.content | upper }}{% endfor %}")
    with pytest.raises(TokenizerError, match="does not show an answer as it is"):
        tokenizer.encode_observation("1", chat=True, after=5)


def test_the_fingerprint_is_of_the_file(qwen_folder: Path, qwen: Tokenizer, tmp_path: Path) -> None:
    shutil.copytree(qwen_folder, tmp_path / "other")
    assert load_tokenizer(tmp_path / "other").fingerprint == qwen.fingerprint
    assert len(qwen.fingerprint) == 32
    with (tmp_path / "other" / "tokenizer.json").open("a") as file:
        file.write("\n")
    assert load_tokenizer(tmp_path / "other").fingerprint != qwen.fingerprint


# Playing


class Table:
    """A player with one scripted replica, and what it counted."""

    def __init__(self, tokenizer: Tokenizer, replicas: dict[str, FakeReplica], *, turns: int = 1, **options: Any):
        given = {"max_prompt_tokens": 12, "max_tokens": 8, "max_attempts": 3, "group_size": 2}
        self.settings = RolloutSettings(**(given | options))
        session = FakeSession(replicas)
        self.dispatcher = Dispatcher(
            self.settings, lambda row: VllmClient(row.url, session), Waits(asyncio.get_running_loop().time)
        )
        self.dispatcher.update([ReplicaRow(name, f"http://{name}", "healthy", 1, 0, 0.0) for name in replicas])
        self.count: Counter[str] = Counter()
        self.encoder = PromptEncoder(tokenizer, template="{question}", chat=False, max_prompt_tokens=12)
        sampler = Sampler(
            self.dispatcher,
            self.settings,
            tokenizer.eos_ids,
            count=self.count,
            log=lambda *_, **__: None,
            rng=random.Random(0),
        )
        self.task = AdditionTask()
        environment = FeedbackEnvironment(self.task, turns=turns, discount=0.5, feedback=" no{reasons}\n")
        self.player = Player(environment, self.encoder, sampler, self.settings, scoring=Inline(), count=self.count)
        self.problem = self.task.problem("train", 0)
        self.prompt = self.encoder.encode(self.problem) or []

    async def play(self) -> Episode:
        return await self.player.play(self.problem, self.prompt, Prefix())

    def trajectory(self, *episodes: Episode) -> Trajectory:
        origin = Origin("run", len(episodes), self.settings, "addition@1", "fingerprint")
        first, *_ = make_trajectories(origin, 0, episodes)
        first.validate()
        return first


def says(tokenizer: Tokenizer, text: str, version: str = "1", **options: Any) -> Callable[[Any], Any]:
    """A script that answers with the text's tokens and the end token."""
    tokens = [*tokenizer.backend.encode(text, add_special_tokens=False).ids, tokenizer.eos_ids[0]]
    return lambda _: reply(choice(tokens, logprobs=[-0.5] * len(tokens), spans=[(version, 0, len(tokens))], **options))


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


# Answers that break off


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


# Groups


async def after(seconds: float, result: Any = None) -> Any:
    await asyncio.sleep(seconds)
    if isinstance(result, BaseException):
        raise result
    return result


def group(*episodes: tuple[float, Any], size: int = 2) -> tuple[Any, float, Counter[str]]:
    """The members, when they were known, and the counts, of episodes that take so long and end so."""

    async def story() -> tuple[Any, float, Counter[str]]:
        count: Counter[str] = Counter()
        loop = asyncio.get_running_loop()
        began, running = loop.time(), asyncio.all_tasks()

        def play(index: int) -> Awaitable[Any]:
            return after(*episodes[index])

        try:
            members: Any = await complete_group(
                play, size=size, spares=len(episodes) - size, timeout_s=100, count=count
            )
        except (GroupError, ZeroDivisionError) as error:
            members = error
        assert asyncio.all_tasks() == running
        return members, loop.time() - began, count

    return virtually(story())


def test_the_first_by_index_are_taken_and_not_the_fastest() -> None:
    members, seconds, count = group((9, "slow"), (5, "b"), (1, "fast"), (1, "faster"))
    assert (members, seconds, count["spares_used"]) == (["slow", "b"], 9, 0)


def test_spares_stand_in_for_broken_and_late_ones_only() -> None:
    members, seconds, count = group((1, Unreachable("away")), (200, "late"), (3, "c"), (4, "d"))
    assert (members, seconds) == (["c", "d"], 100)
    assert (count["deadline_hits"], count["spares_used"]) == (1, 2)
    members, seconds, _ = group((1, Unreachable("away")), (2, "b"), (30, "c"), (4, "d"))
    assert (members, seconds) == (["b", "c"], 30)


def test_a_group_without_enough_is_an_error_and_a_bug_is_itself() -> None:
    error, seconds, _ = group((1, Rejected("a")), (2, "b"), (3, Rejected("c")))
    assert "1 of 3 episodes ended well, expected 2; the last broken one: Rejected('c')" in str(error)
    assert is_final(error)
    error, *_ = group((1, Rejected("a")), (2, "b"), (3, Unreachable("c")))
    assert not is_final(error)
    error, seconds, _ = group((1, ZeroDivisionError()), (50, "b"))
    assert (type(error), seconds) == (ZeroDivisionError, 1)


# The environment


def test_feedback_pays_only_for_the_last_answer_and_less_for_every_turn() -> None:
    task = AdditionTask()
    settings = TaskSettings(provider="jsonl_math", turns=3, turn_discount=0.5, feedback="No: {reasons}")
    environment = create_environment(task, settings)
    problem = task.problem("train", 0)
    wrong = environment.step(environment.reset(problem), Reply("0", "stop", is_last=False))
    assert (wrong.reward, wrong.observation) == (0.0, f"No: expected '{problem.answer}'")
    right = environment.step(wrong.state, Reply(problem.answer, "stop", is_last=False))
    assert (right.reward, right.observation, right.verdict) == (0.5, None, "pass")
    assert environment.step(wrong.state, Reply(problem.answer, "stop", is_last=False)) == right
    last = environment.step(right.state, Reply("0", "stop", is_last=False))
    assert (last.reward, last.observation, last.parts["turns"]) == (0.0, None, 3.0)
    assert environment.step(environment.reset(problem), Reply("0", "stop", is_last=True)).observation is None
    assert environment.step(environment.reset(problem), Reply("0", "length", is_last=False)).observation is None
    assert environment.version == "addition@1+feedback3"
    assert create_environment(task, settings.model_copy(update={"turns": 1})).version == "addition@1"


def test_a_feedback_that_names_no_reasons_gives_nothing_away() -> None:
    task = AdditionTask()
    environment = create_environment(task, TaskSettings(provider="jsonl_math", turns=2))
    observation = environment.step(
        environment.reset(task.problem("train", 0)), Reply("0", "stop", is_last=False)
    ).observation
    assert observation is not None
    assert task.problem("train", 0).answer not in observation
