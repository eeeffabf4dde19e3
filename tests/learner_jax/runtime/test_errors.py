"""Our errors have one base, and say how a command ends that meets them."""

from __future__ import annotations

import ast
import builtins
import importlib
import os
from collections.abc import Iterator

import pytest

from configs.errors import ConfigError
from learner_jax.runtime import WeirError
from serving_bridge.processes import ProcessFailedError
from tests.conftest import REPOSITORY

PACKAGES = ("learner_jax", "rewards", "serving_bridge", "configs", "tools")
#: caught where they are raised, by name; guard and role run without our packages; a LedgerError is a bug of ours
ALLOWED = {
    "Stopped",
    "GuardError",
    "Refused",
    "SkippedError",
    "ClientGone",
    "EngineDiedError",
    "NotReadyError",
    "Passed",
    "ReplicaLost",
    "Violation",
    "ProcessDiedError",
    "LedgerError",
    "RoleError",
}


#: run where Weir's packages are not imported: inside vLLM, and inside the sandbox of an answer's code
ELSEWHERE = ("serving_bridge.vllm_plugin.", "rewards.code.guest.")


def public_errors() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            module = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
            for node in ast.parse(path.read_text()).body:
                bases = [ast.unparse(base) for base in getattr(node, "bases", ())]
                if any("Error" in base or base == "Exception" for base in bases) and isinstance(node, ast.ClassDef):
                    yield module, node.name


def test_every_error_for_people_has_the_base() -> None:
    found = list(public_errors())
    assert len(found) > 60
    for module, name in found:
        if name.startswith("_") or name in ALLOWED or module.startswith(ELSEWHERE):
            continue
        kind = getattr(importlib.import_module(module), name)
        assert issubclass(kind, WeirError), f"{module}.{name}"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (WeirError("x"), 1),
        (ConfigError("x"), os.EX_CONFIG),
        (ProcessFailedError("x", 1), 1),
        (ProcessFailedError("x", 2), os.EX_CONFIG),
    ],
)
def test_the_exit_status_says_whether_another_try_can_help(error: WeirError, status: int) -> None:
    assert error.exit_status == status
    assert error.can_heal == (status == 1)


def test_a_bad_value_is_still_a_value_error() -> None:
    assert issubclass(ConfigError, builtins.ValueError)
