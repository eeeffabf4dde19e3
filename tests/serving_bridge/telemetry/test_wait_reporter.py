"""What a process waits for appears in its metrics log, in time, and goes away again."""

from __future__ import annotations

import time
from typing import Any

from learner_jax.runtime.waits import Waits, WaitState
from serving_bridge.telemetry.wait_reporter import WaitReport, reported_waits


def wait(what: str, waited_s: float) -> WaitState:
    return WaitState(what, "replicas", waited_s, 60.0)


def test_long_waits_are_told_when_they_change_and_now_and_then():
    events: list[tuple[float, list[dict[str, Any]]]] = []
    now_s = 0.0
    report = WaitReport(lambda event, waits: events.append((now_s, waits)))
    story = {
        0.0: [],
        0.5: [wait("a", 0.5)],
        1.0: [wait("a", 1.0)],
        1.5: [wait("a", 1.5)],
        5.5: [wait("a", 5.5)],
        6.0: [wait("a", 6.0)],
        6.5: [wait("a", 6.5), wait("b", 1.0)],
        7.0: [wait("b", 1.5)],
        8.0: [],
        20.0: [],
    }
    for now_s, states in story.items():
        report.look(states, now_s)
    assert [(at_s, [w["what"] for w in waits]) for at_s, waits in events] == [
        (1.0, ["a"]),
        (6.0, ["a"]),
        (6.5, ["a", "b"]),
        (7.0, ["b"]),
        (8.0, []),
    ]
    assert events[0][1] == [{"what": "a", "on": "replicas", "waited_s": 1.0, "limit_s": 60.0}]


def test_a_thread_tells_it_while_the_process_stands_still():
    events: list[list[dict[str, Any]]] = []
    waits = Waits()

    def log(event: str, waits: list[dict[str, Any]]) -> None:
        events.append(waits)

    reported = reported_waits(waits, log, clock=time.monotonic, poll_s=0.05)
    with reported, waits.waiting("the disk", on="disk", limit_s=9):
        time.sleep(1.2)
        ended_s = time.monotonic()
    assert time.monotonic() - ended_s < 4, "the end waits for a thread that was not told of it"
    assert [[w["what"] for w in entry] for entry in events] == [["the disk"], []]
