"""Tokens of older versions: which the trainer looks at once more, and how far sampler and trainer are apart on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from learner_jax.batches import Batch, Lengths
from learner_jax.settings import LearnerSettings
from learner_jax.training.lagging import Lagging, Mismatch
from learner_jax.training.microbatches import PlannedBatch

#: Four sequences of six tokens; versions by token, -1 for what was not sampled. Version 7 is the current one.
VERSIONS = np.array(
    [[-1, -1, 5, 5, 6, 6], [-1, -1, 6, 6, 6, 7], [-1, -1, 7, 7, 7, 7], [-1, -1, 6, 7, 4, 4]],
    np.int32,
)
BEHAVIOR = -np.arange(24, dtype=np.float32).reshape(4, 6) / 10


class Trainer:
    """In place of the statistics: under `params` every token has the log-prob of the sampler, and so much less.

    Attributes:
      asked: the parameters, sequences and tokens of each look.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[float, list[int], int]] = []

    def logprobs(self, params: float, tokens: np.ndarray, sampled: np.ndarray, lengths: Lengths) -> np.ndarray:
        assert len(tokens) == len(sampled) == len(lengths.tokens) == len(lengths.groups) == len(lengths.shared)
        rows = tokens[:, 0].tolist()
        assert lengths.tokens.tolist() == [6 - row % 2 for row in rows], "each with its own length"
        self.asked.append((params, rows, int(sampled.sum())))
        return BEHAVIOR[rows] - np.float32(params)


class Hosts:
    """This host and others, that say how many rows they have, and what they found."""

    def __init__(self, rows: tuple[int, ...] = (), found: tuple[list[Any], ...] = ()) -> None:
        self.count = 1 + max(len(rows), len(found))
        self._rows, self._found = rows, found

    def gather(self, value: Any, what: str) -> list[Any]:
        return [value, *(self._rows if "rows" in what else self._found)]


def lagging(trainer: Trainer, hosts: Any = None, *, corrects: bool = True, mismatch_rows: int = 8) -> Lagging:
    loss = {"mismatch": {"truncation": 2.0, "lagging": corrects}}
    settings = {"steps": 1, "groups_per_step": 4, "sequence_length": 6, "microbatch_rows": 2, "mismatch_versions": 2}
    typed: Any = trainer
    return Lagging(
        LearnerSettings.model_validate(settings | {"loss": loss, "mismatch_rows": mismatch_rows}),
        typed,
        hosts or Hosts(),
    )


def batch() -> Batch:
    of_rows: Any = np.arange(4)
    floats: Any = np.zeros((4, 6), np.float32)
    arrays: Any = {"tokens": np.repeat(np.arange(4)[:, None], 6, axis=1), "policy_version": VERSIONS}
    lengths: Any = 6 - of_rows % 2
    return Batch(
        **arrays,
        weights=floats,
        advantages=floats,
        behavior_logprobs=BEHAVIOR,  # type: ignore[arg-type]
        lengths=lengths,
        groups=of_rows,
        shared=0 * of_rows,
    )


def test_tokens_of_each_older_version_are_looked_at_under_its_own_weights_and_no_others() -> None:
    trainer = Trainer()
    published: Any = {5: 0.5, 6: 0.25, 7: 9.0}
    got = lagging(trainer).logprobs(batch(), published, current_version=7)
    less = np.select([VERSIONS == 5, VERSIONS == 6], [0.5, 0.25], 0.0).astype(np.float32)
    np.testing.assert_array_equal(got, BEHAVIOR - less)
    assert trainer.asked == [(0.5, [0], 2), (0.25, [0, 1, 3], 6)]


def test_the_distance_is_that_of_all_older_tokens() -> None:
    published: Any = {5: 0.5, 6: 0.25, 7: 9.0}
    found = lagging(Trainer()).mismatch(batch(), published, current_version=7)
    assert found == Mismatch(pytest.approx(2 * 0.5 + 6 * 0.25), pytest.approx(0.5), 8)  # type: ignore[arg-type]
    assert found.mean == pytest.approx(2.5 / 8)
    assert Mismatch(0.0, 0.0, 0).mean is None


@pytest.mark.parametrize(
    ("mismatch_rows", "others", "rows"), [(1, 0, [0]), (2, 0, [0, 1]), (3, 1, [0, 1]), (2, 1, [0])]
)
def test_no_more_sequences_of_a_version_are_looked_at_than_is_said_for_all_hosts(
    mismatch_rows: int, others: int, rows: list[int]
) -> None:
    trainer = Trainer()
    hosts = Hosts((1,) * others, ([0.0, 0.0, 0],) * others)
    published: Any = {6: 0.25}
    lagging(trainer, hosts, mismatch_rows=mismatch_rows).mismatch(batch(), published, current_version=7)
    assert [asked for _, asked, _ in trainer.asked] == [rows]


def test_what_all_hosts_found_is_added_up() -> None:
    hosts = Hosts((3, 0), ([4.0, 2.0, 10], [0.0, 0.0, 0]))
    published: Any = {6: 0.25}
    found = lagging(Trainer(), hosts).mismatch(batch(), published, current_version=7)
    assert (found.total, found.maximum, found.num_tokens) == (pytest.approx(4 + 6 * 0.25), 2.0, 16)


def test_a_host_without_such_tokens_takes_part_where_another_has_some_and_nobody_does_where_none_has() -> None:
    trainer = Trainer()
    absent: Any = {3: 0.5}
    lagging(trainer, Hosts((0, 2))).logprobs(batch(), absent, current_version=7)
    assert trainer.asked == [(0.5, [], 0)]
    lagging(trainer, Hosts((0, 0))).logprobs(batch(), absent, current_version=7)
    assert len(trainer.asked) == 1


def test_log_probs_are_computed_only_where_they_are_asked_for() -> None:
    trainer = Trainer()
    planned: Any = PlannedBatch(batch(), packing=lambda: None)  # type: ignore[arg-type, return-value]
    published: Any = {6: 0.25}
    assert lagging(trainer, corrects=False).prepared(planned, published, current_version=7) is planned
    assert trainer.asked == []
    prepared = lagging(trainer).prepared(planned, published, current_version=7)
    expected = lagging(trainer).logprobs(batch(), published, current_version=7)
    np.testing.assert_array_equal(np.asarray(prepared.batch.trainer_logprobs), expected)
    assert prepared.packing is planned.packing
