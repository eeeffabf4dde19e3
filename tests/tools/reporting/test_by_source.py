"""Figures by source: what intervals and held-out evaluations of a mixture add up to, and their table in the report."""

from __future__ import annotations

from pathlib import Path

from tests.support.written_runs import interval, measured, step, write_events
from tools.reporting.by_source import by_source
from tools.reporting.figures import RunHistory
from tools.reporting.page import write_report, write_summary

_LINE = interval(tokens=10, idle_s=0.0, mixed=0)


def counted(groups: int, answers: int, passes: int, reward: float, tokens: int) -> dict[str, float]:
    return {
        "groups": groups,
        "episodes": 2 * groups,
        "answers": answers,
        "passes": passes,
        "reward": reward,
        "tokens": tokens,
    }


def test_intervals_of_a_mixture_add_up_by_source(tmp_path: Path) -> None:
    before = measured(0.2, 0.2) | {"sources": {"sums": {"accuracy": 0.25}}}
    write_events(
        tmp_path,
        (1.0, "evaluation", {"which": "before", **before}),
        (2.0, "step", step(1)),
        (
            2.1,
            "interval",
            _LINE | {"sources": {"sums": counted(2, 4, 1, -1.5, 40), "<b>": counted(1, 0, 0, 0, 6)}},
        ),
        (3.0, "interval", _LINE | {"sources": {"sums": counted(1, 1, 1, 1.0, 20)}}),
        (4.0, "interval", _LINE),
    )
    found = write_summary(tmp_path)["sources"]
    assert list(found) == ["<b>", "sums"]
    assert found["sums"] == {
        "groups": 3,
        "answers": 5,
        "reward_mean": -0.1,
        "solved": 0.4,
        "tokens_mean": 10.0,
        "heldout_before": 0.25,
        "heldout_after": None,
    }
    assert (found["<b>"]["reward_mean"], found["<b>"]["solved"], found["<b>"]["tokens_mean"]) == (None, None, 3.0)
    page = write_report(tmp_path).read_text()
    assert "<h2>Sources</h2>" in page
    assert "<td>&lt;b&gt;</td><td>1</td><td>n/a</td>" in page
    assert "<td>sums</td><td>3</td><td>-0.100</td><td>40%</td>" in page


def test_a_task_with_one_source_has_no_table(tmp_path: Path) -> None:
    write_events(tmp_path, (1.0, "step", step(1)), (2.0, "interval", _LINE))
    assert write_summary(tmp_path)["sources"] == {}
    assert "<h2>Sources</h2>" not in write_report(tmp_path).read_text()


def test_what_is_no_figure_is_left_out() -> None:
    history = RunHistory()
    history.add([{"event": "interval", "t": 1.0, "sources": {"a": {"groups": "many", "reward": None}, "b": 3}}])
    history.add([{"event": "interval", "t": 2.0, "sources": ["a"]}])
    assert by_source(history) == {
        "a": {
            "groups": 0,
            "answers": 0,
            "reward_mean": None,
            "solved": None,
            "tokens_mean": None,
            "heldout_before": None,
            "heldout_after": None,
        }
    }
