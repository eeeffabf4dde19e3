"""Workers wait while a hold is set and renewed, begin once it is lifted, and give up where nobody renews it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from learner_jax.runtime import Waits, WaitTimeoutError
from tools.assembly import WorkerHold, wait_while_held


def never() -> bool:
    return False


def waiting(
    file: Path,
    *,
    max_wait_s: float = 60.0,
    should_stop: Callable[[], bool] = never,
    waits: Waits | None = None,
) -> tuple[threading.Thread, list[bool]]:
    answers: list[bool] = []

    def wait() -> None:
        answers.append(wait_while_held(file, max_wait_s=max_wait_s, waits=waits or Waits(), should_stop=should_stop))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread, answers


def test_nothing_is_waited_for_where_no_hold_was_set(tmp_path: Path) -> None:
    assert wait_while_held(tmp_path / "held", max_wait_s=0.001, waits=Waits(), should_stop=never)


def test_a_worker_waits_until_the_hold_is_lifted(tmp_path: Path) -> None:
    hold = WorkerHold(tmp_path / "held")
    hold.set()
    thread, answers = waiting(tmp_path / "held")
    thread.join(0.2)
    assert answers == []
    hold.lift()
    thread.join(60)
    assert answers == [True]


def test_a_stop_ends_the_wait_and_the_worker_does_not_begin(tmp_path: Path) -> None:
    WorkerHold(tmp_path / "held").set()
    stop = threading.Event()
    thread, answers = waiting(tmp_path / "held", should_stop=stop.is_set)
    stop.set()
    thread.join(60)
    assert answers == [False]


def test_a_hold_that_nobody_renews_is_given_up_and_the_file_is_named(tmp_path: Path) -> None:
    WorkerHold(tmp_path / "held").set()
    with pytest.raises(WaitTimeoutError, match=r"rollout\.max_wait_s.*delete .*held"):
        wait_while_held(tmp_path / "held", max_wait_s=0.1, waits=Waits(), should_stop=never)


def test_a_hold_that_is_renewed_is_waited_for_beyond_the_bound(tmp_path: Path) -> None:
    now, looks = 0.0, threading.Semaphore(0)

    def clock() -> float:
        looks.release()
        return now

    hold = WorkerHold(tmp_path / "held", clock=lambda: now)
    hold.set()
    thread, answers = waiting(tmp_path / "held", max_wait_s=1.5, waits=Waits(clock))
    for _ in range(8):
        now += 1.0
        hold.renew()
        while looks.acquire(blocking=False):
            pass
        for _ in range(6):  # the worker has then looked at the file once at least, by three of its clock's readings
            assert looks.acquire(timeout=60)
    assert thread.is_alive()
    hold.lift()
    thread.join(60)
    assert answers == [True]


def test_a_hold_is_renewed_once_a_second_and_only_while_it_is_set(tmp_path: Path) -> None:
    now = 0.0
    file = tmp_path / "held"
    hold = WorkerHold(file, clock=lambda: now)
    hold.renew()
    assert not file.exists()
    hold.set()
    first = file.read_bytes()
    now = 0.5
    hold.renew()
    assert file.read_bytes() == first
    now = 1.0
    hold.renew()
    assert file.read_bytes() != first
    hold.lift()
    hold.lift()
    now = 9.0
    hold.renew()
    assert not file.exists()


def test_a_full_disk_does_not_end_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    now = 0.0
    hold = WorkerHold(tmp_path / "held", clock=lambda: now)
    hold.set()
    monkeypatch.setattr("tools.assembly.worker_hold.write_whole", full)
    now = 2.0
    hold.renew()
    assert (tmp_path / "held").exists()
