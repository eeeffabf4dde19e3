"""Users talk to a model that is trained on what they say: gateway, feedback and a whole run on real vLLM."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from configs.load import load_config
from serving_bridge.database import open_database
from serving_bridge.feedback import FEEDBACK
from serving_bridge.telemetry.metrics_log import read_metrics
from tests.conftest import REPOSITORY
from tests.support.whole_jobs import SMALL_DEMO, environment, processes_of, steps, train_command, wait_for
from tools.assembly import run_paths

pytestmark = [pytest.mark.slow, pytest.mark.soak]

STEPS, SHARE, BOUND = 800, 0.25, 64
SETTINGS = (
    *(word for word in SMALL_DEMO if not word.startswith(("learner.steps", "learner.checkpoint.every"))),
    f"learner.steps={STEPS}",
    "learner.checkpoint.every=10",
    f"learner.online.share={SHARE}",
    f"learner.online.max_staleness={BOUND}",
    'learner.loss.policy={objective="decoupled_ppo", importance="truncated"}',
    "sessions.record=true",
    "feedback.online_wait_s=0.5",
    "gateway.port=0",
)
#: of the one who withdraws: no problem of the task has a number like 07
SECRET = "Calculate 07 + {}."


class Users:
    """Programs that ask, with consent, and judge what they are answered."""

    def __init__(self, url: str) -> None:
        self.url, self.asked, self.outcomes = url, 0, Counter[str]()

    async def ask(self, session: aiohttp.ClientSession, user: str) -> None:
        self.asked += 1
        a, b = 10 + self.asked % 90, 10 + self.asked * 7 % 90
        a, prompt = (7, SECRET.format(b)) if user == "jane" else (a, f"Calculate {a} + {b}.")
        body = {"model": "policy", "prompt": prompt, "max_tokens": 4, "n": 2, "user": user}
        headers = {"X-Weir-Consent": "yes"}
        async with session.post(f"{self.url}/completions", json=body, headers=headers) as response:
            answer = await response.json()
            assert response.status == 200, answer
        pieces = [
            {
                "kind": "thumbs",
                "value": "up" if choice["text"].strip() == str(a + b) else "down",
                "response_id": answer["id"],
                "choice": choice["index"],
                "rater": f"{user}-{self.asked % 8}",
            }
            for choice in answer["choices"]
        ]
        async with session.post(f"{self.url}/feedback", json={"feedback": pieces}) as response:
            told = await response.json()
            assert response.status == 200, told
            self.outcomes.update(told["outcomes"])

    def talk(self, *users: str, until: Any) -> None:
        """Lets users ask until something holds, for at most some minutes."""

        async def talk() -> None:
            deadline = time.monotonic() + 240
            async with aiohttp.ClientSession() as session:
                while not until():
                    assert time.monotonic() < deadline, (self.asked, self.outcomes)
                    for user in users * 4:
                        await self.ask(session, user)

        asyncio.run(talk())


@contextmanager
def started(output: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the run; it is asked to end."""
    with output.open("wb") as to:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=to, stderr=to, cwd=REPOSITORY, env=environment()
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) is not None


def weir(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def groups_of(run: Path, user_prompt: str) -> dict[str, tuple[str, int | None]]:
    """group -> (state, version first trained on it), of sessions that have `user_prompt` in their texts."""
    config = load_config(run / "config.toml", [])
    database = open_database(run_paths(config).database, schema=FEEDBACK)
    try:
        rows = database.read(
            lambda session: session.execute(
                "SELECT g.number, g.state, g.trained_version, max(t.content LIKE ?) FROM online_groups g "
                "LEFT JOIN recorded_texts t USING (session_id) GROUP BY g.number",
                (f"%{user_prompt}%",),
            )
        )
    finally:
        database.close()
    return {f"{config.run.name}/online/{n}": (state, version) for n, state, version, is_theirs in rows if is_theirs}


def online_steps(run: Path) -> list[dict[str, Any]]:
    return [record for record in steps(run) if record.get("online_groups")]


def files_with(folder: Path, text: str) -> list[str]:
    found = []
    for at, _, names in os.walk(folder):  # a run that goes on deletes old versions meanwhile
        for path in (Path(at, name) for name in names):
            with suppress(OSError):
                found += [str(path)] * (text.encode() in path.read_bytes())
    return found


def test_users_are_learned_from_until_they_withdraw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm")
    monkeypatch.setenv("WEIR_RECORD_HISTORY", "1")
    run, log = tmp_path / "run", tmp_path / "train.out"
    with log.open("wb") as output:
        job = subprocess.Popen(
            train_command("demo.toml", *SETTINGS, f"run.directory={run}"),
            stdout=output, stderr=subprocess.STDOUT, cwd=REPOSITORY, env=environment(),
        )  # fmt: skip
    try:
        wait_for(lambda: len(steps(run)) > 1 or job.poll() is not None, timeout_s=300, what="the first steps")
        assert job.poll() is None, log.read_text()[-3000:]
        config = str(run / "config.toml")
        with (
            started(tmp_path / "gateway.out", "tools.gateway", "--config", config) as gateway,
            started(tmp_path / "feed.out", "tools.feedback", str(run), "online") as feed,
        ):
            found = wait_for(
                lambda: re.search(r"listens at (\S+);", (tmp_path / "gateway.out").read_text()),
                timeout_s=60, what="the gateway",
            )  # fmt: skip
            _talk_and_withdraw(Users(found[1]), run, job)
            assert (gateway.poll(), feed.poll()) == (None, None)
        assert job.wait(timeout=300) == 0, log.read_text()[-3000:]
    finally:
        job.terminate()
        job.wait(timeout=60)
    _check_report(run)
    wait_for(lambda: not processes_of(run), timeout_s=30, what="the end of all processes")


def _talk_and_withdraw(users: Users, run: Path, job: subprocess.Popen[bytes]) -> None:
    users.talk("jane", "joe", until=lambda: len(online_steps(run)) >= 3 and len(groups_of(run, "Calculate 07 + ")) > 8)
    assert files_with(run, "Calculate 07 + ")
    hers = groups_of(run, "Calculate 07 + ")
    told = weir("tools.sessions", str(run), "withdraw", "--tenant", "local", "--user", "jane")
    assert "sessions are withdrawn" in told
    assert "not erased" not in told
    withdrawn_t = time.time()
    assert files_with(run, "Calculate 07 + ") == []
    users.talk("joe", until=lambda: any(step["t"] > withdrawn_t + 6 for step in online_steps(run)))
    assert job.poll() is None
    assert set(users.outcomes) <= {"joined", "unknown"}
    consumed = [record for record in read_metrics(run / "metrics.jsonl") if record["event"] == "consumed"]
    late = {name for record in consumed if record["t"] > withdrawn_t + 5 for name in record["groups"]}
    early = {name for record in consumed for name in record["groups"]} - late
    assert hers.keys() & early  # she was learned from
    assert not hers.keys() & late
    assert any("/online/" in name for name in late)  # and others are, after her
    assert hers.keys() - early  # some of hers waited
    trained = [version for _, version in hers.values() if version is not None]
    assert "and later" in weir("tools.feedback", str(run), "provenance", *_sessions_trained(run))
    assert trained == sorted(trained)


def _sessions_trained(run: Path) -> list[str]:
    database = open_database(run / "state.db", schema=FEEDBACK)
    try:
        rows = database.read(
            lambda session: session.execute(
                "SELECT session_id FROM online_groups WHERE state = 'withdrawn' AND trained_version IS NOT NULL LIMIT 2"
            )
        )
    finally:
        database.close()
    assert rows
    return [session_id for (session_id,) in rows]


def _check_report(run: Path) -> None:
    """Share and staleness are within their bounds in every step, and the report tells them."""
    config = load_config(run / "config.toml", [])
    found = steps(run)
    assert len(found) == STEPS
    assert max(step["online_groups"] for step in found) == config.learner.online_groups == 1
    assert 2 < max(step["online_staleness_max"] for step in found) <= BOUND
    assert max(step["staleness_max"] for step in found) <= config.rollout.max_staleness
    summary = json.loads((run / "summary.json").read_text())["online"]
    assert summary["groups"] == sum(step["online_groups"] for step in found) >= 8
    page = (run / "report.html").read_text()
    assert "of groups</div>" in page
    assert f"the bound is {BOUND}</div>" in page
