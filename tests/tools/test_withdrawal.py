"""A withdrawal reaches every place where a run keeps what a user said: nothing of it is left in any file."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from configs.load import load_config, save_config
from configs.schema import Config
from learner_jax.batches import BatchError, ExampleFiles, ExampleStream, Pairs, write_examples
from learner_jax.contracts import ContractError, blank_examples
from serving_bridge.evaluation import PromptEncoder
from serving_bridge.fallback import Fell, Records
from serving_bridge.feedback import Datasets, Feedback, FeedbackStore, OnlineFeed, OnlineTerms, unerased_groups
from serving_bridge.queue import Pace, TrajectoryQueue
from serving_bridge.recordings import Made, Recorder, RecordingStore, Redaction, Request, ids_of, user_of
from serving_bridge.safety import Checker, RulesForTraining
from serving_bridge.sessions import ChatMessage
from serving_bridge.settings import SafetySettings, SessionsSettings
from serving_bridge.text import Tokenizer
from tests.support.recording_world import at_once, sampled
from tests.support.session_world import tokenizer
from tools.assembly import build_online_queue, make_model, recordings_of, run_paths
from tools.learner_examples import supervised_examples
from tools.sessions import main as sessions

__all__ = ["tokenizer"]

POLICY = "learner.loss.policy={objective = 'decoupled_ppo', importance = 'truncated'}"
USERS = ("jane", "joe")


def words(user: str) -> dict[str, str]:
    """What each place has of a user, in words of its own."""
    return {
        "question": f"the question of {user} about zebras",
        "answer": f"the answer to {user} about zebras",
        "edit": f"as {user} would have it, on zebras",
        "journal": f"the last words of {user} on zebras",
        "fallback": f"a stand in for {user} with zebras",
    }


class Run:
    """A run's directory with what two users said, everywhere that it is kept."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self.folder, self.directory, self.tokenizer = folder, folder / "run", tokenizer
        options = [f"run.directory={self.directory}", "learner.online.share=0.5", POLICY, "feedback.online_wait_s=0"]
        more = ["sessions.record=true", "store.blob_bytes=64", "learner.sequence_length=2048", "learner.row_tokens=[]"]
        self.config: Config = load_config("demo", [*options, *more])
        make_model(self.config, run_paths(self.config).created_model)
        save_config(self.config, self.directory / "config.toml")
        TrajectoryQueue(run_paths(self.config).database).close()
        self.checker = Checker(SafetySettings())
        self.token_needles: dict[str, list[bytes]] = {}
        for user in USERS:
            self._talks(user)
        self._makes_datasets()
        self._falls_back()
        self.puts()

    def puts(self) -> int:
        """Scored answers go to the learner's queue, from where no test's model takes them: the ids are another's."""
        queue = build_online_queue(self.config, run_paths(self.config))
        try:
            with recordings_of(str(self.directory), timeout_s=5) as (database, store):
                made = FeedbackStore(database, self.config.feedback, checker=self.checker)
                terms = OnlineTerms("demo", "t", self.config.rollout.temperature, 0.0, 2, 2048, Pace(64, 4, 10))
                return OnlineFeed(database, store, made, queue, RulesForTraining(self.checker), terms).emit()["put"]
        finally:
            queue.close()

    def _talks(self, user: str) -> None:
        said = words(user)
        with recordings_of(str(self.directory), timeout_s=5) as (database, store):
            recorder = self._recorder(store, f"lived-{user}")
            asyncio.run(self._answered(recorder, user, said["question"], said["answer"], dies=False))
            pieces = [Feedback(f"{user}{n}", f"{user}-0/{n}", "rating", 1.0 - n, rater=user) for n in range(2)]
            pieces.append(Feedback(f"{user}-e", f"{user}-0/0", "edit", text=said["edit"], rater=user))
            made = FeedbackStore(database, self.config.feedback, checker=self.checker).add("acme", pieces)
            assert made == ["joined"] * 3
            (kept,) = store.each(tenant="acme", user=user)
            own = [turn.tokens for turn in kept.turns] + [answer.tokens for answer in kept.answers]
            self.token_needles[user] = [ids for ids in own if ids is not None]
            assert all(len(ids_of(ids)) > 6 for ids in self.token_needles[user])
            recorder = self._recorder(store, f"killed-{user}")
            asyncio.run(self._answered(recorder, user, said["journal"], said["journal"], dies=True))
            recorder._journal.close(remove=False)

    def _recorder(self, store: RecordingStore, name: str) -> Recorder:
        return Recorder(
            SessionsSettings(record=True), self.tokenizer, store, self.directory / "sessions",
            Redaction(self.checker), name=name, blocking=at_once, clock=lambda: time.time() - 60,
        )  # fmt: skip

    async def _answered(self, recorder: Recorder, user: str, question: str, answer: str, *, dies: bool) -> None:
        messages = (ChatMessage("user", question),)
        recording = await recorder.begin(Request("acme", user, question, "", messages, retention_days=30))
        assert recording is not None
        made = Made(f"{user}-{int(dies)}", "stable", "policy", self.config.rollout.temperature, 100)
        choices = [sampled(self.tokenizer, f"{answer} {n}", index=n) for n in range(2)]
        await recording.ended(made, recording.prompt or (), choices)
        if not dies:
            assert await recorder.flush()
            recorder._journal.close(remove=True)

    def _makes_datasets(self) -> None:
        with recordings_of(str(self.directory), timeout_s=5) as (database, store):
            made = FeedbackStore(database, self.config.feedback, checker=self.checker)
            for kind in ("supervised", "preferences", "trajectories"):
                datasets = Datasets(database, store, made, RulesForTraining(self.checker))
                datasets.make(kind, kind, self.folder / "sets", until_s=time.time() + 60)  # type: ignore[arg-type]
        self.copies = {
            loss: self.rendered(loss, name) for loss, name in (("sft", "supervised"), ("dpo", "preferences"))
        }

    def rendered(self, loss: str, dataset: str) -> ExampleFiles:
        """The examples of a run that is trained on a dataset."""
        data, chat = self.folder / "sets" / dataset / "train.jsonl", "task.chat=true"
        table = f'{{ data = "{data}", messages_column = "messages", steps = 1, batch_size = 1, learning_rate = 1e-3'
        config = load_config(
            "demo", ["warm_start=none", chat, f'supervised={table}, loss = "{_LOSS[loss]}" }}', *_LONG]
        )
        assert config.supervised is not None
        encoder = PromptEncoder(self.tokenizer, template="{question}", chat=True, max_prompt_tokens=500)
        return supervised_examples(config, config.supervised, self.folder / f"trains-{loss}", encoder)

    def _falls_back(self) -> None:
        redact = lambda text: text  # noqa: E731
        records = Records(self.directory / "fallback", "gateway-0", sample_share=1.0, redact=redact)
        for user in USERS:
            text = words(user)["fallback"]
            told = ("r", "r/1", "acme", "unknown", "why", (), "retry", None, 3, 0.5)
            messages = ({"role": "user", "content": text},)
            records.add(Fell(*told, user_of("acme", user), "", True, 30, messages, text, text, teaches=True))
        records.close()

    def left(self, user: str) -> list[tuple[str, str]]:
        """(file, what it has of a user) of every file; token ids are looked for as the bytes that stand for them."""
        texts = {place: text.encode() for place, text in words(user).items()}
        needles = {**texts, **{f"ids {n}": ids for n, ids in enumerate(self.token_needles[user])}}
        found = []
        for path in sorted(self.folder.rglob("*")):
            content = path.read_bytes() if path.is_file() else b""
            found += [(path.name, name) for name, needle in needles.items() if needle in content]
        return found


_LOSS: Mapping[str, str] = {"sft": "cross_entropy", "dpo": "dpo"}
_LONG = ("learner.sequence_length=2048", "learner.row_tokens=[]")


@pytest.fixture
def run(tmp_path: Path, tokenizer: Tokenizer) -> Run:
    return Run(tmp_path, tokenizer)


def test_nothing_is_left_of_who_withdraws_and_all_of_others(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = run.left("jane")
    stored = {name for _, name in before}
    assert stored == {*words("jane"), *(f"ids {n}" for n in range(len(run.token_needles["jane"])))}
    others = run.left("joe")
    sessions([str(run.directory), "withdraw", "--tenant", "acme", "--user", "jane"])
    told = capsys.readouterr().out
    assert "2 sessions are withdrawn" in told
    assert "not " not in told
    assert run.left("jane") == []
    assert {name for _, name in run.left("joe")} == {name for _, name in others}
    queue = build_online_queue(run.config, run_paths(run.config))
    try:
        groups = queue.consumer.lease_groups(9, trained_version=3, max_staleness=64).groups
        assert [group[0].group_id for group in groups] == ["demo/online/1"]
        assert queue.admin.progress().num_dropped == 1
    finally:
        queue.close()
    assert run.puts() == 0
    assert run.left("jane") == []


def test_a_run_that_is_trained_on_a_dataset_goes_on_without_them(run: Run) -> None:
    sft, dpo = run.copies["sft"], run.copies["dpo"]
    whole = [[list(tokens) for tokens, _ in (files[n] for n in range(len(files)))] for files in (sft, dpo)]
    assert [len(found) for found in whole] == [2, 8]  # an edit of each; of each an edit's and a rating's pair
    stream = ExampleStream(sft, batch_size=2, seed=0).since(0)
    next(stream)  # and the ones after it are ahead already
    sessions([str(run.directory), "withdraw", "--tenant", "acme", "--user", "jane"])
    for _ in range(20):
        assert [list(tokens) for tokens, _ in next(stream)] == [whole[0][1]] * 2
    own = {(tuple(chosen[0]), tuple(rejected[0])) for chosen, rejected in map(Pairs(dpo).__getitem__, range(4))}
    assert own == {(tuple(whole[1][n]), tuple(whole[1][n + 1])) for n in (4, 6)}
    assert run.rendered("sft", "supervised")[0][0].tolist() == whole[0][1]  # as a restart has it
    sessions([str(run.directory), "withdraw", "--tenant", "acme"])
    with pytest.raises(BatchError, match="consent for all of these examples was withdrawn"):
        next(stream)


def test_what_can_not_be_reached_is_named_and_tried_again(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (run.folder / "trains-sft").rename(run.folder / "away")
    (run.directory / "online.db").rename(run.folder / "online.db")
    (run.directory / "online.db").mkdir()
    sessions([str(run.directory), "withdraw", "--tenant", "acme", "--user", "jane"])
    told = " ".join(capsys.readouterr().out.split())
    assert "not cleaned: the dataset" in told
    assert "or examples that its copies.jsonl names" in told
    assert told.count("not cleaned") == 1
    (run.directory / "online.db").rmdir()
    (run.folder / "online.db").rename(run.directory / "online.db")
    (run.folder / "away").rename(run.folder / "trains-sft")
    sessions([str(run.directory), "purge"])
    assert "not " not in capsys.readouterr().out
    assert run.left("jane") == []


def test_a_url_alone_does_not_reach_the_queue_and_says_so(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    url = str(run.directory / "state.db")
    sessions([url, "withdraw", "--tenant", "acme", "--user", "jane"])
    assert "not erased: 1 groups in the learner's online queue" in " ".join(capsys.readouterr().out.split())
    with recordings_of(url, timeout_s=5) as (database, _):
        assert unerased_groups(database) == 1
    sessions([str(run.directory), "purge"])
    assert run.left("jane") == []


def test_a_session_whose_time_is_over_goes_the_same_way(run: Run) -> None:
    with recordings_of(str(run.directory), timeout_s=5) as (database, _):
        database.write(lambda session: session.execute("UPDATE recorded_sessions SET expires_s = 1"))
    for path in (run.directory / "fallback").glob("*/*.jsonl"):
        lines = [json.loads(line) | {"kept_until_s": 1.0} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    sessions([str(run.directory), "purge"])
    assert {name for user in USERS for _, name in run.left(user)} <= {"journal"}  # came to the database just now


@pytest.mark.parametrize("damage", ["sessions", "arrays", "dtype"])
def test_examples_that_are_damaged_are_refused(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "examples"
    write_examples(folder, [([1, 2], [False, True])] * 2, {}, ["s", "t"])
    assert blank_examples(folder, {"s"}) == 1
    assert blank_examples(folder, {"s"}) == 0
    if damage == "sessions":
        (folder / "sessions.json").write_text('["s", "t", "u"]')
    elif damage == "arrays":
        (folder / "tokens.npy").write_bytes(b"\x93NUMPY")
    else:
        np.save(folder / "tokens.npy", np.zeros(4, np.float64))
    with pytest.raises(ContractError, match="damaged|holds no int32"):
        blank_examples(folder, {"t"})
