"""Every invariant of the simulation fails once: what it must notice is done here, without a simulation around it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner_jax.contracts import TensorEntry, Trajectory
from learner_jax.runtime import Waits
from serving_bridge.weights import VersionHeader, VersionWriter, WeightStore
from tests.support.simulated_checks import Bench
from tests.support.trajectories import make_group
from tools.testing import simulate
from tools.testing.simulate.checkpoints import State
from tools.testing.simulate.holds import Holds
from tools.testing.simulate.weights import Parameters, logprob_of

FILE = "0" * 32
#: noted where a whole run is needed to see them: tests of test_simulate.py
IN_RUNS = {"unknown error", "server left running", "standstill", "not finished"}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.loop.abandon()
    made.database.real.close()


FREE_PAYLOADS = "DELETE FROM payloads"
STEP = "UPDATE progress SET value = value + 1 WHERE key = 'completed_steps'"


def trained_by_another(bench: Bench) -> None:
    bench.claim()
    bench.put()
    bench.move("leased")
    bench.commit(bench.other_learner, "UPDATE progress SET value = 2 WHERE key = 'consumer_epoch'")
    bench.move("trained", bench.other_learner, STEP)


def acknowledged(bench: Bench) -> None:
    bench.claim()
    bench.put()
    bench.move("leased")
    bench.move("trained", None, STEP)
    bench.move("acknowledged", None, FREE_PAYLOADS)


def unaccounted(bench: Bench) -> None:
    bench.claim()
    bench.put()
    bench.move("leased")
    bench.move("trained", None, STEP)
    bench.rows.finished(set())


def ended_with_its_payload(bench: Bench) -> None:
    bench.claim()
    bench.put()
    bench.move("dropped")


def trained_without_a_step(bench: Bench) -> None:
    bench.claim()
    bench.put()
    bench.move("leased")
    bench.move("trained")


def payload_of_nobody(bench: Bench) -> None:
    bench.commit(bench.learner, "INSERT INTO payloads VALUES (7, x'00')")
    bench.claim()
    bench.put()


def live_without_payload(bench: Bench) -> None:
    bench.claim()
    bench.put()
    bench.move("leased", None, FREE_PAYLOADS)


def over_capacity(bench: Bench) -> None:
    for prompt in range(2):
        bench.claim(prompt)
    for prompt in range(2):
        bench.put(prompt)


def stale(bench: Bench) -> None:
    bench.claim()
    bench.put()
    bench.commit(bench.learner, "UPDATE progress SET value = 3 WHERE key = 'trained_version'")
    bench.move("leased")


def claim_of_an_ended_prompt(bench: Bench) -> None:
    bench.claim()
    bench.put()
    bench.commit(bench.workers[0], "INSERT INTO claims VALUES (0, 'worker-0', 2e9)")


def claim_taken(bench: Bench) -> None:
    bench.claim()
    bench.commit(bench.workers[1], "UPDATE claims SET worker = 'worker-1'")


def claim_lost(bench: Bench) -> None:
    bench.claim()
    bench.commit(bench.workers[1], "DELETE FROM claims")


def put_after_the_end(bench: Bench) -> None:
    bench.claim()
    bench.commit(bench.learner, "UPDATE progress SET value = 1 WHERE key = 'watermark'")
    bench.violations.first = None  # the watermark's own
    bench.put()


def too_many_claims(bench: Bench) -> None:
    for prompt in range(3):
        bench.claim(prompt)


def unsynced_file(bench: Bench) -> None:
    (bench.blobs / FILE).write_bytes(b"payload")
    bench.files.put("run/0", FILE)


def needed_file(bench: Bench, *, still: bool) -> None:
    path = bench.blobs / FILE
    path.write_bytes(b"payload")
    bench.files.needed_by_rows({FILE}, is_synced=True)
    if not still:
        bench.files.needed_by_rows(set(), is_synced=False)
    with bench.disk.watched():
        path.unlink()


def missing_file(bench: Bench) -> None:
    bench.files.needed_by_rows({FILE}, is_synced=True)


def left_file(bench: Bench) -> None:
    (bench.blobs / FILE).write_bytes(b"payload")
    bench.files.freed(num_troubles=0)


def unsynced_manifest(bench: Bench) -> None:
    folder = bench.publish()
    (folder / "new").write_bytes((folder / "manifest.json").read_bytes())
    with bench.disk.watched():
        (folder / "new").rename(folder / "manifest.json")


def manifest_first(bench: Bench) -> None:
    folder = bench.publish()
    (folder / "manifest.json").rename(folder / "new")
    (folder / "weights.safetensors").unlink()
    bench.disk.settle()
    with bench.disk.watched():
        (folder / "new").rename(folder / "manifest.json")


def files_unsynced(bench: Bench) -> None:
    folder = bench.publish()
    (folder / "manifest.json").rename(folder / "new")
    bench.disk.settle()
    content = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").rename(folder / "old")
    (folder / "weights.safetensors").write_bytes(content)
    with bench.disk.watched():
        (folder / "new").rename(folder / "manifest.json")


def deleted_in_use(bench: Bench) -> None:
    folder = bench.publish()
    bench.publish(2)
    bench.served.add(1)
    with bench.disk.watched():
        (folder / "manifest.json").unlink()


def publish_update(bench: Bench, entries: Sequence[TensorEntry]) -> None:
    """The next version, built on version 1."""
    writer = VersionWriter(WeightStore(bench.weights, run="run"))
    header = VersionHeader(1, [], writer.claim())
    writer.publish_update({"stream": np.zeros(1, np.uint8)}, entries, header, base_version=1, num_changed=0)


def deleted_base(bench: Bench) -> None:
    folder = bench.publish()
    publish_update(bench, WeightStore(bench.weights, run="run").manifest(1).tensors)
    bench.files.look()
    assert bench.violations.first is None
    with bench.disk.watched():
        (folder / "manifest.json").unlink()
    folder.rename(bench.weights / "gone")
    bench.files.look()


def name_given_twice(bench: Bench) -> None:
    (bench.weights / "v00000001").mkdir()
    bench.disk.settle()
    bench.files.claimed(1, 8)


def unsynced_name(bench: Bench) -> None:
    (bench.weights / "v00000002").mkdir()
    bench.files.claimed(2, 8)


def unsynced_version(bench: Bench) -> None:
    bench.publish()
    bench.files.published(1)


def torn_checkpoint(bench: Bench) -> None:
    (bench.checkpoints / "2").mkdir()
    bench.files.proven.add(2)
    bench.files.put_aside_torn()


def group(**changes: Any) -> list[Trajectory]:
    """A group whose log-probs are those of version 1."""
    made = []
    for trajectory in make_group("run/0"):
        tokens = trajectory.tokens.tolist()
        logprobs = [0.0, *(logprob_of(7, tokens, position) for position in range(1, len(tokens)))]
        behavior = np.where(trajectory.loss_mask, logprobs, 0.0).astype(np.float32)
        made.append(replace(trajectory, **{"behavior_logprobs": behavior} | changes))
    return made


def waits_for_ever(bench: Bench) -> None:
    now = [0.0]
    waits = Waits(lambda: now[0])
    with waits.waiting("a thing", on="somebody", limit_s=1.0):
        now[0] = 60.0
        bench.run.waiting("worker-0", waits)


def trained_while_held(bench: Bench) -> None:
    now = [0.0]
    for seed in range(8):  # every second one draws a hold
        holds = Holds(seed, bench.violations, lambda: now[0])
        for now[0] in np.arange(0.0, 8.0, 0.1):
            if holds.reason():
                holds.seen("trains", bench.learner)


HISTORY = ((1, ("run/0",)), (2, ("run/0",)))
BROKEN: list[tuple[str, Callable[[Bench], Any]]] = [
    ("acknowledged before the checkpoint", acknowledged),
    ("unaccounted group", unaccounted),
    ("turn went back", lambda b: b.commit(b.learner, "UPDATE progress SET value = 0 WHERE key = 'consumer_epoch'")),
    (
        "change by a replaced learner",
        lambda b: b.commit(b.other_learner, "UPDATE progress SET value = 1 WHERE key = 'finished'"),
    ),
    ("step without its groups", trained_without_a_step),
    ("change of state", lambda b: (b.claim(), b.put(), b.move("trained", None, STEP))),
    ("trained without a lease", trained_by_another),
    ("stale group leased", stale),
    ("put without a claim", lambda b: (b.claim(0, worker=1), b.put())),
    ("claim kept", lambda b: (b.claim(), b.put(more="SELECT 1"))),
    ("put twice", put_after_the_end),
    ("row unlike its payload", lambda b: (b.claim(), b.put(version=1, said=2))),
    ("queue over capacity", over_capacity),
    ("payload missing", live_without_payload),
    ("payload missing", missing_file),
    ("payload kept", ended_with_its_payload),
    ("payload kept", left_file),
    ("payload kept", payload_of_nobody),
    ("payload not on the disk", unsynced_file),
    ("payload freed early", lambda b: needed_file(b, still=True)),
    ("payload freed early", lambda b: needed_file(b, still=False)),
    ("prompt claimed twice", claim_of_an_ended_prompt),
    ("claim taken away", claim_taken),
    ("claim lost", claim_lost),
    ("prompt skipped", lambda b: b.commit(b.workers[0], "UPDATE progress SET value = 1 WHERE key = 'next_prompt'")),
    (
        "number went back",
        lambda b: (b.claim(), b.commit(b.learner, "UPDATE progress SET value = 0 WHERE key = 'next_prompt'")),
    ),
    (
        "watermark too high",
        lambda b: (b.claim(), b.commit(b.learner, "UPDATE progress SET value = 1 WHERE key = 'watermark'")),
    ),
    ("gate", too_many_claims),
    ("manifest not on the disk", unsynced_manifest),
    ("manifest before files", manifest_first),
    ("manifest before files", files_unsynced),
    ("version in use deleted", deleted_in_use),
    ("version in use deleted", deleted_base),
    ("version name reused", name_given_twice),
    ("version name not on the disk", unsynced_name),
    ("version not on the disk", unsynced_version),
    ("proven checkpoint lost", torn_checkpoint),
    ("size of a step", lambda b: b.run.training([], 1, set())),
    ("trained twice", lambda b: b.run.training([group()], 1, {"run/0"})),
    ("staleness", lambda b: b.run.training([group()], 3, set())),
    ("token of another version", lambda b: b.run.training([make_group("run/0")], 1, set())),
    ("unproven weights", lambda b: b.run.sampled("engine", "unproven", 7)),
    ("weights of another version", lambda b: b.run.sampled("engine", "1", 8)),
    (
        "version went back",
        lambda b: (b.files.identities.update({2: 8}), b.run.sampled("e", "2", 8), b.run.sampled("e", "1", 7)),
    ),
    ("version that is not served", lambda b: (b.run.named("old", "1"), b.run.listed("replica", "new", 1))),
    ("slots", lambda b: [b.run.slots("worker-0", {"url": 1}, 1, {"url": 0}) for _ in range(2)]),
    ("slots", lambda b: [b.run.slots("worker-0", {"url": 0}, 1, {"url": 0}) for _ in range(2)]),
    ("rounds at once", lambda b: b.run.rounds(2, 1)),
    ("wait without a bound", waits_for_ever),
    ("training while held", trained_while_held),
    ("no last checkpoint", lambda b: b.run.finished(None, 6)),
    ("history", lambda b: b.run.finished((2, State(Parameters(1, HISTORY))), 2)),
]


@pytest.mark.parametrize(("invariant", "broken"), BROKEN, ids=lambda value: value if isinstance(value, str) else "")
def test_an_invariant_that_is_broken_is_noted_by_its_name(bench: Bench, invariant: str, broken: Callable[[Bench], Any]):
    broken(bench)
    assert str(bench.violations.first).partition(":")[0] == invariant


def test_what_is_allowed_is_not_noted(bench: Bench):
    bench.durable = {"run/0"}
    acknowledged(bench)
    bench.rows.finished({"run/0"})
    bench.run.training([group()], 2, set())
    bench.run.sampled("engine", "1", 7)
    bench.run.named("url", "1")
    bench.run.listed("replica", "url", 1)
    bench.run.listed("replica", "", -1)
    bench.run.slots("worker-0", {"url": 2}, 2, {"url": 2})
    bench.run.slots("worker-0", {"url": 2}, 2, {"url": 0})
    bench.run.slots("worker-0", {"url": 2}, 2, {"url": 2})
    for _ in range(2):  # the replica left and came back while two answers of before were under way
        bench.run.slots("worker-0", {"url": 1}, 3, {"url": 3})
    bench.disk.settle()
    with bench.disk.watched():
        bench.publish()
        bench.files.published(1)
        (bench.weights / "v00000001" / "manifest.json").read_bytes()
    assert bench.violations.first is None


def test_a_version_is_deleted_once_though_two_remove_what_is_left_of_it(bench: Bench):
    folder = bench.publish()
    entries = WeightStore(bench.weights, run="run").manifest(1).tensors
    bench.publish(2)
    with bench.disk.watched():
        (folder / "manifest.json").unlink()  # whoever removes it is killed now
    publish_update(bench, entries)  # by a learner that was replaced, and knows no better
    with bench.disk.watched():
        (folder / "manifest.json").unlink(missing_ok=True)
    bench.files.look()
    assert bench.violations.first is None


def test_every_invariant_is_broken_once():
    position = {"require": 1, "note": 0}  # of the invariant's name among the arguments
    named = set()
    for path in Path(simulate.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called in position and isinstance(name := node.args[position[called]], ast.Constant):
                    named.add(name.value)
    assert named == {invariant for invariant, _ in BROKEN} | IN_RUNS
