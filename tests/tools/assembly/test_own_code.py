"""What of a user's own code is looked at before a run starts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from configs.load import load_config
from learner_jax.runtime import DoorError
from tests.conftest import REPOSITORY
from tools.assembly.own_code import own_code_findings

DEMO = REPOSITORY / "configs/demo.toml"


def findings(*changes: str) -> list[str]:
    return [str(finding) for finding in own_code_findings(load_config(DEMO, changes))]


def test_losses_are_looked_for_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_losses_here.py").write_text("import jax\nraise RuntimeError('imported')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    policy, advantage = "learner.loss.policy.objective", "learner.loss.advantage.estimator"
    assert findings(f"{policy}=own_losses_here:clip", f"{advantage}=own_losses_here:median") == []
    assert "own_losses_here" not in sys.modules
    (missing,) = findings(f"{policy}=own_losses_there:clip")
    assert missing.startswith(f"{policy}: expected a module in the working folder, or an installed one, got 'own_losse")
    assert findings(f"{policy}=gspo", f"{advantage}=gae", "learner.loss.value.model=shared") == []


def test_a_logger_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_logger_here.py").write_text("class Log:\n    def __init__(self, directory, process): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert findings('run.loggers=["own_logger_here:Log"]') == []
    with pytest.raises(DoorError, match=r"run.loggers 'own_logger_here:Lag': .* did you mean Log\?"):
        findings('run.loggers=["own_logger_here:Log", "own_logger_here:Lag"]')
