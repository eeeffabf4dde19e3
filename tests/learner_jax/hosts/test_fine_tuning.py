"""Supervised training by several real processes: the same batches and parameters as one, also after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner_jax.batches import preference_batch, supervised_batch
from learner_jax.hosts import Hosts
from learner_jax.settings import SupervisedSettings
from learner_jax.training.fine_tuning import FineTuningError, _own_share, fine_tune
from tests.support.fine_tuning_worker import data
from tests.support.host_processes import Processes, largest_difference
from tests.support.learner_runs import assert_same_parameters
from tests.support.tiny_model import TINY_JSON

SETTINGS: dict[str, Any] = {
    "steps": 1, "groups_per_step": 4, "sequence_length": 8, "row_tokens": [16], "microbatch_rows": 4,
    "optimizer": {"learning_rate": 1e-2}, "mesh": {"data": 1, "fsdp": 2},
}  # fmt: skip


def run(directory: Path, count: int, loss: str, **told: Any) -> list[dict[str, Any]]:
    """What the first host told, after the processes have ended well."""
    supervised = {
        "data": "x.jsonl", "steps": 4, "batch_size": 4, "learning_rate": 1e-2, "save_every": 2, "loss": loss,
    }  # fmt: skip
    Processes(
        directory,
        count,
        settings=SETTINGS,
        num_devices=2,
        model=TINY_JSON,
        module="tests.support.fine_tuning_worker",
        supervised=supervised,
        **told,
    ).finish()
    return [json.loads(line) for line in (directory / "told-0.jsonl").read_text().splitlines()]


def check_same(one: list[dict[str, Any]], two: list[dict[str, Any]], directory: Path) -> None:
    assert [line["step"] for line in two] == [1, 2, 3, 4]
    np.testing.assert_allclose([line["loss"] for line in two], [line["loss"] for line in one], rtol=1e-5)
    # Adam's first steps have the size of the learning rate, 1e-2, also where a gradient is little more than rounding.
    assert largest_difference(directory / "one", directory / "two") < 1e-4


@pytest.mark.soak
def test_two_processes_learn_from_pairs_what_one_does(tmp_path: Path) -> None:
    """Two devices in one process, and one in each of two: only the order of sums differs."""
    check_same(run(tmp_path / "one", 1, "dpo"), run(tmp_path / "two", 2, "dpo"), tmp_path)


@pytest.mark.soak
def test_two_processes_learn_from_answers_what_one_does_and_go_on_after_a_stop(tmp_path: Path) -> None:
    """The second host is asked to stop, and both do; the next start goes on with the same bits."""
    whole = run(tmp_path / "two", 2, "cross_entropy")
    check_same(run(tmp_path / "one", 1, "cross_entropy"), whole, tmp_path)
    assert [line["step"] for line in run(tmp_path / "cut", 2, "cross_entropy", stop_at=[1, 1])] == [1]
    assert run(tmp_path / "cut", 2, "cross_entropy") == whole
    assert_same_parameters(tmp_path / "cut", tmp_path / "two")


@pytest.mark.parametrize("loss", ["cross_entropy", "dpo"])
def test_the_shares_of_all_hosts_are_the_batch_of_one(loss: str) -> None:
    """Short form of the two above: each sequence is one host's, pairs stay together, weights are the whole batch's."""
    build = preference_batch if loss == "dpo" else supervised_batch
    whole = build(data(loss)[:6], sequence_length=8)
    shares = [_own_share(whole, Hosts(index, 3, store=object())) for index in range(3)]  # type: ignore[arg-type]
    for name in ("tokens", "weights", "lengths", "groups"):
        parts = [np.asarray(getattr(share, name)) for share in shares]
        assert len({part.shape for part in parts}) == 1
        np.testing.assert_array_equal(np.concatenate(parts), np.asarray(getattr(whole, name)))
    assert sum(float(np.asarray(share.weights).sum()) for share in shares) == pytest.approx(1.0)


def test_a_batch_that_does_not_divide_is_refused_before_anything_runs() -> None:
    asked = SupervisedSettings(data="x.jsonl", steps=4, batch_size=5, learning_rate=1e-2)
    hosts = Hosts(0, 2, store=object())  # type: ignore[arg-type]
    nothing: Any = None
    with pytest.raises(FineTuningError, match=r"supervised\.batch_size is 5, expected a multiple of .*, 2"):
        fine_tune(
            nothing, nothing, asked, start=nothing, examples=iter(()), first_step=0, save=nothing, log=nothing,
            hosts=hosts,
        )  # fmt: skip
