"""Memory of the fused output head against one with all logits."""

from __future__ import annotations

import dataclasses

import pytest

from tools.bench import BenchmarkError
from tools.bench.learner import head


def test_heads_agree_and_the_fused_one_holds_no_logits() -> None:
    heads = {name: head.run_head(name, tokens=8192, vocab=2048, hidden=8) for name in ("fused", "naive")}
    head.check(heads["fused"], heads["naive"])
    assert heads["naive"].grad_norm > 1
    logits_mb = 4 * 8192 * 2048 / 2**20
    assert heads["naive"].compiled_mb >= logits_mb
    assert heads["fused"].compiled_mb < 0.5 * logits_mb  # an eighth of the tokens at a time


def test_heads_that_disagree_are_an_error() -> None:
    memory = head.Memory(compiled_mb=1.0, maxrss_mb=1.0, loss=10.0, grad_norm=3.0)
    with pytest.raises(BenchmarkError, match=r"grad_norm of the fused head is 3\.001, of the naive one 3"):
        head.check(dataclasses.replace(memory, grad_norm=3.001), memory)


def test_head_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_available_mb", lambda: 1.0)
    with pytest.raises(BenchmarkError, match=r"the naive head needs \d+ MiB, 1 are free"):
        head.run_head("naive", tokens=1024, vocab=512, hidden=8)


def test_head_aim_is_held_against_both_measures() -> None:
    def memory(compiled: float, rss: float) -> head.Memory:
        return head.Memory(compiled, rss, loss=1.0, grad_norm=1.0)

    first, second = head.verdicts({"fused": memory(100, 300), "naive": memory(900, 1500)})
    assert first.line == "head: 0.111x the naive head's compiled memory (100 of 900 MiB) (aim <= 0.125): met"
    assert second.line == "head: 0.200x the naive head's peak RSS (300 of 1500 MiB) (aim <= 0.125): NOT met"
