"""Which of our errors are worth a retry: every class is decided on, and what can't heal is not started again."""

from __future__ import annotations

import ast
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.load import ConfigError
from learner_jax.runtime import CANNOT_HEAL_STATUS
from rewards.contracts.task import TaskError
from serving_bridge.database.database import DatabaseError, WrongDatabaseError
from serving_bridge.processes.supervisor import ProcessFailedError, Supervisor
from serving_bridge.queue.bounds import QueueError
from serving_bridge.text.tokenizer import TokenizerError
from tests.conftest import REPOSITORY
from tools.assembly import clear_errors

PACKAGES = ("learner_jax", "rewards", "serving_bridge", "configs", "tools/assembly")
#: What was given has to change: settings, model folder, task, database, machine.
CANNOT_HEAL = {
    "CalibrationError",
    "ClassifierError",
    "ConfigError",
    "ConversionError",
    "CreateModelError",
    "DoorError",
    "EngineArgsError",
    "EvaluationError",
    "FailedVerdictsError",
    "FallbackError",
    "FineTuningError",
    "InUseError",
    "GuardModelError",
    "HubModelError",
    "MissingLibraryError",
    "ModelConfigError",
    "ModelFamilyError",
    "PatternError",
    "PlanError",
    "PolicyError",
    "SandboxError",
    "ShardingError",
    "StorageSetupError",
    "TaskError",
    "TenantError",
    "TenantsError",
    "TokenizerError",
    "WarmStartError",
    "WeightFileError",
    "WrongDatabaseError",
}


def exception_classes() -> Iterator[tuple[str, bool]]:
    """(name, whether it says of itself that it can't heal) of each class of ours that is raised."""
    for package in PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef) and any("Error" in ast.unparse(b) for b in node.bases):
                    said = any(ast.unparse(line) == "can_heal = False" for line in node.body)
                    yield node.name, said


def test_the_errors_that_cannot_heal_are_those() -> None:
    found = dict(exception_classes())
    assert len(found) > 40
    assert {name for name, cannot in found.items() if cannot} == CANNOT_HEAL


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("x"), 78),
        (TokenizerError("x"), 78),
        (TaskError("x"), 78),
        (WrongDatabaseError("x"), 78),
        (DatabaseError("x"), 1),
        (QueueError("x"), 1),
        (ProcessFailedError("x", 78), 78),
        (ProcessFailedError("x", 2), 78),
        (ProcessFailedError("x", 1), 1),
        (ProcessFailedError("x", 137), 1),
        (ProcessFailedError("x", os.EX_IOERR), os.EX_IOERR),
    ],
)
def test_a_command_ends_with_a_status_that_says_so(
    error: Exception, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, clear_errors():
        raise error
    assert ended.value.code == status
    assert capsys.readouterr().err.startswith("error: x")


def failed(tmp_path: Path, code: str) -> tuple[ProcessFailedError, list[str]]:
    """How a supervisor that may restart it thrice gives up on a process."""
    restarts: list[str] = []
    with Supervisor(tmp_path, lambda event, **fields: restarts.append(event)) as supervisor:
        supervisor.start("job", [sys.executable, "-c", code], restarts=3)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                supervisor.check()
            except ProcessFailedError as error:
                return error, restarts
            time.sleep(0.02)
    raise AssertionError("it did not end")


def test_what_cannot_heal_is_told_at_once_in_its_own_words(tmp_path: Path) -> None:
    code = (
        "import sys; print('loading'); print('error: old words\\n', file=sys.stderr); "
        "print('error: no weights in /x;\\n give model.path', file=sys.stderr); sys.exit(78)"
    )
    error, restarts = failed(tmp_path, code)
    assert restarts == []
    assert str(error) == (f"no weights in /x;\n give model.path (said by process job, in {tmp_path / 'job.log'})")
    assert error.status == CANNOT_HEAL_STATUS
    assert not error.can_heal


def test_a_command_line_that_is_not_understood_is_not_tried_again(tmp_path: Path) -> None:
    error, restarts = failed(tmp_path, "import argparse; argparse.ArgumentParser().parse_args(['--x'])")
    assert restarts == []
    assert "error: unrecognized arguments: --x" in str(error)


def test_of_a_group_the_one_that_cannot_heal_speaks(tmp_path: Path) -> None:
    """Whichever was seen to end first: the others' errors follow from it."""
    codes = (
        "import sys; print('error: the other is gone', file=sys.stderr); sys.exit(1)",
        "import sys, time; time.sleep(0.5); print('error: wrong mesh', file=sys.stderr); sys.exit(78)",
    )
    with Supervisor(tmp_path, lambda event, **fields: None) as supervisor:
        supervisor.start_group("job", lambda: [[sys.executable, "-c", code] for code in codes], restarts=3)
        deadline = time.monotonic() + 60
        with pytest.raises(ProcessFailedError, match="^wrong mesh"):  # noqa: PT012  (whichever look sees it)
            while time.monotonic() < deadline:
                supervisor.check()
                time.sleep(0.02)
