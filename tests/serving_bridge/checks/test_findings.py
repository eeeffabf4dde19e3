"""How checks are run: a look that hangs is left behind, and what is found is told once, under its setting."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from serving_bridge.checks.findings import Check, Finding, run_checks


def test_a_look_that_hangs_is_left_behind_and_told() -> None:
    forever = threading.Event()

    def hang() -> Iterator[Finding]:
        forever.wait(60)
        yield from ()

    started = time.monotonic()
    checks = [Check("the network drive", "store.weights", hang), Check("rest", "x", lambda: ())]
    late, rest = run_checks(checks, limit_s=0.2, own=lambda error: True)
    forever.set()
    assert time.monotonic() - started < 30
    assert [(f.setting, f.severity) for f in late.findings] == [("store.weights", "warning")]
    assert rest.findings == ()


def test_a_look_says_how_long_it_took_and_none_waits_for_another() -> None:
    together = threading.Barrier(2)

    def look() -> Iterator[Finding]:
        together.wait(30)
        time.sleep(0.05)
        yield Finding("a", "b", "c", "d", "note")

    results = run_checks([Check("one", "x", look), Check("two", "y", look)], limit_s=60, own=lambda error: True)
    assert [len(result.findings) for result in results] == [1, 1]
    assert all(0.05 <= result.wall_s < 30 for result in results)


def test_our_errors_are_findings_and_others_are_raised() -> None:
    def refuse() -> Iterator[Finding]:
        raise ValueError("config.json is missing")
        yield

    check = Check("model", "model.path", refuse)
    (result,) = run_checks([check], limit_s=5, own=lambda error: True)
    assert str(result.findings[0]) == "model.path: config.json is missing"
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        run_checks([check], limit_s=5, own=lambda error: False)


def test_an_error_that_begins_with_its_setting_is_told_under_it() -> None:
    def refuse() -> Iterator[Finding]:
        raise ValueError("task.reward 'my_rewards:exat': my_rewards has no 'exat'")
        yield

    (result,) = run_checks([Check("model", "model.path", refuse)], limit_s=5, own=lambda error: True)
    assert result.findings[0].setting == "task.reward"
    assert str(result.findings[0]) == "task.reward 'my_rewards:exat': my_rewards has no 'exat'"


def test_what_is_found_before_an_error_is_kept_and_one_reason_is_told_once() -> None:
    def look() -> Iterator[Finding]:
        yield Finding("a", "b", "c", "d")
        raise ValueError("no config.json")

    checks = [Check("first", "model.path", look), Check("second", "model.path", look)]
    first, second = run_checks(checks, limit_s=5, own=lambda error: True)
    assert [str(finding) for finding in first.findings] == ["a: expected b, got c; d", "model.path: no config.json"]
    assert [finding.severity for finding in second.findings] == ["error", "note"]
