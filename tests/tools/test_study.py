"""The staleness study in small: exact staleness, an exact sampler, records that survive, a page that keeps its text."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from learner_jax.contracts.model import parse_model_config
from learner_jax.models import init_parameters, merge, token_logprobs
from tests.conftest import REPOSITORY
from tests.support.tiny_model import TINY_JSON
from tools.study import records, results
from tools.study.grid import MULTI_TURN, Cell, StudySettings, cells
from tools.study.sampler import GroupSampler, Sampler
from tools.study.staleness import CellRunner

SMALL = StudySettings(steps=4, groups=2, group_size=2, start_accuracy=0.01, evaluate_every=1, num_heldout=8)


def test_the_samplers_logprobs_are_those_of_the_model() -> None:
    config = parse_model_config(TINY_JSON, origin="test")
    params = init_parameters(config, jax.random.key(1))
    sampler = Sampler(config, max_tokens=4, eos_id=2)
    contexts = [[5, 6, 7], [8, 9], [3, 4, 5, 6]]
    answers = sampler.turn(params, contexts, width=8, key=jax.random.key(3))
    for context, (tokens, logprobs) in zip(contexts, answers, strict=True):
        assert 1 <= len(tokens) <= 4
        assert 2 not in tokens[:-1]
        row = np.array([context + tokens], np.int32)
        expected = np.asarray(token_logprobs(merge(config, params), row).logprobs)[0, len(context) :]
        np.testing.assert_allclose(logprobs, expected, atol=2e-6)
    again = sampler.turn(params, contexts, width=8, key=jax.random.key(3))
    assert again == answers


def test_samples_follow_the_models_distribution() -> None:
    config = parse_model_config(TINY_JSON, origin="test")
    params = init_parameters(config, jax.random.key(1))
    sampler = Sampler(config, max_tokens=1, eos_id=2)
    answers = sampler.turn(params, [[5, 6, 7]] * 4000, width=4, key=jax.random.key(0))
    counts = np.bincount([tokens[0] for tokens, _ in answers], minlength=32)
    row = np.array([[5, 6, 7, t] for t in range(32)], np.int32)
    expected = 4000 * np.exp(np.asarray(token_logprobs(merge(config, params), row).logprobs)[:, 3])
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 61.1  # 31 degrees of freedom, one false alarm in a thousand (and the key is fixed)


def test_answers_to_shared_prompts_have_the_models_logprobs_and_distribution() -> None:
    config = parse_model_config(TINY_JSON, origin="test")
    params = init_parameters(config, jax.random.key(1))
    sampler = GroupSampler(config, max_tokens=2, eos_id=2)
    contexts = [[5, 6, 7]] * 4000 + [[8, 9]] * 3
    answers = sampler.turn(params, contexts, width=8, rng=np.random.default_rng(0))
    for row in (0, 1, 2, 3, 4000, 4001):
        context, (tokens, logprobs) = contexts[row], answers[row]
        assert len(tokens) == (1 if tokens[0] == 2 else 2)
        whole = np.array([context + tokens], np.int32)
        expected = np.asarray(token_logprobs(merge(config, params), whole).logprobs)[0, len(context) :]
        np.testing.assert_allclose(logprobs, expected, atol=2e-6)
    counts = np.bincount([tokens[0] for tokens, _ in answers[:4000]], minlength=32)
    each = np.array([[5, 6, 7, t] for t in range(32)], np.int32)
    expected = 4000 * np.exp(np.asarray(token_logprobs(merge(config, params), each).logprobs)[:, 3])
    assert ((counts - expected) ** 2 / expected).sum() < 61.1  # as above


@pytest.mark.soak
def test_a_cell_runs_at_its_exact_staleness_and_repeats_bit_by_bit(tmp_path: Path) -> None:
    """Two turns, whose start is made from that of one turn; the runner raises when a batch is of another age."""
    cell = Cell(MULTI_TURN, "V-trace by turn", 2, 0)
    runner = CellRunner(tmp_path, REPOSITORY / "configs" / "demo.toml", cell.task, cell.algorithm, SMALL)
    first, second = runner.run(cell), runner.run(cell)
    assert first["curve"] == second["curve"]
    assert [point["step"] for point in first["curve"]] == [1, 2, 3, 4]
    # Batches 1 to 3 were all sampled by the first policy, so the share falls below 1 only from the second step on.
    shares = [point["effective_sample_share"] for point in first["curve"]]
    assert shares[0] == pytest.approx(1.0, abs=1e-6)
    assert shares[2] < 1.0 - 1e-6


def fake_records(out: Path, seeds: int) -> list[Cell]:
    wanted = cells(seeds, (0, 8))
    for cell in wanted:
        record = {
            "start_accuracy": 0.6,
            "accuracy": 0.8 - 0.01 * cell.staleness - 0.02 * cell.seed,
            "curve": [],
            "settings": dataclasses.asdict(SMALL),
        }
        records.keep(out, cell, record)
    return wanted


def test_the_page_gets_tables_with_their_spread_and_keeps_its_text(tmp_path: Path) -> None:
    wanted = fake_records(tmp_path, 2)
    page = results.write_report(tmp_path, wanted, SMALL, tmp_path / "docs")
    page.write_text(page.read_text().replace("# Staleness", "# Staleness\n\nWhat people wrote."))
    text = results.write_report(tmp_path, wanted, SMALL, tmp_path / "docs").read_text()
    assert "What people wrote." in text
    assert text.count("| naive PPO | 79.0 (78.0 to 80.0) | 71.0 (70.0 to 72.0) |") == 1
    assert "| naive PPO | -8.0 (-8.0 to -8.0) |" in text
    assert (tmp_path / "docs" / "staleness.svg").stat().st_size > 1000


def test_records_of_other_settings_do_not_count(tmp_path: Path) -> None:
    wanted = fake_records(tmp_path, 1)
    other = dataclasses.replace(SMALL, steps=5)
    assert records.finished(tmp_path, other, Cell) == {}
    with pytest.raises(records.StudyError, match=rf"{len(wanted)} of {len(wanted)} cells are not finished"):
        results.write_report(tmp_path, wanted, other, tmp_path / "docs")


def test_a_half_written_record_is_not_a_record(tmp_path: Path) -> None:
    wanted = fake_records(tmp_path, 1)
    path = next((tmp_path / "cells").glob("*.json"))
    path.rename(path.with_suffix(".partial"))
    assert len(records.finished(tmp_path, SMALL, Cell)) == len(wanted) - 1
    assert json.loads(next((tmp_path / "cells").glob("*.json")).read_text())["settings"]["steps"] == 4
