"""The queue against a model in plain Python: any order of claims, groups, leases, checkpoints and crashes."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis.stateful import run_state_machine_as_test

from tests.support.properties import examples
from tests.support.queue_engines import fresh_url
from tests.support.queue_machine import QueueMachine


@pytest.mark.hypothesis
def test_the_queue_does_what_its_model_does(tmp_path: Path) -> None:
    numbers = itertools.count()

    def place() -> tuple[Path, str]:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        return folder, str(folder / "state.db")

    machine = type("SqliteMachine", (QueueMachine,), {"place": staticmethod(place)})
    run_state_machine_as_test(machine, settings=examples(1.5, steps=2.0))


@pytest.mark.hypothesis
@pytest.mark.postgres
def test_the_queue_on_a_server_does_what_its_model_does(tmp_path: Path, postgres_url: str) -> None:
    numbers = itertools.count()

    def place() -> tuple[Path, str]:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        return folder, fresh_url(postgres_url)

    machine = type("PostgresMachine", (QueueMachine,), {"place": staticmethod(place)})
    run_state_machine_as_test(machine, settings=examples(0.1))
