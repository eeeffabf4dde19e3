"""The chaos harness: its checker finds doctored histories, its faults are what they say, and jobs live through them."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.load import load_config
from learner_jax.runtime.crash_points import CrashTrap
from tools.assembly import wiring
from tools.testing.chaos import damage, report
from tools.testing.chaos.checker import check, check_accuracy
from tools.testing.chaos.engines import ENGINES
from tools.testing.chaos.history import (
    Begun,
    Committed,
    Consumed,
    Entry,
    History,
    Ledger,
    Rival,
    RivalEnded,
    Saved,
    WentBack,
    entries,
)
from tools.testing.chaos.inject import SkippedError, disturb
from tools.testing.chaos.job import JobRecord, JobSpec, SeedRecord, run_job
from tools.testing.chaos.plan import KINDS, Fault, draw
from tools.testing.chaos.prepare import CONFIG
from tools.testing.chaos.wire import Proxy, Requests, WireFault, damaged, tell, told

GROUPS_PER_STEP = 2


def consumed(step: int, *, version: int | None = None, first: int | None = None, lag: int = 0) -> Consumed:
    """A step that trains version `version` on groups of consecutive prompts."""
    start = (step - 1) * GROUPS_PER_STEP if first is None else first
    version = step if version is None else version
    names = tuple(f"run/{index}" for index in range(start, start + GROUPS_PER_STEP))
    return Consumed(step, version, names, (version - lag,) * GROUPS_PER_STEP)


def history(*happened: Entry, ledger: Ledger | None = None, total_steps: int = 4) -> History:
    """Four steps, the second checkpointed, a kill after the third; the prompts of the steps are 0 to 7."""
    lived = happened or (
        Begun(0),
        consumed(1, version=1),
        consumed(2, version=2, lag=1),
        Committed(2),
        consumed(3, version=3, lag=2),
        Begun(2),
        consumed(3, version=4),
        consumed(4, version=5),
        Committed(4),
    )
    ended = {f"run/{index}": "acknowledged" for index in range(4, 8)}
    queue = Ledger(ended, {"acknowledged": 4, "dropped": 0, "dead": 0}, frozenset(), next_prompt=8, finished=True)
    return History("run", total_steps, 2, GROUPS_PER_STEP, lived, ledger or queue, published=(1, 2, 3, 4, 5))


def with_ledger(**changes: object) -> History:
    good = history()
    return replace(good, ledger=replace(good.ledger, **changes))  # type: ignore[arg-type]


def test_a_history_with_a_restart_is_accepted() -> None:
    assert check(history()) == []


def test_what_a_life_goes_on_from_is_what_its_checkpoint_holds_whoever_wrote_it() -> None:
    """The second life begins from step 1 and comes to step 2; the first saves its own step 2 meanwhile."""
    entries = [
        *(Begun(0, 1), replace(consumed(1), life=1), Saved(1, 1), Committed(1), replace(consumed(2), life=1)),
        *(Rival(), Begun(1, 2), Saved(2, 1), Committed(2), replace(consumed(2, version=5, first=8), life=2)),
        *(Begun(2, 3), replace(consumed(3, version=7), life=3), replace(consumed(4, version=8), life=3)),
    ]
    assert check(history(*entries)) == []
    late = [*entries[:5], Saved(2, 1), Committed(2), Begun(1, 2), *entries[9:]]
    assert any("a life began after step 1, although step 2 was committed" in found for found in check(history(*late)))


def test_the_learner_that_takes_over_from_a_second_one_may_begin_before_its_last_commit() -> None:
    """The second life lives on for long; the third reads step 1's checkpoint while that one commits step 2."""
    entries = [
        *(Begun(0, 1), replace(consumed(1), life=1), Saved(1, 1), Committed(1), Rival(), Begun(1, 2)),
        *(replace(consumed(2), life=2), Saved(2, 2), Committed(2), RivalEnded(), Begun(1, 3)),
        *(replace(consumed(2, version=5, first=8), life=3), replace(consumed(3, version=6), life=3)),
        *(Begun(2, 4), replace(consumed(3, version=7), life=4), replace(consumed(4, version=8), life=4)),
    ]
    assert check(history(*entries)) == []
    lost = [*entries[:11], replace(consumed(2, version=5), life=3), Saved(2, 3), Committed(2), Begun(1, 4)]
    assert any("a life began after step 1, although step 2 was committed" in found for found in check(history(*lost)))


DOCTORED: dict[str, tuple[History, str]] = {
    "a group in two steps": (
        history(Begun(0), consumed(1), consumed(2, first=1), consumed(3), consumed(4)),
        "trained on twice, again in step 2: run/1",
    ),
    "a restart after which a voided group comes beside a kept one": (
        history(Begun(0), consumed(1), consumed(2), Begun(1), consumed(2, version=9, first=0), consumed(3, version=10)),
        "trained on twice, again in step 2: run/0, run/1",
    ),
    "a step that was left out": (history(Begun(0), consumed(1), consumed(3), consumed(4)), "step 3 follows no step 2"),
    "a step made twice": (
        history(Begun(0), consumed(1), consumed(1, version=2, first=2), consumed(2, version=3, first=4)),
        "step 1 was made twice in one history",
    ),
    "the end is missing": (history(Begun(0), consumed(1), consumed(2), consumed(3)), "lacks steps 4 of 4"),
    "too stale": (history(Begun(0), consumed(1), consumed(2), consumed(3), consumed(4, lag=3)), "more than 2 behind"),
    "too few groups": (
        history(Begun(0), replace(consumed(1), groups=("run/0",), oldest=(1,)), consumed(2)),
        "step 1 had 1 groups, expected 2",
    ),
    "a committed checkpoint was lost": (
        history(Begun(0), consumed(1), consumed(2), Committed(2), Begun(0), consumed(1, version=8)),
        "a life began after step 0, although step 2 was committed before",
    ),
    "a version went down": (
        history(Begun(0), consumed(1, version=3), consumed(2, version=2)),
        "policy version 2 was trained after version 3",
    ),
    "a version was stored twice": (replace(history(), published=(1, 2, 2)), "stored more than once: 2"),
    "acknowledged before the commit, which was lost": (
        with_ledger(
            groups={**{f"run/{i}": "acknowledged" for i in range(4, 8)}, "run/8": "acknowledged"}, next_prompt=9
        ),
        "acknowledged, but in no step that survived: run/8",
    ),
    "acknowledged and forgotten, in no step": (
        with_ledger(removed={"acknowledged": 5, "dropped": 0, "dead": 0}),
        "9 groups were acknowledged, expected the 8 to 8",
    ),
    "trained on and never acknowledged": (
        with_ledger(removed={"acknowledged": 3, "dropped": 0, "dead": 0}),
        "7 groups were acknowledged, expected the 8 to 8",
    ),
    "trained on and not acknowledged": (
        with_ledger(groups={**{f"run/{i}": "acknowledged" for i in range(4, 7)}, "run/7": "ready"}),
        "trained on, but ready in the queue at the end: run/7",
    ),
    "a prompt that vanished": (with_ledger(next_prompt=9), "prompts without an end: 8, 1 in all; 0 were dropped"),
    "a prompt that nobody gave out": (with_ledger(next_prompt=7), "prompts that were never given out: 7"),
    "not finished": (with_ledger(finished=False), "the run did not finish"),
}


@pytest.mark.parametrize("name", DOCTORED)
def test_a_doctored_history_is_found(name: str) -> None:
    doctored, problem = DOCTORED[name]
    assert any(problem in found for found in check(doctored)), check(doctored)


@pytest.mark.parametrize(
    "changes",
    [
        {"next_prompt": 9, "removed": {"acknowledged": 4, "dropped": 1, "dead": 0}},
        {"next_prompt": 9, "claimed": frozenset({8})},
        {"next_prompt": 9, "groups": {**{f"run/{i}": "acknowledged" for i in range(4, 8)}, "run/8": "dead"}},
    ],
)
def test_prompts_may_end_as_documented(changes: dict[str, object]) -> None:
    assert check(with_ledger(**changes)) == []
    assert check(replace(with_ledger(next_prompt=9), given_up=frozenset({8}))) == []


def test_going_back_on_purpose_gives_up_what_was_acknowledged() -> None:
    lived = [Begun(0), consumed(1), consumed(2), Committed(2), WentBack(0), Begun(0)]
    again = [consumed(step, version=step + 5, first=2 * step + 2) for step in range(1, 5)]
    ended = {f"run/{index}": "acknowledged" for index in range(12)}
    ledger = Ledger(ended, {"acknowledged": 0, "dropped": 0, "dead": 0}, frozenset(), next_prompt=12, finished=True)
    assert check(history(*lived, *again, ledger=ledger)) == []
    without = [entry for entry in lived if not isinstance(entry, WentBack)]
    assert any("acknowledged, but in no step" in problem for problem in check(history(*without, *again, ledger=ledger)))


def test_accuracy_is_compared_by_its_error() -> None:
    assert check_accuracy(85, 95, 100) == []
    assert check_accuracy(100, 50, 100) == []  # better is no fault
    assert "held-out accuracy is 60.0%" in check_accuracy(60, 95, 100)[0]


def test_lives_are_read_from_the_metrics() -> None:
    records = [
        {"event": "life", "step": 0, "life": 7},
        {"event": "consumed", "step": 1, "version": 1, "groups": ["run/0"], "oldest": [1], "life": 7},
        {"event": "saving", "step": 1, "life": 7},
        {"event": "fault", "name": "kill learner"},
        {"event": "fault", "name": "zombie learner"},
        {"event": "committed", "step": 1},
        {"event": "rival_ended"},
        {"event": "life", "step": 1, "life": 8},
        {"event": "way_back", "step": 0},
        {"event": "life", "step": 0, "life": 9},
    ]
    first = [Begun(0, 7), Consumed(1, 1, ("run/0",), (1,), 7), Saved(1, 7), Rival(), Committed(1), RivalEnded()]
    expected = [*first, Begun(1, 8), WentBack(0), Begun(0, 9)]
    assert entries(records) == expected


def test_a_seed_draws_the_same_faults_and_all_kinds_come() -> None:
    assert draw(7, "fake") == draw(7, "fake")
    kinds = Counter(fault.kind for seed in range(200) for fault in draw(seed, "fake"))
    assert set(kinds) == set(KINDS)
    for engine, traits in ENGINES.items():
        drawn = {fault.how for seed in range(400) for fault in draw(seed, engine) if fault.kind == "engine"}
        assert drawn == set(traits.disturbances)


# Crash points.


def trap(told: str) -> tuple[CrashTrap, list[str]]:
    killed: list[str] = []
    return CrashTrap(told, lambda: killed.append("killed")), killed


def test_a_crash_point_kills_at_its_turn_alone() -> None:
    point, killed = trap("stored:3")
    for name in ("stored", "marked", "stored"):
        point.passed(name)
    assert killed == []
    point.passed("stored")
    assert killed == ["killed"]


def test_a_crash_point_named_later_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "crash"
    point, killed = trap(f"@{file}")
    point.passed("marked")
    file.write_text("marked:2\n")
    point.passed("marked")
    assert killed == []
    assert file.exists()
    point.passed("marked")
    assert killed == ["killed"]
    assert not file.exists()


def test_a_crash_point_with_a_bad_count_is_refused() -> None:
    with pytest.raises(ValueError, match="'stored:0', expected point or point:count"):
        trap("stored:0")


def test_a_crash_point_ends_a_real_process() -> None:
    code = "from learner_jax.runtime import crash_point; crash_point('a'); print('on', flush=True); crash_point('b')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "WEIR_CRASH_AT": "b"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "on\n")


# The wire.

REQUEST = b"POST /x HTTP/1.1\r\nContent-Length: 300\r\n\r\n" + b"a" * 300


def test_requests_are_cut_at_their_ends() -> None:
    requests, stream = Requests(), REQUEST + b"GET /health HTTP/1.1\r\n\r\n" + REQUEST
    found = [whole for at in range(0, len(stream), 7) for whole in requests.add(stream[at : at + 7])]
    assert found == [REQUEST, b"GET /health HTTP/1.1\r\n\r\n", REQUEST]


async def through_proxy(fault: Callable[[], WireFault]) -> tuple[bytes | str, int, float]:
    """What a client gets back for REQUEST from an engine that echoes, how many requests that saw, and seconds."""
    arrived = 0

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        try:
            data = await reader.readexactly(len(REQUEST))
            arrived += 1
            writer.write(data)
            await reader.read()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    engine = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = engine.sockets[0].getsockname()[1]
    proxy = Proxy("127.0.0.1", port, fault=fault, draws=random.Random(1), side=lambda _: "worker")
    server = await asyncio.start_server(proxy.connected, "127.0.0.1", 0)
    started = time.monotonic()
    got: bytes | str
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
        writer.write(REQUEST)
        async with asyncio.timeout(1.0):
            got = await reader.readexactly(len(REQUEST))
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        got = type(error).__name__
    seconds = time.monotonic() - started
    await asyncio.sleep(0.1)
    writer.close()
    for listener in (server, engine):
        listener.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.sleep(0.02)
    return got, arrived, seconds


@pytest.mark.parametrize(
    ("fault", "got", "arrived", "least_s"),
    [
        (WireFault(), REQUEST, 1, 0.0),
        (WireFault("reset", "controller"), REQUEST, 1, 0.0),
        (WireFault("reset", "worker"), "ConnectionResetError", 0, 0.0),
        (WireFault("cut"), "IncompleteReadError", 0, 0.0),
        (WireFault("stall"), "TimeoutError", 0, 1.0),
        (WireFault("delay"), REQUEST, 1, 0.4),
        (WireFault("trickle"), REQUEST, 1, 0.1),
        (WireFault("duplicate"), REQUEST, 2, 0.0),
    ],
)
def test_the_proxy_does_what_it_is_told(fault: WireFault, got: bytes | str, arrived: int, least_s: float) -> None:
    found = asyncio.run(through_proxy(lambda: fault))
    assert found[:2] == (got, arrived)
    assert found[2] >= least_s


def test_a_stall_that_is_healed_goes_on() -> None:
    until = time.monotonic() + 0.3
    found = asyncio.run(through_proxy(lambda: WireFault("stall") if time.monotonic() < until else WireFault()))
    assert found[:2] == (REQUEST, 1)
    assert found[2] >= 0.25


def test_damage_on_the_wire_can_be_noticed() -> None:
    data = json.dumps({"token_ids": list(range(50))}).encode()
    with pytest.raises(UnicodeDecodeError):
        damaged(data, random.Random(0)).decode()
    assert len(damaged(data, random.Random(0))) == len(data)


def test_the_wires_fault_lies_in_a_file(tmp_path: Path) -> None:
    assert told(tmp_path / "wire.json") == WireFault()
    tell(tmp_path / "wire.json", WireFault("cut", "worker"))
    assert told(tmp_path / "wire.json") == WireFault("cut", "worker")


# Clocks, files, report.


def test_the_clock_of_a_process_can_be_wrong(tmp_path: Path) -> None:
    site = CONFIG.parent / "site" / "sitecustomize.py"
    spec = importlib.util.spec_from_file_location("chaos_site", site)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = tmp_path / "clock.json"
    clock = module.wrong_clock(str(path), "tools.learner", lambda: 100.0)
    assert clock() == 100.0
    path.write_text(json.dumps({"": 10.0, "tools.learner": -3.0, "tools.serve": 500.0}))
    time.sleep(0.03)
    assert clock() == 107.0


@pytest.mark.parametrize("how", ["flip", "tear"])
def test_a_file_is_damaged(tmp_path: Path, how: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    damage.damage(path, how, random.Random(0))
    data = path.read_bytes()
    assert (len(data), sum(byte.bit_count() for byte in data)) == ((100, 1) if how == "flip" else (50, 0))


def test_the_way_back_is_read_from_the_refusal() -> None:
    text = (
        "error: checkpoint /r/9 is damaged: /r/9/state/d/a: expected 4 bytes, got 2; the newest before it that can be "
        "used is /r/6, which is intact: to go on from it, run mv /r/9 /r/9.damaged, then start the run again"
    )
    refusal = damage.refusal(f"warning\n{text}\n", Path("/r/9"))
    assert refusal == text
    assert damage.way_back(text) == (6, "mv /r/9 /r/9.damaged")
    assert damage.refusal(text, Path("/r/8")) is None


def test_the_report_counts_by_fault_and_names_what_is_wrong() -> None:
    seeds = [
        SeedRecord(0, ["kill engine"], recovered_s=2.0, verdict="recovered"),
        SeedRecord(1, ["kill engine", "full weights"], 4.0, ["full weights: no mounts"], "recovered"),
        SeedRecord(2, ["kill engine"], None, verdict="waited 60 s for progress"),
        SeedRecord(3, ["stop worker"]),
    ]
    wrong = JobRecord("/kept/job-0", seeds, ["waited 60 s for progress"])
    found = report.tallies([wrong])
    assert (found["kill engine"].count, found["kill engine"].failed, found["full weights"].skipped) == (3, 1, 1)
    assert found["kill engine"].recovered_s == [2.0, 4.0]
    assert "stop worker" not in found
    record = json.loads(report.as_json([wrong], engine="fake", commit="abc", clean_correct=90, seconds=1.0))
    assert (record["seeds"], record["seeds_late"], record["jobs_wrong"]) == (3, 1, 1)
    assert record["faults"]["kill engine"] == {
        "count": 3, "skipped": 0, "failed": 1, "median_s": 2.0, "p90_s": 4.0, "max_s": 4.0
    }  # fmt: skip
    text = "\n".join(report.failures([wrong], commit="abc", engine="fake", per_job=10))
    for part in ("seed 2, commit abc", "--jobs-seeds 10 --seed 2", "/kept/job-0"):
        assert part in text


# Jobs of real processes.

ACKNOWLEDGE_BEFORE_THE_COMMIT = """
from learner_jax.loop.learner import Learner

save = Learner._save

def save_after_acknowledging(self):
    self._source.acknowledge(self._position().consumed_group_ids)
    save(self)

Learner._save = save_after_acknowledging
"""


def untrained_model(work: Path) -> Path:
    """The job's model with random weights: enough for jobs in which nothing has to be learned."""
    config = load_config(CONFIG, [f"run.directory={work / 'untrained'}"])
    return wiring.base_model_dir(config, wiring.run_paths(config))


def job(
    work: Path, *seeds: int, steps: int, patch: Path | None = None, faults: tuple[Fault, ...] | None = None
) -> JobRecord:
    spec = JobSpec(
        folder=work / "job",
        work=work,
        model=untrained_model(work),
        seeds=seeds,
        overrides=(f"learner.steps={steps}",),
        measures_skill=False,
        patch=patch,
        faults=faults,
    )
    return run_job(spec)


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_job_lives_through_kills_a_partition_and_a_damaged_checkpoint(tmp_path: Path) -> None:
    faults = (
        Fault("wire", "worker", "stall", after_s=0.1, lasts_s=0.5),
        Fault("kill", "engine", after_s=0.3),
        Fault("damage", "checkpoint", "flip"),
    )
    record = job(tmp_path, 1, steps=40, faults=faults)
    assert record.problems == []
    assert [(seed.verdict, seed.skipped) for seed in record.seeds] == [("recovered", [])]
    assert record.restarts["learner"] >= 1
    assert not (tmp_path / "job").exists()


@pytest.mark.soak
def test_acknowledging_before_the_commit_is_found(tmp_path: Path) -> None:
    patch = tmp_path / "patch.py"
    patch.write_text(ACKNOWLEDGE_BEFORE_THE_COMMIT)
    record = job(tmp_path, 1, steps=40, patch=patch, faults=(Fault("crash", "learner", "saving"),))
    assert any("acknowledged, but in no step that survived" in problem for problem in record.problems) or any(
        "groups were acknowledged, expected" in problem for problem in record.problems
    ), record.problems
    assert (tmp_path / "job" / "kept" / "checkpoints").exists()


def chaos(work: Path, *options: str, timeout_s: float) -> dict[str, Any]:
    """The report of `python -m tools.testing.chaos`, which must find nothing wrong."""
    path = work / "report.json"
    command = [sys.executable, "-m", "tools.testing.chaos", *options, "--work", str(work), "--report", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def test_an_engine_behind_a_damaged_wire_can_not_be_told_anything() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"H\xffTP/1.1\xff200 OK\r\n\r\n")

        answering = threading.Thread(target=answer)
        answering.start()
        with pytest.raises(SkippedError, match="does not answer"):
            disturb(f"http://127.0.0.1:{server.getsockname()[1]}", "token", {})
        answering.join()


# Minutes on an idle machine; the bounds are for one that does much else.
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_seeds_and_what_they_learn(tmp_path: Path) -> None:
    record = chaos(tmp_path, "--seeds", "10", "--jobs-seeds", "10", timeout_s=850)
    assert (record["jobs"], record["jobs_wrong"]) == (1, 0)
    assert record["seeds"] >= 8, "too few steps for all seeds to have their turn"
    assert all(job["correct"] >= 60 for job in record["records"])


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_fifty_seeds_and_what_they_learn(tmp_path: Path) -> None:
    record = chaos(tmp_path, "--seeds", "50", "--jobs-seeds", "25", "--at-once", "2", timeout_s=1400)
    assert (record["jobs"], record["jobs_wrong"]) == (2, 0)
    assert record["seeds"] >= 45, "too few steps for all seeds to have their turn"
    assert all(job["correct"] >= 60 for job in record["records"])


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_two_hundred_more_seeds(tmp_path: Path) -> None:
    record = chaos(tmp_path, "--first", "50", "--seeds", "200", "--at-once", "2", timeout_s=7000)
    assert (record["jobs"], record["jobs_wrong"]) == (20, 0)
    assert record["seeds"] >= 180


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_faults_of_real_vllm(tmp_path: Path) -> None:
    options = ("--engine", "vllm", "--first", "64", "--seeds", "8", "--jobs-seeds", "8")
    record = chaos(tmp_path, *options, timeout_s=3500)
    assert (record["jobs"], record["jobs_wrong"]) == (1, 0)
    assert record["seeds"] >= 7
